"""The map of the design: imports go one way, and each foreign library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import compressor
from tests import ROOT

FOLDERS = ("compressor", "exporters", "benchmarks")
SOURCES = [*sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")), ROOT / "cli.py"]

FLOORS = (
    {"errors"},
    {"options"},
    {"settings"},
    {"system", "types"},
    {"model", "data"},
    {"objective", "surgery", "selection", "networks"},
    {"proof", "criteria", "training", "checkpoint", "method"},
    {"coupling", "methods", "sources"},
    {"repair"},
    {"pruning"},
    {"compressor"},
    {"exporters"},
    {"benchmarks.measure"},
    {"benchmarks.report"},
    {"benchmarks.experiments", "benchmarks.studies"},
    {"benchmarks.render"},
    {"benchmarks.documentation"},
    {"cli"},
    {"__main__"},
)
"""A room may import from the floors above its own in this list, and from itself. `compressor` is the package's front door."""

MOST_LOOSE = 5
"""Files of `compressor/` that lie in no room, its front door aside."""

HOMES = {
    "torch_pruning": {
        "compressor/coupling/torch_pruning_graph.py",
        "benchmarks/studies/peers.py",
        "benchmarks/studies/accuracy.py",
    },
    "fvcore": {"compressor/model/cost.py"},
    "thop": {"compressor/model/cost.py"},
    "click": {"cli.py", "compressor/system/flags.py"},
    "rich": {
        "compressor/system/progress.py",
        "benchmarks/report/terminal.py",
        "benchmarks/report/network.py",
        "benchmarks/report/sensitivity.py",
    },
    "onnx": {"exporters/onnx.py"},
    "onnxruntime": {"exporters/onnx.py", "benchmarks/studies/leftover.py", "benchmarks/studies/bare_export.py"},
    "jinja2": {"benchmarks/report/page.py"},
    "matplotlib": {"benchmarks/report/plots.py", "benchmarks/experiments/curves.py"},
    "datasets": {"compressor/data/_folder.py"},
    "sklearn": {"compressor/data/_digits.py"},
    "safetensors": {"compressor/checkpoint/checkpoint.py"},
    "scipy": {"compressor/coupling/labels.py", "compressor/objective/intervals.py"},
}
RUN_BY_HAND = ("accuracy", "leftover", "main_job", "methods", "peers", "second_opinion", "startup", "widths", "zoo")
"""Benchmarks that are commands of their own."""
EXPORTERS_MAY_USE = {"exporters", "errors", "options", "types", "system", "model", "proof", "checkpoint"}


PACKAGES = ("compressor", *(f"compressor.benchmarks{part}" for part in ("", ".report", ".experiments")))
"""Packages whose modules are imported by name."""


def imported(path: Path, hints: bool = False) -> set[str]:
    """Names of the modules that a file imports, anywhere in it; under TYPE_CHECKING only with `hints`."""
    tree = ast.parse(path.read_text())
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    ignored = set() if hints else {id(inner) for hint in guarded for inner in ast.walk(hint)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages = (
                "compressor",
                "compressor.benchmarks",
                "compressor.benchmarks.report",
                "compressor.benchmarks.experiments",
            )
            found |= {f"{node.module}.{a.name}" if node.module in packages else node.module for a in node.names}
    return found


def name_of(path: Path) -> str:
    """The module's name as it is imported."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("compressor") else f"compressor.{name}"


def room_of(module: str) -> str:
    """The folder that a module lies in, or its own name where it lies in none."""
    _, *inside = module.split(".")
    if not inside or inside[0] in PUBLIC:
        return "compressor"
    return ".".join(inside[: 2 if inside[0] == "benchmarks" else 1])


FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = frozenset([*compressor.__all__, "__version__"]) - FLOOR.keys()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    mine = room_of(name_of(path))
    if mine == "benchmarks":
        return  # an empty front door
    assert mine in FLOOR, f"{name_of(path)} has no place in the house"
    for other in imported(path):
        theirs = room_of(other)
        if other.startswith("compressor") and theirs != mine and mine != "compressor":
            assert FLOOR[theirs] < FLOOR[mine], f"{name_of(path)} imports {other} against the arrows"


def test_few_files_are_loose() -> None:
    loose = {p.name for p in (ROOT / "compressor").glob("*.py")} - {"__init__.py"}
    assert len(loose) <= MOST_LOOSE, loose


def test_no_two_files_import_each_other() -> None:
    """No circle anywhere, hints included where they cross rooms."""
    names = {name_of(path) for path in SOURCES}
    arrows = {name_of(p): {m for m in imported(p) if m in names and m != name_of(p)} for p in SOURCES}
    done: set[str] = set()
    while ready := {name for name, others in arrows.items() if name not in done and others <= done}:
        done |= ready
    assert names == done, sorted(names - done)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "exporters"], ids=name_of)
def test_exporters_never_learn_which_method_ran(path: Path) -> None:
    used = {room_of(m) for m in imported(path) if m.startswith("compressor")}
    assert used <= EXPORTERS_MAY_USE


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_one_home(library: str) -> None:
    users = {p.relative_to(ROOT).as_posix() for p in SOURCES if any(m.split(".")[0] == library for m in imported(p))}
    assert users <= HOMES[library]


def test_only_the_command_line_prints() -> None:
    printing = {
        name_of(p)
        for p in SOURCES
        for n in ast.walk(ast.parse(p.read_text()))
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
    }
    studies = {f"compressor.benchmarks.studies.{name}" for name in RUN_BY_HAND}
    assert printing <= {"compressor.cli", "compressor.benchmarks.measure.memory", *studies}


def test_a_methods_name_is_known_in_one_place() -> None:
    """Adding a method touches no other file: none but its own, the default of the Python API and examples name it."""
    for name in ("snapit", "snap", "random"):
        for path in SOURCES:
            if path.parent.name == "methods" or path.stem in ("compress", "cli", "__init__", "documentation", *RUN_BY_HAND):
                continue
            strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            assert name not in strings, f"{path} knows the method {name}"


def test_help_needs_no_torch() -> None:
    help_alone = "from compressor import cli; cli.cli.main(['--help'], standalone_mode=False)"
    code = f"import sys; {help_alone}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "snapit" in done.stdout


def test_public_names_are_those_that_are_promised() -> None:
    import compressor

    assert {"compress", "score", "load", "save", "export", "check_equivalence", "Plan", "structure", "networks"} <= set(
        compressor.__all__
    )
    assert set(compressor.__all__) <= set(dir(compressor))
    for name in compressor.__all__:
        assert getattr(compressor, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        compressor.compres  # noqa: B018
