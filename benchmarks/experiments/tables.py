"""A sweep's records as tables and curves: means over seeds with their intervals, each beside the paper's number."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from statistics import mean
from typing import Any, cast

from compressor.benchmarks.experiments.cells import (
    Cell,
    ahead,
    cells_of,
    data_name,
    name_of,
    standing,
)
from compressor.benchmarks.experiments.documents import (
    EXPERIMENTS,
    SCHEMA,
    DoneLine,
    ExperimentsDocument,
    Record,
    ShownTrial,
    Study,
)
from compressor.benchmarks.experiments.records import line_of, study_of
from compressor.benchmarks.measure.bench_document import Environment
from compressor.benchmarks.report.page import markdown_table, page
from compressor.objective.intervals import normal_interval, t_interval

Row = list[str]
NEAR = 2.0
"""Points of sparsity within which a row of a paper is beside ours."""

FEW = 10
"""Below so many seeds the t interval stands beside the papers' 1.96 sigma / sqrt(n)."""


def paper_row(cell: Cell) -> dict[str, Any] | None:
    """The row of a paper's table that is nearest to a cell: same network, data, method, stage and unit."""

    def distance(row: Mapping[str, Any]) -> float:
        ours = cell.mean("node_sparsity" if "node_sparsity" in row else "weight_sparsity") or 0.0
        return abs(100 * ours - _sparsity_of(row))

    near = [row for row in _paper_rows(cell) if distance(row) <= NEAR]
    return min(near, key=distance) if near else None


def paper_row_asked(cell: Cell) -> dict[str, Any] | None:
    """The row of a paper's table at the sparsity that a cell's trials were asked for."""
    asked = float(cell.target or 0)
    return next((row for row in _paper_rows(cell) if math.isclose(_sparsity_of(row), 100 * asked)), None)


def _paper_rows(cell: Cell) -> list[dict[str, Any]]:
    """The papers' rows of the same network, data, method, stage and unit."""
    text = files("compressor.benchmarks.report").joinpath("paper_training.json").read_text(encoding="utf-8")
    return [] if cell.control else [
        row for row in json.loads(text)["rows"]
        if (row["network"], row["data"], row["method"]) == (cell.builder, cell.data, cell.method)
        and row["stage"] in (None, cell.stage)
        and (row["method"] is None or cell.unit in (None, "node" if "node_sparsity" in row else "weight"))
    ]  # fmt: skip


def _sparsity_of(row: Mapping[str, Any]) -> float:
    """Percent that was removed, of nodes where those were."""
    return float(row.get("node_sparsity", row["weight_sparsity"]))


METRIC = "metric"
"""The column of what the user judges by, which has its name."""

HEAD = [
    "method", "asked", "seeds", "accuracy, %", "loss", METRIC, "node sparsity, %", "weight sparsity, %", "HM", "MACs",
    "parameters", "bytes", "inference, PyTorch", "inference, ONNX Runtime", "train step", "train memory", "training FLOPs",
    "training time", "paper",
]  # fmt: skip
MAY_LACK = {"accuracy, %", "loss", METRIC, "HM", *HEAD[12:]}
"""Columns that are left out where no trial has a value."""


def tables(cells: Sequence[Cell]) -> list[tuple[str, Row, list[Row]]]:
    """(title, head, rows) for each network and data set."""
    found = []
    for network, data in dict.fromkeys((c.network, c.data) for c in cells):
        mine = [c for c in cells if (c.network, c.data) == (network, data)]
        dense = {(c.epochs, c.course): c for c in mine if c.method is None}
        rows = [_row(c, dense.get((c.epochs, c.course))) for c in mine]
        shown = [i for i, name in enumerate(HEAD) if name not in MAY_LACK or any(row[i] for row in rows)]
        own = next((c.metric[0] for c in mine if c.metric is not None), METRIC)
        head, *rows = ([row[i] for i in shown] for row in ([own if name == METRIC else name for name in HEAD], *rows))
        found.append((f"{data_name(network)} on {data}, {_epochs_text([c.epochs for c in mine])}", head, rows))
    return found


def differences(cells: Sequence[Cell]) -> list[tuple[str, Row, list[Row]]]:
    """(title, head, rows) for each target that several kinds have: the best first, how far each is ahead of those behind it."""
    groups: dict[tuple[str, str, int, str], dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in sorted(cells, key=lambda c: c.target):
        if cell.judge[0] in cell.values:
            groups[cell.network, cell.data, cell.epochs, cell.course][_aim_text(cell)].append(cell)
    found = []
    for (network, data, epochs, _), kinds in groups.items():
        dense = kinds.pop("", [])
        for aim, mine in kinds.items():
            several = [*mine, *dense]
            shared = frozenset.intersection(*(frozenset(c.values["seed"]) for c in several))
            ranked = sorted(several, key=lambda c: standing(c, shared), reverse=True)
            gaps = [[ahead(one, other) for other in ranked[place + 1 :]] for place, one in enumerate(ranked[:-1])]
            if len(mine) < 2 or not any(gap for row in gaps for gap in row):
                continue
            rows = [
                [one.label, *[""] * place, *(_gap_text(gap, one) for gap in row)]
                for place, (one, row) in enumerate(zip(ranked[:-1], gaps, strict=True))
            ]
            judge = ranked[0].judge[0]
            what = {"accuracy": "points", "loss": "loss"}.get(judge) or (ranked[0].metric or (METRIC,))[0]
            title = f"{data_name(network)} on {data}, {_epochs_text([epochs])}, at {aim}: {what} ahead of"
            found.append((title, ["method", *(c.label for c in ranked[1:])], rows))
    return found


def _aim_text(cell: Cell) -> str:
    """What was asked for, and of what: 0.9 of the nodes are other networks than 0.9 of the weights."""
    return f"{cell.target} of the {cell.unit}s" if cell.target and " " not in cell.target else cell.target


def _gap_text(gap: tuple[float, float] | None, cell: Cell) -> str:
    digits = 2 if cell.judge[0] == "accuracy" else 4
    return "" if gap is None else f"{gap[0]:.{digits}f} ± {gap[1]:.{digits}f}"


def _epochs_text(epochs: Collection[int]) -> str:
    said = " or ".join(str(n) for n in sorted(set(epochs)))
    return f"{said} epoch{'' if said == '1' else 's'}"


MEASURED_HEAD = HEAD[12:16]
MEASURED = ("inference_torch_x", "inference_onnxruntime_x", "train_step_torch_x", "train_memory_x")


def _row(cell: Cell, dense: Cell | None) -> Row:
    paper = paper_row(cell)
    beside = dense if dense is not None and len(cell.places) == 1 and dense.places == cell.places else None
    return [
        cell.label, cell.target, str(cell.seeds), accuracy_text(cell.values.get("accuracy", ())),
        _spread_text(cell.values.get("loss", ()), 4), _spread_text(cell.values.get(METRIC, ()), 4),
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


AHEAD_NOTE = (
    "Ahead of: mean difference of the same seeds, and its 95 % interval by Student's t; where that is the larger one, so few "
    "seeds do not tell the two apart."
)


def _footnotes(cells: Sequence[Cell]) -> list[str]:
    """What the columns that are shown mean."""
    first, second, third = FOOTNOTES
    measured = any(name in head for _, head, _ in tables(cells) for name in MEASURED_HEAD)
    notes = [first, " ".join([second, *([MEASURED_NOTE] if measured else []), third])]
    return [*notes, AHEAD_NOTE] if differences(cells) else notes


def experiments_document(records: Iterable[Record], title: str) -> ExperimentsDocument:
    """All that a page shows of these records, as data."""
    return document_of(study_of(map(line_of, records), title))


def document_of(study: Study) -> ExperimentsDocument:
    """All that a page shows, as data: the values of each trial, and where they were made."""
    environments, lines = study["environments"], study["trials"]
    notes = Counter(note for line in lines for note in line.get("notes", ()))
    return {
        "schema": SCHEMA,
        "kind": EXPERIMENTS,
        "title": study["title"],
        "trials": [_shown(line, environments[line["environment"]]) for line in lines],
        "failed": {f"{name_of(line['trial'])} ({line['key']})": line["error"] for line in study["failed"]},
        "notes": [f"{note} ({count} of {len(lines)} trials)" for note, count in notes.most_common()],
        "environments": environments,
    }


def _shown(line: DoneLine, environment: Environment) -> ShownTrial:
    shown: ShownTrial = {
        "trial": line["trial"],
        "stage": line["stage"],
        "epochs": len(line["test_accuracies"]),
        "unit": line["unit"],
        "place": _place(environment),
        "test_accuracies": line["test_accuracies"],
        "measures": line["measures"],
    }
    if "metric" in line:
        shown["metric"] = line["metric"]
    if "builder" in line:
        shown["builder"] = line["builder"]
    return shown


def _place(environment: Environment) -> str:
    """What times depend on, as text."""
    said: dict[str, Any] = {name: environment[name] for name in ("processor", "device", "threads")}
    return json.dumps(said | {"torch": environment["packages"].get("torch")}, sort_keys=True)


def to_markdown(document: ExperimentsDocument) -> str:
    lines = [f"# {document['title']}", ""]
    cells = cells_of(document)
    for title, head, rows in (*tables(cells), *differences(cells)):
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    lines += [*(f"{note}\n" for note in (*_footnotes(cells), *_remarks(document))), "## Environment", ""]
    return "\n".join([*lines, *markdown_table(["", ""], _environment(document))]) + "\n"


def to_html(document: ExperimentsDocument) -> str:
    from compressor.benchmarks.experiments.curves import experiment_plots

    cells = cells_of(document)
    return page(
        title=document["title"], headlines={}, plots=experiment_plots(cells, paper_row),
        tables=[*tables(cells), *differences(cells)], footnotes=_footnotes(cells),
        notes=_remarks(document), environment=_environment(document),
    )  # fmt: skip


def _remarks(document: ExperimentsDocument) -> list[str]:
    """What did not come off, what the trials had to say, and where seeds say nothing."""
    remarks = [*(f"Failed: {name}: {error}" for name, error in document["failed"].items()), *document.get("notes", ())]
    for c in cells_of(document):
        values = c.values.get(c.judge[0]) or ()
        if len(values) > 1 and len(set(values)) == 1:
            remarks.append(f"{c.label} {c.target}".rstrip() + ": all seeds gave the same, so the interval says nothing.")
    return remarks


def _environment(document: ExperimentsDocument) -> list[Row]:
    """What the trials ran on; of several machines or commits, all of them."""
    places = document["environments"]

    def said(name: str) -> str:
        return "; ".join(dict.fromkeys(str(cast(Any, place)[name]) for place in places))

    packages = dict.fromkeys(f"{name} {version}" for place in places for name, version in place["packages"].items())
    rows = [[name, said(name)] for name in ("processor", "device", "threads", "python", "system", "commit")]
    return [*rows, ["packages", ", ".join(packages)]]
