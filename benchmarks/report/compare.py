"""What the raw values of a benchmark say: ratios, whether they mean anything, and the paper's row beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from compressor.benchmarks.measure.bench_document import BenchDocument, NetworkFacts
from compressor.benchmarks.measure.latency import quartiles
from compressor.benchmarks.measure.runs import INFERENCE, TRAIN_STEP

NEAR = 1.0
"""Percentage points of node sparsity within which a row of the paper is shown."""


@dataclass(frozen=True)
class Comparison:
    """One time of the dense network against the same of a small one.

    Attributes:
        network: name of the small one.
        dense: first quartile, median and third quartile in seconds; `small` the same.
        ratio: dense median / small median; `low` and `high` are the quartiles of the ratios of each round.
        significant: the quartile ranges of dense and small do not overlap.
        failed: why there is no time.
    """

    network: str
    what: str
    engine: str
    batch: int
    dense: tuple[float, float, float] | None
    small: tuple[float, float, float] | None
    failed: str | None = None
    low: float = math.nan
    high: float = math.nan

    @property
    def ratio(self) -> float:
        """How many times faster the small network is."""
        return self.dense[1] / self.small[1] if self.dense and self.small else math.nan

    @property
    def significant(self) -> bool:
        """Whether the middle halves of the values lie apart."""
        return bool(self.dense and self.small and (self.small[2] < self.dense[0] or self.dense[2] < self.small[0]))


def dense_of(document: BenchDocument) -> NetworkFacts:
    """The facts of the dense network."""
    return document["networks"][0]


def smalls_of(document: BenchDocument) -> list[NetworkFacts]:
    """The facts of the small networks."""
    return document["networks"][1:]


def comparisons(document: BenchDocument) -> list[Comparison]:
    """Every time of every small network against the dense one's, in the order they were measured."""
    times = {(t["network"], t["what"], t["engine"], t["batch"]): t for t in document["times"]}
    dense = dense_of(document)["name"]
    found = []
    for (name, what, engine, batch), t in times.items():
        reference = times.get((dense, what, engine, batch))
        if name == dense or reference is None:
            continue
        a, b = reference["values"], t["values"]
        failed = t["failed"] or reference["failed"] or (None if a and b else "no values")
        if failed:
            whose = name if t["failed"] else dense
            found.append(Comparison(name, what, engine, batch, _spread(a), _spread(b), f"{whose}: {failed}"))
            continue
        low, _, high = quartiles([x / y for x, y in zip(a, b, strict=False)])
        found.append(Comparison(name, what, engine, batch, quartiles(a), quartiles(b), None, low, high))
    return found


def _spread(values: list[float]) -> tuple[float, float, float] | None:
    return quartiles(values) if values else None


def mac_reduction(document: BenchDocument, name: str, what: str = INFERENCE) -> float:
    """Multiply-adds of the dense network / those of a small one, of a training step too; nan where not all are counted."""
    dense, small = dense_of(document), next(n for n in document["networks"] if n["name"] == name)
    if dense["macs"]["uncounted"] or small["macs"]["uncounted"]:
        return math.nan
    if what == TRAIN_STEP:
        before, after = dense.get("training_macs"), small.get("training_macs")
    else:
        before, after = dense["macs"]["total"], small["macs"]["total"]
    if isinstance(before, int) and isinstance(after, int) and before > 0 and after > 0:
        return before / after
    return math.nan


def main_comparison(document: BenchDocument, name: str, what: str) -> Comparison | None:
    """The one for the headline: the largest batch that both did, in ONNX Runtime where that was measured."""
    fit = [c for c in comparisons(document) if c.network == name and c.what == what and not c.failed]
    return max(fit, key=lambda c: (c.engine == "onnxruntime", c.batch), default=None)


def headline(document: BenchDocument, name: str) -> dict[str, str]:
    """What is said first of a small network: claim -> how it was measured."""
    dense, small = dense_of(document), next(n for n in document["networks"] if n["name"] == name)
    said = {}
    if math.isfinite(reduction := mac_reduction(document, name)):
        said[claim(reduction, "fewer MACs", "more MACs")] = "multiply-adds of one sample"
    for what, noun in ((INFERENCE, "inference"), (TRAIN_STEP, "training")):
        c = main_comparison(document, name, what)
        if c is None:
            continue
        measured = f"{ENGINE_NAMES[c.engine]}, batch {c.batch}, median of {document['rounds']}"
        if not c.significant:
            said[f"{noun} time not significantly different"] = measured
        else:
            said[claim(c.ratio, f"faster {noun}", f"slower {noun}")] = measured
    said[claim(dense["bytes"] / small["bytes"], "smaller file", "larger file")] = f"{dense['name']} against {small['name']}"
    return said


ENGINE_NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}


def claim(ratio: float, better: str, worse: str) -> str:
    """A ratio in words: `9.9x fewer MACs`; below 1 it is the other way round."""
    return f"{times(ratio)} {better}" if ratio >= 1 else f"{times(1 / ratio)} {worse}"


def times(ratio: float) -> str:
    """A ratio to two or three digits."""
    if math.isnan(ratio):
        return "-"
    return f"{ratio:,.0f}x" if ratio >= 99.95 else f"{ratio:.1f}x" if ratio >= 9.995 else f"{ratio:.2f}x"


def efficiency(document: BenchDocument, c: Comparison) -> float:
    """Realised efficiency: speed-up / MAC reduction of that run; 1 means that every saved operation was saved time."""
    return c.ratio / mac_reduction(document, c.network, c.what)


def node_sparsity(document: BenchDocument, small: NetworkFacts) -> float | None:
    """1 - nodes kept / nodes, where both are known."""
    dense, left = dense_of(document).get("nodes"), small.get("nodes")
    return 1 - left / dense if dense and left is not None else None


def paper_rows(document: BenchDocument) -> Iterator[tuple[NetworkFacts, dict[str, Any]]]:
    """(facts of a small network, row of the paper) for the same network and nearly the same node sparsity."""
    dense = dense_of(document)
    data = {"3x32x32": "CIFAR-10", "3x224x224": "Imagenette"}.get((dense.get("inputs") or [""])[0])
    for small in smalls_of(document):
        sparsity = node_sparsity(document, small)
        for row in paper()["rows"]:
            same = (row["network"], row["data"]) == (dense["network"], data)
            if same and sparsity is not None and abs(100 * sparsity - row["node_sparsity"]) <= NEAR:
                yield small, row


def paper() -> dict[str, Any]:
    """The tables of the paper for structured pruning, as printed."""
    text = files("compressor.benchmarks.report").joinpath("paper.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def disk_meant(row: dict[str, Any]) -> float:
    """The ratio of file sizes behind the paper's printed one.

    Table 4 prints 10^(ln r) for the ratio r (12 of its 12 rows fit the weight sparsity so). Table 1 follows no rule that was
    found; there it is 1 / (1 - weight sparsity).
    """
    if row["table"] == "Table 4":
        return math.exp(math.log10(float(row["disk_x_as_printed"])))
    return 1 / (1 - float(row["weight_sparsity"]) / 100)
