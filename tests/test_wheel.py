"""The package as people install it: built, installed beside a folder of the user's own that has our folders' names, and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
VERSION = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)[0]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

DATA = """
import benchmarks, cli, exporters, tests

assert [m.WHOSE for m in (benchmarks, cli, exporters, tests)] == ["theirs"] * 4

def make():
    import torch
    torch.manual_seed(0)
    return [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,))) for _ in range(4)]
"""


def run(*command: object, cwd: Path) -> str:
    """What a command prints, which is to end well, without the checkout on its path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", ROOT, "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, cwd=folder)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that holds the wheel, and sees the libraries that are installed here."""
    fresh = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=fresh)
    python = fresh / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=fresh)
    [own] = fresh.glob("lib/*/site-packages")
    libraries = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    (own / "libraries.pth").write_text("\n".join(libraries) + "\n")  # last on the path, and what is editable there is not seen
    return python.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with packages and modules that are named as ours."""
    for name in ("benchmarks", "exporters", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "cli.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "data.py").write_text(DATA)
    return tmp_path


def test_the_wheel_holds_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"compressor", f"compressor-{VERSION}.dist-info"}
    folders = {name.rpartition("/")[0] for name in names}
    for part in ("compressor", "exporters", "benchmarks"):
        for file in (ROOT / part).rglob("*"):
            place = file.relative_to(ROOT).as_posix()
            inside = place if part == "compressor" else f"compressor/{place}"
            if file.suffix in (".py", ".j2", ".typed") and not place.startswith("benchmarks/studies/"):
                assert inside in names
    assert {"compressor/cli.py", "compressor/benchmarks/report/paper.json"} <= set(names)
    assert not folders & {"compressor/benchmarks/results", "compressor/benchmarks/sweeps", "compressor/benchmarks/studies"}


@pytest.mark.parametrize("ours_first", [True, False])
def test_theirs_and_ours_are_imported_in_either_order(bin: Path, folder: Path, ours_first: bool) -> None:
    theirs = "import benchmarks, exporters, cli, data, tests"
    ours = "import compressor.cli, compressor.benchmarks.report, importlib.util as u; e = u.find_spec('compressor.exporters')"
    code = "; ".join(
        [
            *([ours, theirs] if ours_first else [theirs, ours]),
            "print([m.__file__ for m in (benchmarks, exporters, cli, data, tests)])",
            "print([compressor.__file__, compressor.benchmarks.report.__file__, compressor.cli.__file__, e.origin])",
        ]
    )
    theirs, ours = run(bin / "python", "-c", code, cwd=folder).splitlines()
    assert theirs.count(str(folder)) == 5
    assert ours.count(f"{bin.parent}/lib") == 4


def test_it_starts_by_either_name(bin: Path, folder: Path) -> None:
    assert VERSION in run(bin / "python", "-m", "compressor", "--version", cwd=folder)
    assert VERSION in run(bin / "compress", "--version", cwd=folder)


def test_a_module_of_the_working_folder_takes_no_librarys_place(bin: Path, folder: Path) -> None:
    (folder / "click.py").write_text("raise SystemExit('this is not click')")
    assert VERSION in run(bin / "python", "-m", "compressor", "--version", cwd=folder)


def test_the_main_command_runs(bin: Path, folder: Path) -> None:
    run(bin / "python", "-m", "compressor", "new", "lenet5", "-o", "lenet5.pt", cwd=folder)
    how = ("--sparsity", "0.5", "--data", "data.py:make", "-o", "small.onnx")
    out = run(bin / "compress", "l1-filters", "lenet5.pt", *how, cwd=folder)
    assert "node sparsity 0.50000 reached" in out
    assert "equivalent  small = small.onnx" in out
    assert (folder / "small.onnx").stat().st_size > 10_000


SWEEP = """
data = "data.py:make"
networks = ["lenet5"]
methods = ["l1-filters"]
sparsities = [0.5]
rounds = 2

[recipe]
epochs = 1
batch_size = 8
"""


@pytest.mark.slow
def test_the_processes_that_it_starts_run(bin: Path, folder: Path) -> None:
    """A sweep's trial is a process of its own, and measures memory in further ones."""
    (folder / "sweep.toml").write_text(SWEEP)
    out = run(bin / "python", "-m", "compressor", "sweep", "sweep.toml", "-o", "results", cwd=folder)
    assert "1 trials done" in out
    [path] = (folder / "results" / "trials").iterdir()
    memory = json.loads(path.read_text())["bench"]["memory"]
    assert {row["engine"] for row in memory if row["peak"] > 0 and row["failed"] is None} == {"torch", "onnxruntime"}
