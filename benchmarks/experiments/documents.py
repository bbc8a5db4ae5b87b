"""What a sweep leaves behind, each declared once: the record of a trial, its line in a study, and what a page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from compressor.benchmarks.measure.bench_document import BenchDocument, Environment, check_bench
from compressor.benchmarks.measure.typed import Count, Measure, checked
from compressor.errors import BadInput

if TYPE_CHECKING:
    from compressor.benchmarks.experiments.trial import Trial

SCHEMA = 1
EXPERIMENTS, STUDY = "experiments", "study"
"""Kinds of documents."""

Removed = Literal["node", "weight"]


class DenseAndSmall(TypedDict):
    """A size, before and after."""

    dense: Count
    small: Count


class Reached(TypedDict):
    """What a sparsity came to."""

    reached: float


class Epoch(TypedDict):
    """What of an epoch is judged."""

    train_seconds: float
    test_accuracy: float | None
    steps: NotRequired[Count]
    train_loss: NotRequired[float]
    train_accuracy: NotRequired[float | None]


class ByMetric(TypedDict):
    """What a metric of the user's choice came to."""

    name: str
    value: float
    higher_is_better: bool


class Judged(TypedDict):
    """The end, on the test data; the loss counts where there is no accuracy."""

    accuracy: float | None
    loss: NotRequired[float]
    metric: NotRequired[ByMetric | None]


class Training(TypedDict):
    """What the epochs came to."""

    macs: int
    seconds: float
    stage: str | None
    history: list[Epoch]
    test: Judged | None


class Report(TypedDict):
    """What a trial's report says, pruned or not; see `compressor.benchmarks.report.document`."""

    training: Training
    environment: Environment
    notes: list[str]


class PrunedReport(Report):
    """Of a trial with a method."""

    method: str
    macs: DenseAndSmall
    parameters: DenseAndSmall
    weights: DenseAndSmall
    tensor_bytes: DenseAndSmall
    node_sparsity: Reached
    weight_sparsity: float
    masks: NotRequired[dict[str, Any] | None]
    widths: NotRequired[dict[str, DenseAndSmall]]


class Cost(TypedDict):
    """Of a network as it is."""

    macs: Count
    parameters: Count
    weights: Count
    tensor_bytes: Count


class DenseReport(Report):
    """Of a trial without a method."""

    cost: Cost


class Record(TypedDict):
    """A trial's file.

    Attributes:
        trial: the values of a `Trial`.
        document: a `PrunedReport` or a `DenseReport`; of a trial that failed there is only the `error`.
        builder: what the network of a file is built by, where that is known.
        bench: times and memory of the dense and the small network; `bench_failed`: why there are none.
    """

    schema: NotRequired[int]
    key: str
    trial: dict[str, Any]
    status: Literal["done", "failed"]
    document: NotRequired[Report]
    error: NotRequired[str]
    builder: NotRequired[str | None]
    bench: NotRequired[BenchDocument | None]
    bench_failed: NotRequired[str]


class Line(TypedDict):
    """What a study keeps of a trial's record.

    Attributes:
        trial: the values of a `Trial`.
        error: why it failed; then there is nothing else.
        sha256: of the record's file.
    """

    key: str
    trial: dict[str, Any]
    error: NotRequired[str]
    sha256: NotRequired[str]


class DoneLine(Line):
    """Of a trial that was done.

    Attributes:
        environment: its place among the study's.
        measures: see `cells.measures_of`.
        steps: of the optimizer, in all epochs.
        test_accuracies: of each epoch.
        last_epoch: loss and accuracy on the training data.
        metric: what the user judges by, at the end.
        widths: what is left of each layer, where nodes went.
    """

    builder: NotRequired[str | None]
    stage: str | None
    unit: Removed
    environment: Count
    measures: dict[str, Measure]
    test_accuracies: list[Measure | None]
    steps: NotRequired[Count]
    last_epoch: NotRequired[dict[str, Measure | None]]
    metric: NotRequired[ByMetric]
    widths: NotRequired[list[Count]]
    notes: NotRequired[list[str]]


class Head(TypedDict):
    """A study's first line."""

    schema: int
    kind: str
    title: str
    environments: list[Environment]


class Study(Head):
    """The trials of a sweep, a line each."""

    trials: list[DoneLine]
    failed: list[Line]


class ShownTrial(TypedDict):
    """A trial on a page.

    Attributes:
        place: what its times depend on, as text.
    """

    trial: dict[str, Any]
    builder: NotRequired[str | None]
    stage: str | None
    epochs: Count
    unit: NotRequired[Removed]
    place: NotRequired[str]
    metric: NotRequired[ByMetric]
    test_accuracies: NotRequired[list[Measure | None]]
    measures: dict[str, Measure]


class ExperimentsDocument(TypedDict):
    """What a sweep's page shows, as data: the values of each trial, and where they were made.

    Attributes:
        failed: name and key of a trial -> why it failed.
        notes: sentences, with how many trials say them.
    """

    schema: int
    kind: str
    title: str
    trials: list[ShownTrial]
    failed: dict[str, str]
    notes: NotRequired[list[str]]
    environments: list[Environment]


def check_record(raw: Any) -> Record:
    """A trial's record that was read from a file.

    Raises:
        BadInput: a damaged one.
    """
    record = checked(raw, Record)
    _check_trial(record["trial"])
    if record["status"] == "failed":
        needed: type = _Failed
    else:
        needed = _Pruned if "method" in record.get("document", ()) else _Dense
    checked(raw, needed)
    if (bench := record.get("bench")) is not None:
        check_bench(bench)
    return record


class _Failed(TypedDict):
    error: str


class _Pruned(TypedDict):
    document: PrunedReport


class _Dense(TypedDict):
    document: DenseReport


def check_line(raw: Any, environments: int) -> Line:
    """A trial's line that was read from a study with so many environments: a `DoneLine`, unless it has an error.

    Raises:
        BadInput: a damaged one.
    """
    line = checked(raw, Line)
    _check_trial(line["trial"])
    if "error" not in line:
        done = checked(raw, DoneLine)
        _check_measures(done["measures"])
        if done["environment"] >= environments:
            raise BadInput(f"environment {done['environment']}: the first line has {environments}")
    return line


def check_experiments(raw: Any) -> ExperimentsDocument:
    """A document that was read from a file.

    Raises:
        BadInput: a damaged one.
    """
    try:
        document = checked(raw, ExperimentsDocument)
        for number, shown in enumerate(document["trials"]):
            _check_trial(shown["trial"], f"trials[{number}].trial")
            _check_measures(shown["measures"], f"trials[{number}].measures")
    except BadInput as error:
        raise BadInput(f"not a report, or a damaged one: {error}") from error
    return document


def trial_of(values: Mapping[str, Any]) -> Trial:
    """The trial of these values; what they do not say, as older ones do not, is as `Trial` has it."""
    from compressor.benchmarks.experiments.trial import Trial  # with torch, which the page of a benchmark is made without

    return Trial(**values)


def _check_trial(values: dict[str, Any], where: str = "trial") -> None:
    from compressor.benchmarks.experiments.trial import Trial

    try:
        checked(values, Trial)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    if not 0 <= values["seed"] < 2**63:
        raise BadInput(f"{where}: seed: expected a whole number of at least 0, below 2^63")
    if unknown := sorted(values.keys() - Trial.__dataclass_fields__.keys()):
        raise BadInput(f"{where}: this version knows no {', '.join(unknown)}; update compressor")


def _check_measures(measures: dict[str, float], where: str = "measures") -> None:
    if "seed" not in measures:
        raise BadInput(f"{where}: lacks seed")
