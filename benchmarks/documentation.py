"""The tables of the documentation and the pages of the studies, from the records: `make tables` runs this.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what `TABLES[NAME]` makes; a test holds that it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from compressor import method
from compressor.benchmarks.experiments.cells import Cell, cells_of
from compressor.benchmarks.experiments.documents import Study
from compressor.benchmarks.experiments.records import STUDY_FILE, read_study
from compressor.benchmarks.experiments.tables import document_of, paper_row_asked
from compressor.benchmarks.render import render
from compressor.benchmarks.studies import accuracy, leftover, main_job, methods, peers, widths
from compressor.benchmarks.studies.results import RESULTS
from compressor.errors import BadInput
from compressor.objective.intervals import normal_interval

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md",)
PAGES = RESULTS.parent / "pages"


MARKED = re.compile(r"^<!-- table: (.+?) -->$\n(.*?)^<!-- end -->$", flags=re.M | re.S)


def fill(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A document with each of these tables between its markers.

    Raises:
        BadInput: markers without an end, or of a table that there is not.
    """
    begun, ended = text.count("<!-- table: "), text.count("<!-- end -->")
    marked = [match[1] for match in MARKED.finditer(text)]
    if not len(marked) == begun == ended:
        raise BadInput(f"{begun} tables begin and {ended} end, each on lines of its own, {len(marked)} do both")
    if unknown := [name for name in marked if name not in tables]:
        raise BadInput(f"no table {unknown[0]}; there are {', '.join(tables)}")
    return MARKED.sub(lambda match: f"<!-- table: {match[1]} -->\n\n{tables[match[1]]()}\n\n<!-- end -->", text)


def _raw(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column stands to the left."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (head, rule, *rows))


@dataclass(frozen=True)
class Kinds:
    """What a study's trials came to, by what they are called and what was asked: `kinds["SNIP", "0.9"]`."""

    study: Study
    cells: Mapping[tuple[str, str], Cell]

    @classmethod
    def of(cls, name: str) -> Kinds:
        """The kinds of a study in `benchmarks/results/`."""
        study = read_study(RESULTS / name)
        return cls(study, {(cell.label, cell.target): cell for cell in cells_of(document_of(study))})

    def __getitem__(self, kind: tuple[str, str]) -> Cell:
        return self.cells[kind]

    @property
    def steps(self) -> int:
        """Of each of its trainings."""
        [steps] = {line.get("steps", 0) for line in self.study["trials"]}
        return steps


def _with_interval(values: list[float]) -> str:
    """Mean, and the papers' 1.96 sigma / sqrt(n)."""
    return f"{mean(values):.2f} ± {normal_interval(values) or 0.0:.2f}"


def _accuracy(cell: Cell) -> str:
    return _with_interval([100 * value for value in cell.values["accuracy"]])


def _error(cell: Cell) -> str:
    return _with_interval([100 * (1 - value) for value in cell.values["accuracy"]])


SINGLE_WEIGHTS = {
    "MNIST, MLP5": "mnist_mlp5_full", "CIFAR-10, MLP5": "cifar_mlp5_full", "CIFAR-10, LeNet5": "cifar_lenet5_full",
}  # fmt: skip
SINGLE_WEIGHT_METHODS = ("dense", "SNIP", "SNIP-it, before", "SNIP-it, during", "GraSP", "random", "IMP", "HoyerSquare")


def single_weights() -> str:
    """Accuracies by each method at the papers' sparsities, with the papers'."""
    columns = [Kinds.of(name).cells.values() for name in SINGLE_WEIGHTS.values()]
    rows = []
    for label in SINGLE_WEIGHT_METHODS:
        found = [next(c for c in column if c.label == label and paper_row_asked(c)) for column in columns]
        rows.append([label, *map(_beside_paper, found)])
    return _markdown(["method", *SINGLE_WEIGHTS], rows)


def _beside_paper(cell: Cell) -> str:
    row = paper_row_asked(cell)
    assert row is not None
    interval = "" if row["ci95"] is None else f" ± {row['ci95']}"
    at = f" at {float(cell.target):.2f}" if cell.target else ""
    return f"{_accuracy(cell)} / {row['accuracy']}{interval}{at}"


@dataclass(frozen=True)
class Lenet:
    """A row of SNIP's LeNets: what it is, and how its training is linked; the paper's errors stand beside its own recipe."""

    name: str
    recipe: str
    study: str
    more: str = ""
    papers: bool = False


LENETS = (
    Lenet("LeNet-300-100, as in the paper", "momentum, three falls", "mnist_snip_full", papers=True),
    Lenet("LeNet-300-100", "momentum, two falls", "mnist_snip"),
    Lenet("LeNet-5-Caffe, as in the paper", "momentum, a fall", "mnist_snip_caffe_paper", ", but clipped at 1", papers=True),
    Lenet("LeNet-5-Caffe, as in its code", "no momentum, no fall", "mnist_snip_caffe_full"),
    Lenet("LeNet-5-Caffe", "momentum, two falls, clipped at 1", "mnist_snip_caffe"),
)
LENET_SPARSITIES = ("0.9", "0.95", "0.98", "0.99")


def lenets() -> str:
    """Test errors of SNIP's LeNets by several recipes."""
    rows = []
    for lenet in LENETS:
        kinds = Kinds.of(lenet.study)
        asked = [("dense", ""), *(("SNIP", sparsity) for sparsity in LENET_SPARSITIES)]
        errors = [_error_beside_paper(kinds[kind], lenet.papers) if kind in kinds.cells else "" for kind in asked]
        link = f"[{lenet.recipe}](benchmarks/results/{lenet.study}/{STUDY_FILE})"
        rows.append([f"{lenet.name}: {link}{lenet.more}", f"{kinds.steps:,}", *errors])
    return _markdown(["network, SGD from a rate of 0.1", "steps", "dense", "SNIP, 90 %", "95 %", "98 %", "99 %"], rows)


def _error_beside_paper(cell: Cell, papers: bool) -> str:
    row = paper_row_asked(cell) if papers else None
    return _error(cell) + (f" / {100 - row['accuracy']:.1f}" if row else "")


GAINS_HEAD = [
    "method", "node sparsity", "accuracy, %", "MACs", "inference, PyTorch / ONNX Runtime", "train step",
    "memory of a train step",
]  # fmt: skip


def alexnet() -> str:
    """What nodes of AlexNet cost and gain."""
    kinds = Kinds.of("cifar_alexnet")
    dense = kinds["dense", ""]
    rows = [["dense", "", _accuracy(dense), *["1x"] * 5]]
    for name, kind in (
        ("SNAP-it, before training", ("SNAP-it", "0.9")),
        ("uniform random, before", ("uniform random", "0.88")),
        ("EfficientConvNets, after one epoch", ("EfficientConvNets", "0.75")),
    ):
        cell = kinds[kind]
        macs = f"{_known(cell, 'macs_x'):.1f}".removesuffix(".0") + "x"
        time = f"{_known(dense, 'train_seconds') / _known(cell, 'train_seconds'):.1f}x"
        rows.append([name, _asked(cell), _accuracy(cell), macs, *_gains(cell), time])
    return _markdown([*GAINS_HEAD, "training time"], rows)


def vgg16() -> str:
    """What nodes of VGG16 cost and gain; times and memory are of seed 0, measured without training."""
    before, after, gains = (Kinds.of(f"cifar_vgg16_{name}") for name in ("macs", "trained", "gains"))
    rows = [["dense", "", _accuracy(after["dense", ""]), *["1x"] * 4]]
    for name, kinds, kind in (
        ("SNAP-it, before training", before, ("SNAP-it", "0.93")),
        ("uniform random, before", before, ("uniform random", "0.75")),
        ("EfficientConvNets, after one epoch", after, ("EfficientConvNets", "0.75")),
    ):
        cell = kinds[kind]
        rows.append([name, _asked(cell), _accuracy(cell), _range(cell.values["macs_x"]), *_gains(gains[kind])])
    return _markdown(GAINS_HEAD, rows)


def _asked(cell: Cell) -> str:
    return f"{float(cell.target):.2f}"


def _gains(cell: Cell) -> list[str]:
    torch, onnxruntime, step, memory = (
        f"{_known(cell, f'{name}_x'):.1f}x"
        for name in ("inference_torch", "inference_onnxruntime", "train_step_torch", "train_memory")
    )
    return [f"{torch} / {onnxruntime}", step, memory]


def _range(values: Sequence[float]) -> str:
    """From the smallest to the largest, where those are not one number."""
    low, high = min(values), max(values)
    return f"{low:.0f} to {high:.0f}x" if f"{low:.1f}" != f"{high:.1f}" else f"{low:.1f}x"


def _known(cell: Cell, name: str) -> float:
    """A mean that every trial has a value for."""
    value = cell.mean(name)
    assert value is not None, f"{cell.label} {cell.target}: a trial says nothing of {name}"
    return value


TABLES: Mapping[str, Callable[[], str]] = {
    "methods": method.table,
    "accuracy": lambda: accuracy.table(_raw("accuracy")),
    "accuracy, paired": lambda: accuracy.paired(_raw("accuracy")),
    "main-job": lambda: main_job.table(_raw("main_job")),
    "widths": lambda: widths.table(_raw("widths")["rows"]),
    "leftover": lambda: leftover.table(_raw("leftover")["onnxruntime"]),
    "costs": lambda: methods.cost_table(_raw("methods")["rows"]),
    "gradient-norms": lambda: methods.flow_table(_raw("methods")["rows"]),
    "peers": lambda: peers.table(_raw("peers")),
    "single-weights": single_weights,
    "lenets": lenets,
    "alexnet": alexnet,
    "vgg16": vgg16,
}


def write_pages(results: Path, folder: Path) -> None:
    """Each study as Markdown and as a page with curves."""
    folder.mkdir(exist_ok=True)
    for file in sorted(results.glob(f"*/{STUDY_FILE}")):
        study = read_study(file.parent)
        for suffix in (".md", ".html"):
            (folder / f"{file.parent.name}{suffix}").write_text(render(study, suffix), encoding="utf-8")


def main() -> None:
    """Write everything anew."""
    write_pages(RESULTS, PAGES)
    for document in DOCUMENTS:
        document.write_text(fill(document.read_text(encoding="utf-8"), TABLES), encoding="utf-8")


if __name__ == "__main__":
    main()
