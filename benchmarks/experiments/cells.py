"""A sweep's trials as data: what each is judged by, and those that differ only in their seeds joined."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, cast

from compressor.benchmarks.experiments.documents import DenseReport, ExperimentsDocument, PrunedReport, Record, ShownTrial
from compressor.benchmarks.measure.bench_document import BenchDocument, Memory
from compressor.benchmarks.measure.runs import TRAIN_STEP
from compressor.benchmarks.measure.typed import LARGEST
from compressor.benchmarks.report.compare import comparisons, dense_of, smalls_of
from compressor.objective.intervals import t_interval


@dataclass(frozen=True)
class Cell:
    """Trials that differ only in their seeds.

    Attributes:
        builder: what the network is built by, where that is known: its name, but where it came from a file.
        control: an ablation in place of the method itself.
        values: name of a measure -> its value of each seed.
        unit: what was removed: nodes or weights.
        course: the recipe, as text: what a training is compared with must have the same.
        metric: name of what the user judges by, and whether higher is better.
        places: where the trials ran, as texts: times are compared only where that is one place, the same.
    """

    network: str
    builder: str | None
    data: str
    label: str
    target: str
    method: str | None
    stage: str | None
    epochs: int
    control: bool
    values: Mapping[str, tuple[float, ...]]
    unit: str | None = None
    course: str = ""
    places: tuple[str, ...] = ()
    metric: tuple[str, bool] | None = None

    @property
    def seeds(self) -> int:
        """Number of trials."""
        return len(self.values["seed"])

    def mean(self, name: str) -> float | None:
        """Mean over the seeds; None where a trial has no such value."""
        return mean(self.values[name]) if len(self.values.get(name, ())) == self.seeds else None

    @property
    def judge(self) -> tuple[str, int]:
        """What it is judged by, and the factor with which more is better: a metric, else accuracy in percent, else the loss."""
        if self.metric is not None and "metric" in self.values:
            return "metric", 1 if self.metric[1] else -1
        return ("accuracy", 100) if "accuracy" in self.values else ("loss", -1)

    @property
    def judged(self) -> tuple[float, float] | None:
        """Mean and half the 95 % interval of what it is judged by; None without test data."""
        name, factor = self.judge
        values = self.values.get(name)
        return (abs(factor) * mean(values), abs(factor) * (t_interval(values) or 0.0)) if values else None


def harmonic_mean(one: float, other: float) -> float:
    """Of accuracy and weight sparsity, as in the SNIP-it paper's tables."""
    return 2 * one * other / (one + other) if one + other > 0 else 0.0


def ahead(one: Cell, other: Cell) -> tuple[float, float] | None:
    """How far one kind is ahead of another, seed by seed: mean and half the 95 % interval by Student's t.

    In points of accuracy, or in loss where there is no accuracy; None for fewer than two common seeds.
    """
    name, factor = one.judge
    if not all(len(c.values.get(name, ())) == c.seeds for c in (one, other)):
        return None
    mine, theirs = (dict(zip(c.values["seed"], c.values[name], strict=True)) for c in (one, other))
    gaps = [factor * (mine[seed] - theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]
    half = t_interval(gaps)
    return None if half is None else (mean(gaps), half)


def standing(cell: Cell, seeds: Collection[float]) -> float:
    """What kinds are ranked by: their mean, larger where they are better, over these seeds, or all where there are none."""
    name, factor = cell.judge
    pairs = list(zip(cell.values["seed"], cell.values[name], strict=False))
    return factor * mean([value for seed, value in pairs if seed in seeds] or [value for _, value in pairs])


def measures_of(record: Record) -> dict[str, float]:
    """What a trial is judged by, from its record; ratios are dense / small. What is no finite number is left out."""
    report = record["document"]
    training = report["training"]
    found: dict[str, float] = {"seed": record["trial"]["seed"], "training_macs": training["macs"]}
    found["train_seconds"] = sum(epoch["train_seconds"] for epoch in training["history"])
    found["seconds"] = training["seconds"]
    if (test := training["test"]) is not None:
        found |= {"loss": test["loss"]} if test["accuracy"] is None else {"accuracy": test["accuracy"]}
        if (judged := test.get("metric")) is not None:
            found["metric"] = judged["value"]
    found |= _of_pruned(cast(PrunedReport, report)) if "method" in report else _of_dense(cast(DenseReport, report))
    if "accuracy" in found and "method" in report:
        found["hm"] = harmonic_mean(found["accuracy"], found["weight_sparsity"])
    if (bench := record.get("bench")) is not None:
        found |= _gains_of(bench)
    return {name: value for name, value in found.items() if abs(value) <= LARGEST}


def _of_pruned(report: PrunedReport) -> dict[str, float]:
    """Sizes of the small network, how many times smaller than those of the dense one they are, and sparsities."""
    found: dict[str, float] = {}
    sizes = {name: report[name] for name in ("macs", "parameters", "weights", "tensor_bytes")}
    for name, size in sizes.items():
        found[name], found[f"{name}_x"] = size["small"], size["dense"] / max(1, size["small"])
    return found | {"node_sparsity": report["node_sparsity"]["reached"], "weight_sparsity": report["weight_sparsity"]}


def _of_dense(report: DenseReport) -> dict[str, float]:
    """Sizes of a network that nothing was removed from."""
    found: dict[str, float] = {name: report["cost"][name] for name in ("macs", "parameters", "weights", "tensor_bytes")}
    return found | {"macs_x": 1.0, "parameters_x": 1.0, "tensor_bytes_x": 1.0, "node_sparsity": 0.0, "weight_sparsity": 0.0}


def _gains_of(bench: BenchDocument) -> dict[str, float]:
    """Dense / small of what was measured: median times, and the memory of a train step beyond what the libraries take."""
    found = {f"{c.what}_{c.engine}_x": c.ratio for c in comparisons(bench) if not c.failed}
    dense, small = (
        next((m for m in bench["memory"] if (m["network"], m["what"]) == (facts["name"], TRAIN_STEP)), None)
        for facts in (dense_of(bench), smalls_of(bench)[0])
    )
    if dense and small and not dense["failed"] and not small["failed"]:
        found["train_memory_x"] = _own(dense) / max(1, _own(small))
    return found


def _own(memory: Memory) -> int:
    """Bytes of a network's own: allocated on a GPU, above an empty process on a CPU."""
    return memory["allocated"] if "allocated" in memory else memory["peak"] - memory["baseline"]


def cells_of(document: ExperimentsDocument) -> list[Cell]:
    """A document's trials joined over their seeds."""
    trials = sorted(document["trials"], key=lambda trial: trial["trial"]["seed"])
    cells, groups = [], [part for same in _alike(trials, "seed", "weights") for part in _of_one_seed_each(same)]
    for same in groups:
        t, first = same[0]["trial"], same[0]
        names = dict.fromkeys(name for one in same for name in one["measures"])
        values = {name: tuple(one["measures"][name] for one in same if name in one["measures"]) for name in names}
        built = first.get("builder", t["network"])
        named = t["network"], built, data_name(t["data"]), t["label"], target_of(t), t.get("method")
        course = json.dumps([t.get(name) for name in ("recipe", "numbers")], sort_keys=True)
        places = tuple(sorted({one.get("place", "") for one in same}))
        control = "ablation" in t.get("pruning", {})
        stage = "after" if first["stage"] == "before" and t.get("weights") else first["stage"]  # it was trained already
        judged = first.get("metric")
        metric = None if judged is None else (judged["name"], judged["higher_is_better"])
        cells.append(Cell(*named, stage, first["epochs"], control, values, first.get("unit"), course, places, metric))
    cells = _told_apart(cells, [same[0]["trial"] for same in groups])
    return sorted(cells, key=lambda c: (c.network, c.data, c.method is not None, c.label, c.target))


def _alike(trials: Sequence[ShownTrial], *but: str) -> list[list[ShownTrial]]:
    """Trials joined with those that differ in these values only."""
    groups: dict[str, list[ShownTrial]] = defaultdict(list)
    for trial in trials:
        rest = {name: value for name, value in trial["trial"].items() if name not in but}
        groups[json.dumps(rest, sort_keys=True)].append(trial)
    return list(groups.values())


def _of_one_seed_each(same: list[ShownTrial]) -> list[list[ShownTrial]]:
    """Trials that start from files, apart where a seed's file was made anew since: no seed counts twice."""
    seeds = [trial["trial"]["seed"] for trial in same]
    return [same] if len(set(seeds)) == len(seeds) else _alike(same, "seed")


def _told_apart(cells: list[Cell], trials: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Those that a table would show under one label and target, with what they differ in."""
    rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, c in enumerate(cells):
        rows[c.network, c.data, c.label, c.target].append(place)
    found = list(cells)
    for places in rows.values():
        settings = [_settings(trials[place]) for place in places]
        names = sorted({name for one in settings for name in one if len({str(other.get(name)) for other in settings}) > 1})
        for place, one in zip(places, settings, strict=True):
            said = ", ".join(f"{name} {one[name]}" for name in names if name in one)
            if len(places) > 1 and said:
                found[place] = dataclasses.replace(cells[place], label=f"{cells[place].label} ({said})")
    return found


def _settings(trial: Mapping[str, Any]) -> dict[str, Any]:
    """All that was set of a trial, by name."""
    named = ("method", "recipe", "samples", "image_size", "loss", "metric", "device", "threads", "builder")
    rest = {name: trial.get(name) for name in named}
    rest |= {name: (trial.get(name) or "")[:6] or None for name in ("files", "weights")}
    rest |= {"inputs": ", ".join(trial.get("inputs") or ()) or None, "rounds": trial.get("rounds") or None}
    return {
        **{name: value for name, value in rest.items() if value is not None},
        **trial.get("numbers", {}),
        **trial.get("pruning", {}),
    }


def data_name(path: str) -> str:
    """The last part of a path or a hub's name."""
    return path.rstrip("/").rpartition("/")[2]


def name_of(trial: Mapping[str, Any]) -> str:
    """For people: network, label, target, seed."""
    return " ".join(filter(None, (data_name(trial["network"]), trial["label"], target_of(trial), f"seed {trial['seed']}")))


def target_of(trial: Mapping[str, Any]) -> str:
    """What was asked for, in words."""
    for unit in ("sparsity", "macs", "parameters"):
        if (value := trial.get(unit)) is not None:
            return f"{value:g}" if unit == "sparsity" else f"{value:g} of {unit} left"
    return ""
