"""What `compress bench` reports, declared once: it is written so, and what is read is held against it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from compressor.benchmarks.measure.runs import KIND, SCHEMA
from compressor.benchmarks.measure.typed import AtLeastOne, Count, Measure, Seconds, checked
from compressor.errors import BadInput

What = Literal["inference", "train_step"]
Engine = Literal["torch", "onnxruntime"]
Counted: TypeAlias = Count | dict[str, str] | None
"""A count, or `{"failed": why there is none}`."""


class Environment(TypedDict):
    """Where something was measured; see `compressor.system.environment`."""

    python: str
    system: str
    packages: dict[str, str]
    commit: str | None
    device: str
    processor: str
    threads: Count


class BenchEnvironment(Environment):
    """With the processor's cores, ONNX Runtime's providers, and whether the GPU rounds to TF32."""

    cores: Count | None
    onnxruntime: NotRequired[list[str]]
    tf32: bool


class Judged(TypedDict):
    """What a metric of the user's choice came to."""

    name: str
    value: Measure
    higher_is_better: bool


class Quality(TypedDict):
    """On the data's test part; None where the data cannot tell, or what came out is no number."""

    loss: Measure | None
    accuracy: Measure | None
    samples: Count
    classes: NotRequired[Count | None]
    metric: NotRequired[Judged | None]


class Macs(TypedDict):
    """Multiply-adds of one sample; an `.onnx` says nothing of layers."""

    total: Count
    uncounted: list[str]
    by_operator: NotRequired[dict[str, Count]]
    by_layer: NotRequired[dict[str, Count]]
    norms: NotRequired[Count]


class NetworkFacts(TypedDict):
    """What needs no clock. Of an `.onnx` that was given as it is there is less than of a network that torch runs.

    Attributes:
        network: builder or class; None of an `.onnx`.
        inputs: of one sample, as `--input` says them.
        csr_bytes: index bits -> bytes of an estimate; `int32`: of a real CSR.
        widths: layer -> output channels or neurons.
    """

    name: str
    path: NotRequired[str]
    bytes: AtLeastOne
    network: str | None
    macs: Macs
    quality: Quality | None
    inputs: NotRequired[list[str]]
    parameters: NotRequired[Count]
    weights: NotRequired[Count]
    tensor_bytes: NotRequired[Count]
    csr_bytes: NotRequired[dict[str, Count]]
    macs_by_fvcore: NotRequired[Counted]
    macs_by_thop: NotRequired[Counted]
    training_macs: NotRequired[Counted]
    widths: NotRequired[dict[str, Count]]
    nodes: NotRequired[Count | None]
    nodes_by_layer: NotRequired[dict[str, Count]]


class Time(TypedDict):
    """Seconds of one network in one kind of run, a value for each round; none where it failed."""

    network: str
    what: What
    engine: Engine
    batch: AtLeastOne
    unit: NotRequired[str]
    values: list[Seconds]
    failed: str | None


class Memory(TypedDict):
    """Bytes at the peak of one kind of run: of a process and of an empty one on a CPU, of torch's allocator on a GPU."""

    network: str
    what: What
    engine: Engine
    batch: AtLeastOne
    unit: NotRequired[str]
    peak: NotRequired[Count]
    baseline: NotRequired[Count]
    allocated: NotRequired[Count]
    reserved: NotRequired[Count]
    failed: str | None


class BenchDocument(TypedDict):
    """The dense network is the first of `networks`."""

    schema: int
    kind: str
    data: str
    loss: str
    rounds: Count
    seed: int
    networks: list[NetworkFacts]
    times: list[Time]
    memory: list[Memory]
    environment: BenchEnvironment
    notes: list[str]


A_TIME = "a time is not a positive number of seconds for a batch"
SENTENCES = {"times.batch": A_TIME, "times.values": A_TIME, "notes": "its notes are not sentences"}


def check_bench(raw: Any) -> BenchDocument:
    """A document that was read from a file, if this version can show it.

    Raises:
        BadInput: not a benchmark report, one of another schema version, or a damaged one.
    """
    if not isinstance(raw, dict) or raw.get("kind") != KIND or "schema" not in raw:
        raise BadInput("not a report of `compress bench`")
    if type(raw["schema"]) is not int or raw["schema"] != SCHEMA:
        raise BadInput(f"report schema {raw['schema']}, this version shows {SCHEMA}; update compressor or measure again")
    try:
        document = checked(raw, BenchDocument, SENTENCES)
        _check_names(document)
        _check_memory(document["memory"])
    except BadInput as error:
        raise BadInput(f"not a report, or a damaged one: {error}") from error
    return document


def _check_names(document: BenchDocument) -> None:
    names = [network["name"] for network in document["networks"]]
    if len(names) < 2 or len(set(names)) < len(names) or not all(name.isprintable() for name in names):
        raise BadInput("it needs two networks or more, each with a name of its own")
    measured = [*(t["network"] for t in document["times"]), *(m["network"] for m in document["memory"])]
    if strangers := [name for name in measured if name not in names]:
        raise BadInput(f"it has a time or a memory of {strangers[0]!r}, which is none of its networks")


def _check_memory(memory: list[Memory]) -> None:
    measured = [m for m in memory if not m["failed"]]
    on_gpu = any("allocated" in m for m in memory)
    needed = {"allocated", "reserved"} if on_gpu else {"peak", "baseline"}
    if lacking := [m for m in measured if not needed <= m.keys()]:
        raise BadInput(f"the memory of {lacking[0]['network']!r} lacks {' or '.join(sorted(needed))}")
