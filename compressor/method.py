"""What a pruning method is: a score, and how many events lead to the target. One file per method in `methods/`.

The file's name is the command, its fields are the options, the first line of its docstring is the help.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.errors import WrongUsage, first_line, nearest
from compressor.options import checked, names_of, option, options_of
from compressor.settings import AUTO, TAKEN, Pruning, Stage, State, Timing

__all__ = ["Method", "Stage", "make", "method_named", "option", "options_of", "summaries", "table"]

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.objective.objective import Objective
    from compressor.types.scores import Scores
    from compressor.types.structure import Structure

FOLDER_VARIABLE = "COMPRESSOR_METHODS"
ENTRY_POINTS = "compressor.methods"
RESERVED = frozenset(["new", "show", "apply", "verify", "bench", "train", "sweep", "report", "prune", "sensitivity", AUTO])


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of every method: it scores; it chooses no threshold, slices no tensor, trains nothing and prints nothing.

    Class attributes:
        stage: when it prunes: before, during or after training.
        suits: the networks that its scores mean something on; None: all.
        best_for: the networks that it is chosen for where no method is named, by the project's own study; one method for each,
            and one that needs no data.
        across_layers: whether scores of different layers can be compared, and divided by what a node costs.
        uses_data: whether `score` reads the objective's batches.
        paper: where it is from.
    """

    stage: ClassVar[Stage] = "before"
    suits: ClassVar[State | None] = None
    best_for: ClassVar[State | None] = None
    across_layers: ClassVar[bool] = True
    uses_data: ClassVar[bool] = True
    paper: ClassVar[str] = ""

    @property
    def unit(self) -> Literal["node", "weight"]:
        """What is scored; a class variable or a field where it is not nodes, or where the user may choose."""
        return "node"

    @property
    def rewind(self) -> int | None:
        """The epoch whose weights come back after each event, a field where one may choose; None: the trained ones stay."""
        return None

    @abstractmethod
    def score(self, model: nn.Module, structure: Structure, objective: Objective) -> Scores:
        """One number per prunable node, higher = keep; `model` is left exactly as found."""

    def cannot_score(self, model: nn.Module, structure: Structure) -> Mapping[str, str]:
        """Group -> why this method cannot score it, so that it stays whole."""
        return {}

    def penalty(self, model: nn.Module, structure: Structure) -> Tensor | None:
        """What is added to the training loss until the last event, a scalar; None: nothing is."""
        return None

    def targets(self, sparsity: float) -> tuple[float, ...]:
        """The node sparsity after each event; the last is `sparsity`. One event unless a method says otherwise."""
        return (sparsity,)


def summaries() -> dict[str, str]:
    """Method name -> first line of its file's docstring, found without importing the file (or torch)."""
    found = {}
    for name, path in _files():
        try:
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        except (SyntaxError, ValueError) as error:
            doc = f"cannot be read: {first_line(error)}"
        found[name] = doc.partition("\n")[0]
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, f"from {point.value}")
    return dict(sorted(found.items()))


def method_named(name: str) -> type[Method]:
    """The method class behind a command.

    Raises:
        WrongUsage: there is none, or its file holds none.
    """
    for found, path in _files():
        if found == name:
            try:
                module = _load(path)
            except Exception as error:  # a user's own file may raise anything
                raise WrongUsage(f"{path}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
            break
    else:
        points = [p for p in importlib.metadata.entry_points(group=ENTRY_POINTS) if p.name == name]
        if not points:
            raise WrongUsage(f"no method {name!r}: {nearest(name, summaries(), 'choose ' + ', '.join(summaries()))}")
        module = importlib.import_module(points[0].module)
    classes = [
        c for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]  # fmt: skip
    if len(classes) != 1:
        raise WrongUsage(f"method {name!r}: its file must hold exactly one Method, it holds {len(classes)}")
    if clash := [o.name for o in options_of(classes[0]) if o.name in TAKEN]:
        raise WrongUsage(f"method {name!r}: its field {clash[0]!r} has the name of an option of every method; rename it")
    return classes[0]


def best_for(state: State, data: bool) -> str:
    """Name of the method that is chosen for networks of a state, with data or without."""
    found = [name for name in summaries() if method_named(name).best_for == state]
    return min(found, key=lambda name: method_named(name).uses_data != data)


def table() -> str:
    """All methods as a Markdown table, from their files."""
    lines = ["| Command | What | Removes | When | Data | Paper |", "| --- | --- | --- | --- | --- | --- |"]
    for name, summary in summaries().items():
        method = method_named(name)
        chosen = method()
        units = next((o.choices for o in options_of(method) if o.name == "unit"), (chosen.unit,))
        removes = ", ".join(f"{unit}s" for unit in sorted(units, key=lambda unit: unit != chosen.unit))
        data = "yes" if method.uses_data else "no"
        said = summary.replace("|", "\\|")
        lines.append(f"| `compress {name}` | {said} | {removes} | {method.stage} training | {data} | {method.paper} |")
    return "\n".join(lines)


def make(name: str, options: Mapping[str, Any]) -> Method:
    """A method with its options set.

    Raises:
        WrongUsage: an unknown method, an unknown option, or a value that is not among the choices.
    """
    method = method_named(name)
    return method(**checked(method, name, options, names_of(Pruning, Timing)))


def _files() -> Iterator[tuple[str, Path]]:
    folders = [Path(__file__).parent / "methods"]
    if own := os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(own))
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            name = path.stem.replace("_", "-")
            if path.stem.startswith("_"):
                continue
            if name in RESERVED:
                raise WrongUsage(f"{path}: {name!r} is a command of compress; rename the method's file")
            yield name, path


def _load(path: Path) -> Any:
    if path.parent == Path(__file__).parent / "methods":
        return importlib.import_module(f"compressor.methods.{path.stem}")
    spec = importlib.util.spec_from_file_location(f"compressor_methods_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
