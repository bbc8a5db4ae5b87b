"""A sweep's records as tables and curves: means over seeds with their intervals, each beside the paper's number."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import mean, stdev
from typing import Any

from benchmarks.report.compare import TRAIN_STEP, comparisons, dense_of, smalls_of
from benchmarks.report.page import markdown_table, page, to_json

Row = list[str]
KIND = "experiments"
SCHEMA = 1
NEAR = 2.0
"""Points of sparsity within which a row of a paper is beside ours."""

FEW = 10
"""Below so many seeds the t interval stands beside the papers' 1.96 sigma / sqrt(n)."""


@dataclass(frozen=True)
class Cell:
    """Trials that differ only in their seeds.

    Attributes:
        builder: what the network is built by: its name, but where it came from a file.
        control: an ablation in place of the method itself.
        values: name of a measure -> its value of each seed.
        unit: what was removed: nodes or weights.
        course: the recipe, as text: what a training is compared with must have the same.
        places: where the trials ran, as texts: times are compared only where that is one place, the same.
    """

    network: str
    builder: str
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

    @property
    def seeds(self) -> int:
        """Number of trials."""
        return len(self.values["seed"])

    def mean(self, name: str) -> float | None:
        """Mean over the seeds; None where a trial has no such value."""
        return mean(self.values[name]) if len(self.values.get(name, ())) == self.seeds else None

    @property
    def judged(self) -> tuple[float, float] | None:
        """Mean and half the 95 % interval of the accuracy in percent, or else of the loss; None without test data."""
        scale, values = (100, self.values["accuracy"]) if "accuracy" in self.values else (1, self.values.get("loss"))
        return (scale * mean(values), scale * (t_interval(values) or 0.0)) if values else None


def normal_interval(values: Sequence[float]) -> float | None:
    """1.96 sigma / sqrt(n), half the width of the interval that the papers print; None for a single value."""
    return 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval by Student's t, which is right for few values; None for a single one."""
    from scipy import stats  # takes a second

    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def harmonic_mean(one: float, other: float) -> float:
    """Of accuracy and weight sparsity, as in the SNIP-it paper's tables."""
    return 2 * one * other / (one + other) if one + other > 0 else 0.0


def measures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a trial is judged by, from its record; ratios are dense / small."""
    d = record["document"]
    training = d["training"]
    found = {"seed": record["trial"]["seed"], "training_macs": training["macs"]}
    found["train_seconds"] = sum(row["train_seconds"] for row in training["history"])
    found["seconds"] = training["seconds"]
    if (test := training["test"]) is not None:
        found |= {"loss": test["loss"]} if test["accuracy"] is None else {"accuracy": test["accuracy"]}
    if "method" in d:
        for name in ("macs", "parameters", "weights", "tensor_bytes"):
            found[name], found[f"{name}_x"] = d[name]["small"], d[name]["dense"] / max(1, d[name]["small"])
        found |= {"node_sparsity": d["node_sparsity"]["reached"], "weight_sparsity": d["weight_sparsity"]}
    else:
        found |= {name: d["cost"][name] for name in ("macs", "parameters", "weights", "tensor_bytes")}
        found |= {"macs_x": 1.0, "parameters_x": 1.0, "tensor_bytes_x": 1.0, "node_sparsity": 0.0, "weight_sparsity": 0.0}
    if "accuracy" in found and "method" in d:
        found["hm"] = harmonic_mean(found["accuracy"], found["weight_sparsity"])
    return found | ({} if record.get("bench") is None else _gains_of(record["bench"]))


def _gains_of(bench: Mapping[str, Any]) -> dict[str, float]:
    """Dense / small of what was measured: median times, and the memory of a train step beyond what the libraries take."""
    document = dict(bench)
    found = {f"{c.what}_{c.engine}_x": c.ratio for c in comparisons(document) if not c.failed}
    dense, small = (
        next((m for m in document["memory"] if (m["network"], m["what"]) == (facts["name"], TRAIN_STEP)), None)
        for facts in (dense_of(document), smalls_of(document)[0])
    )
    if dense and small and not dense["failed"] and not small["failed"]:
        found["train_memory_x"] = _own(dense) / max(1, _own(small))
    return found


def _own(memory: Mapping[str, Any]) -> int:
    """Bytes of a network's own: allocated on a GPU, above an empty process on a CPU."""
    return int(memory["allocated"] if "allocated" in memory else memory["peak"] - memory["baseline"])


def cells_of(document: Mapping[str, Any]) -> list[Cell]:
    """A document's trials joined over their seeds."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for trial in sorted(document["trials"], key=lambda trial: trial["trial"]["seed"]):
        rest = {name: value for name, value in trial["trial"].items() if name not in ("seed", "weights")}
        groups[json.dumps(rest, sort_keys=True)].append(trial)
    cells = []
    for same in groups.values():
        t, first = same[0]["trial"], same[0]
        names = dict.fromkeys(name for one in same for name in one["measures"])
        values = {name: tuple(one["measures"][name] for one in same if name in one["measures"]) for name in names}
        named = t["network"], first.get("builder", t["network"]), data_name(t["data"]), t["label"], target_of(t), t["method"]
        course = json.dumps([t.get(name) for name in ("recipe", "numbers")], sort_keys=True)
        places = tuple(sorted({one.get("place", "") for one in same}))
        control = "ablation" in t["pruning"]
        stage = "after" if first["stage"] == "before" and t.get("weights") else first["stage"]  # it was trained already
        cells.append(Cell(*named, stage, first["epochs"], control, values, first.get("unit"), course, places))
    cells = _told_apart(cells, [same[0]["trial"] for same in groups.values()])
    return sorted(cells, key=lambda c: (c.network, c.data, c.method is not None, c.label, c.target))


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
    rest = {name: trial.get(name) for name in ("method", "recipe", "samples", "image_size", "loss", "device", "threads")}
    rest["files"] = (trial.get("files") or "")[:6] or None
    return {
        **{name: value for name, value in rest.items() if value is not None},
        **trial.get("numbers", {}),
        **trial["pruning"],
    }


def data_name(path: str) -> str:
    """The last part of a path or a hub's name."""
    return path.rstrip("/").rpartition("/")[2]


def name_of(trial: Mapping[str, Any]) -> str:
    """For people: network, label, target, seed."""
    return " ".join(filter(None, (data_name(trial["network"]), trial["label"], target_of(trial), f"seed {trial['seed']}")))


def target_of(trial: Mapping[str, Any]) -> str:
    """What was asked for, in words."""
    if trial["sparsity"] is not None:
        return f"{trial['sparsity']:g}"
    for unit in ("macs", "parameters"):
        if trial[unit] is not None:
            return f"{trial[unit]:g} of {unit} left"
    return ""


def paper_row(cell: Cell) -> dict[str, Any] | None:
    """The row of a paper's table that is nearest to a cell: same network, data, method, stage and unit."""
    text = files("benchmarks.report").joinpath("paper_training.json").read_text(encoding="utf-8")
    if cell.control:
        return None
    rows = [
        row for row in json.loads(text)["rows"]
        if (row["network"], row["data"], row["method"]) == (cell.builder, cell.data, cell.method)
        and row["stage"] in (None, cell.stage)
        and (row["method"] is None or cell.unit in (None, "node" if "node_sparsity" in row else "weight"))
    ]  # fmt: skip

    def distance(row: Mapping[str, Any]) -> float:
        ours = cell.mean("node_sparsity" if "node_sparsity" in row else "weight_sparsity") or 0.0
        return abs(100 * ours - row.get("node_sparsity", row["weight_sparsity"]))

    near = [row for row in rows if distance(row) <= NEAR]
    return min(near, key=distance) if near else None


HEAD = [
    "method", "asked", "seeds", "accuracy, %", "loss", "node sparsity, %", "weight sparsity, %", "HM", "MACs", "parameters",
    "bytes", "inference, PyTorch", "inference, ONNX Runtime", "train step", "train memory", "training FLOPs", "training time",
    "paper",
]  # fmt: skip
MAY_LACK = {"accuracy, %", "loss", "HM", *HEAD[11:]}
"""Columns that are left out where no trial has a value."""


def tables(cells: Sequence[Cell]) -> list[tuple[str, Row, list[Row]]]:
    """(title, head, rows) for each network and data set."""
    found = []
    for network, data in dict.fromkeys((c.network, c.data) for c in cells):
        mine = [c for c in cells if (c.network, c.data) == (network, data)]
        epochs = " or ".join(str(n) for n in sorted({c.epochs for c in mine}))
        dense = {(c.epochs, c.course): c for c in mine if c.method is None}
        rows = [_row(c, dense.get((c.epochs, c.course))) for c in mine]
        shown = [i for i, name in enumerate(HEAD) if name not in MAY_LACK or any(row[i] for row in rows)]
        head, *rows = ([row[i] for i in shown] for row in (HEAD, *rows))
        found.append((f"{data_name(network)} on {data}, {epochs} epoch{'' if epochs == '1' else 's'}", head, rows))
    return found


MEASURED_HEAD = HEAD[11:15]
MEASURED = ("inference_torch_x", "inference_onnxruntime_x", "train_step_torch_x", "train_memory_x")


def _row(cell: Cell, dense: Cell | None) -> Row:
    paper = paper_row(cell)
    beside = dense if dense is not None and len(cell.places) == 1 and dense.places == cell.places else None
    return [
        cell.label, cell.target, str(cell.seeds), accuracy_text(cell.values.get("accuracy", ())),
        _spread_text(cell.values.get("loss", ()), 4),
        _percent(cell.mean("node_sparsity")), _percent(cell.mean("weight_sparsity")), _percent(cell.mean("hm")),
        _times(cell.mean("macs_x")), _times(cell.mean("parameters_x")), _times(cell.mean("tensor_bytes_x")),
        *(_times(cell.mean(name)) for name in MEASURED),
        _against(dense, cell, "training_macs"), _against(beside, cell, "train_seconds"),
        "" if paper is None else _paper_text(paper),
    ]  # fmt: skip


def accuracy_text(values: Sequence[float]) -> str:
    """In percent: mean +- the papers' interval, with the t interval where there are few seeds."""
    return _spread_text([100 * value for value in values], 2)


def _spread_text(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    said = f"{mean(values):.{digits}f}"
    if (normal := normal_interval(values)) is None:
        return said
    student = t_interval(values) if len(values) < FEW else None
    return f"{said} ± {normal:.{digits}f}" + ("" if student is None else f" (t: {student:.{digits}f})")


def _paper_text(row: Mapping[str, Any]) -> str:
    interval = "" if row["ci95"] is None else f" ± {row['ci95']}"
    at = f" at {row.get('node_sparsity', row['weight_sparsity'])} %" if row["method"] else ""
    gains = ("flops_inference_x", "fewer FLOPs"), ("time_inference_x", "inference"), ("time_train_x", "train")
    gained = ", ".join(f"{row[name]}x {noun}" for name, noun in gains if name in row)
    return f"{row['accuracy']}{interval}{at}{gained and f', {gained}'} ({row['table']})"


def _against(dense: Cell | None, cell: Cell, name: str) -> str:
    big, small = (None if c is None else c.mean(name) for c in (dense, cell))
    return _times(big / small) if big and small else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}x" if value < 100 else f"{value:,.0f}x"


FOOTNOTES = [
    "Accuracy, or the loss where there is none: mean ± 1.96 sigma / sqrt(n) over the seeds, as the papers print it; in "
    "brackets the 95 % interval by Student's t, right for so few.",
    "Sparsities are what was reached. HM: harmonic mean of accuracy and weight sparsity. MACs of one sample, parameters, bytes "
    "of all tensors: dense / small.",
    "Training FLOPs with the pruning's, and time of the steps alone: those of the "
    "dense network's training by the same recipe / this one's; the time only where both were trained on the same processor, "
    "threads and torch.",
]


MEASURED_NOTE = (
    "Inference and train step of 64 samples, and the memory of a train step beyond that of the libraries: dense / small, "
    "measured in turn."
)


def _footnotes(found: Sequence[tuple[str, Row, list[Row]]]) -> list[str]:
    """What the columns that are shown mean."""
    first, second, third = FOOTNOTES
    measured = any(name in head for _, head, _ in found for name in MEASURED_HEAD)
    return [first, " ".join([second, *([MEASURED_NOTE] if measured else []), third])]


def experiments_document(records: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """All that a page shows, as data: the raw values of each trial, and where they were made."""
    done = [r for r in records if r["status"] == "done"]
    places = {json.dumps(r["document"]["environment"], sort_keys=True): r["document"]["environment"] for r in done}
    trials = [
        {
            "trial": r["trial"],
            **({"builder": r["builder"]} if "builder" in r else {}),
            "stage": r["document"]["training"]["stage"],
            "epochs": len(r["document"]["training"]["history"]),
            "unit": "weight" if r["document"].get("masks") else "node",
            "place": _place(r["document"]["environment"]),
            "test_accuracies": [row["test_accuracy"] for row in r["document"]["training"]["history"]],
            "measures": measures_of(r),
        }
        for r in done
    ]
    notes = Counter(note for r in done for note in r["document"]["notes"])
    failed = {f"{name_of(r['trial'])} ({r['key']})": r["error"] for r in records if r["status"] == "failed"}
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "title": title,
        "trials": trials,
        "failed": failed,
        "notes": [f"{note} ({count} of {len(done)} trials)" for note, count in notes.most_common()],
        "environments": [*places.values()],
    }


def _place(environment: Mapping[str, Any]) -> str:
    """What times depend on, as text."""
    said = {name: environment[name] for name in ("processor", "device", "threads")}
    return json.dumps(said | {"torch": environment["packages"].get("torch")}, sort_keys=True)


def render_experiments(document: Mapping[str, Any], suffix: str) -> str:
    """The text of a file with that suffix: `.html`, `.md` or `.json`."""
    return {".html": _to_html, ".md": _to_markdown, ".json": to_json}[suffix](dict(document))


def _to_markdown(document: dict[str, Any]) -> str:
    lines = [f"# {document['title']}", ""]
    found = tables(cells_of(document))
    for title, head, rows in found:
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    lines += [*(f"{note}\n" for note in (*_footnotes(found), *_remarks(document))), "## Environment", ""]
    return "\n".join([*lines, *markdown_table(["", ""], _environment(document))]) + "\n"


def _to_html(document: dict[str, Any]) -> str:
    from benchmarks.report.plots import experiment_plots

    cells = cells_of(document)
    plots = experiment_plots(cells, paper_row)
    return page(
        title=document["title"], headlines={}, plots=plots, tables=tables(cells), footnotes=_footnotes(tables(cells)),
        notes=_remarks(document), environment=_environment(document),
    )  # fmt: skip


def _remarks(document: Mapping[str, Any]) -> list[str]:
    """What did not come off, what the trials had to say, and where seeds say nothing."""
    remarks = [*(f"Failed: {name}: {error}" for name, error in document["failed"].items()), *document.get("notes", ())]
    for c in cells_of(document):
        values = c.values.get("accuracy") or c.values.get("loss") or ()
        if len(values) > 1 and len(set(values)) == 1:
            remarks.append(f"{c.label} {c.target}".rstrip() + ": all seeds gave the same, so the interval says nothing.")
    return remarks


def _environment(document: Mapping[str, Any]) -> list[Row]:
    """What the trials ran on; of several machines or commits, all of them."""
    places = document["environments"]

    def said(name: str) -> str:
        return "; ".join(dict.fromkeys(str(place[name]) for place in places))

    packages = dict.fromkeys(f"{name} {version}" for place in places for name, version in place["packages"].items())
    rows = [[name, said(name)] for name in ("processor", "device", "threads", "python", "system", "commit")]
    return [*rows, ["packages", ", ".join(packages)]]
