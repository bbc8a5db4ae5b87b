"""The map of the design: imports go one way, and each foreign library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compressor", "exporters", "benchmarks")
SOURCES = [*sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")), ROOT / "cli.py"]

LEVELS = (
    {"compressor.errors", "compressor.system.quiet"},
    {"compressor.options", "compressor.selection.schedule"},
    {"compressor.training.recipe"},
    {"compressor.types.structure", "compressor.proof.equivalence", "compressor.system.files", "compressor.system.environment"},
    {"compressor.model.weights", "compressor.system.user_code", "compressor.model.inputs", "compressor.checkpoint.check_module"},
    {"compressor.model.observe"},
    {"compressor.objective.objective", "compressor.model.precision", "compressor.checkpoint.unpickle",
     "compressor.model.speed", "compressor.surgery.shrink", "compressor.proof.reference", "compressor.networks",
     "compressor.data", "compressor.training"},
    {"compressor.coupling", "compressor.criteria", "compressor.selection.select", "compressor.selection.budget", "compressor.method",
     "compressor.model.cost", "compressor.checkpoint.checkpoint", "compressor.objective.calibrate", "compressor.proof.prove",
     "compressor.coupling.validate", "compressor.sources.scoring", "compressor.sources.training", "compressor.pruning.events",
     "compressor.surgery.paths", "compressor.surgery.dead_nodes", "compressor.pruning.controls", "compressor.pruning.result"},
    {"compressor.methods"},
    {"compressor.pruning.compress"},
    {"compressor.pruning.in_training"},
    {"compressor.pruning.train"},
    {"compressor"},
    {"exporters"},
    {"benchmarks"},
    {"cli"},
)  # fmt: skip
"""A module may import from its own level and those above it in this list."""

HOMES = {
    "torch_pruning": {"compressor/coupling/torch_pruning_graph.py", "benchmarks/peers.py"},
    "fvcore": {"compressor/cost.py"},
    "thop": {"compressor/cost.py"},
    "click": {"cli.py"},
    "rich": {"cli.py", "benchmarks/report/terminal.py", "benchmarks/report/network.py"},
    "onnx": {"exporters/onnx.py"},
    "onnxruntime": {"exporters/onnx.py", "benchmarks/leftover.py"},
    "jinja2": {"benchmarks/report/page.py"},
    "matplotlib": {"benchmarks/report/plots.py"},
    "datasets": {"compressor/data/_folder.py"},
    "sklearn": {"compressor/data/_digits.py"},
    "safetensors": {"compressor/checkpoint.py"},
    "scipy": {"compressor/coupling/labels.py", "benchmarks/report/cells.py"},
}
RUN_BY_HAND = ("leftover", "main_job", "methods", "peers", "second_opinion", "widths", "zoo")
"""Benchmarks that are commands of their own."""
EXPORTERS_MAY_USE = {
    f"compressor.{name}" for name in ("equivalence", "types", "errors", "files", "checkpoint", "inputs", "state", "quiet")
}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, anywhere in it but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    hints = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    ignored = {id(inner) for hint in hints for inner in ast.walk(hint)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if node.module in ("compressor", "exporters") else node.module for a in node.names
            }
    return found


def level(module: str) -> int | None:
    """Place of a module in LEVELS: that of its longest listed prefix."""
    best, found = -1, None
    for number, names in enumerate(LEVELS):
        for name in names:
            if (module == name or module.startswith(f"{name}.")) and len(name) > best:
                best, found = len(name), number
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    mine = level(name_of(path))
    assert mine is not None, f"{name_of(path)} has no place in the map"
    for other in imported(path):
        theirs = level(other)
        if (theirs is not None and path.name != "__init__.py") or (theirs is not None and mine != level("compressor")):
            assert theirs <= mine, f"{name_of(path)} imports {other} against the arrows"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "exporters"], ids=name_of)
def test_exporters_never_learn_which_method_ran(path: Path) -> None:
    used = {m for m in imported(path) if m.startswith("compressor")}
    assert all(any(m == a or m.startswith(f"{a}.") for a in EXPORTERS_MAY_USE) for m in used), used


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
    assert printing <= {"cli", "compressor.benchmarks.measure.memory", *(f"benchmarks.{name}" for name in RUN_BY_HAND)}


def test_a_methods_name_is_known_in_one_place() -> None:
    """Adding a method touches no other file: none but its own, the default of the Python API and examples name it."""
    for name in ("snapit", "snap", "random"):
        for path in SOURCES:
            if path.parent.name == "methods" or path.stem in ("pipeline", "cli", "__init__", *RUN_BY_HAND):
                continue
            strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            assert name not in strings, f"{path} knows the method {name}"


def test_help_needs_no_torch() -> None:
    code = "import sys, cli; cli.cli.main(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
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
