"""What the README says is run: its commands, its Python, and the names it promises."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from compressor import networks
from compressor.benchmarks.experiments.sweep import read_sweep
from compressor.method import table
from compressor.settings import Pruning, Searching, Timing
from compressor.settings import table as options_table
from tests import ROOT
from tests.command import run

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


SHORTER = " --rounds 2 --batch 2 --no-memory"
"""For the command that measures."""


def said(commands: str, folder: Path) -> str:
    """What the commands print, one after the other; each ends well."""
    texts = []
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "compress"
        done = run(*arguments, cwd=folder)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        texts.append(done.stdout)
    return "".join(texts)


WRITTEN = ("small.onnx", "small.safetensors", "pruned.json", "plan.json", "again.safetensors", "report.html", "report.json")


def test_the_commands_run(tmp_path: Path) -> None:
    """On a small network; on the README's own below."""
    commands, _, measure, _ = blocks("sh")
    assert commands.count("compress ") == 5
    assert measure.startswith("compress bench vgg16.pt small.onnx small.safetensors -o report.html")
    text = said((commands + measure.strip() + SHORTER).replace("vgg16", "lenet5"), tmp_path)
    assert f"node sparsity {210 / 226:.5f} reached" in text
    assert {p.name for p in tmp_path.iterdir()} == {"lenet5.pt", *WRITTEN}
    assert 20 * (tmp_path / "small.onnx").stat().st_size < (tmp_path / "lenet5.pt").stat().st_size


@pytest.mark.slow
def test_the_commands_run_in_a_shell_as_they_are(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands, _, measure, _ = blocks("sh")
    done = subprocess.run(
        ["bash", "-euc", commands + measure.strip() + SHORTER],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "node sparsity 0.93000 reached" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"vgg16.pt", *WRITTEN}
    assert (tmp_path / "small.onnx").stat().st_size < 2_000_000 < 200_000_000 < (tmp_path / "vgg16.pt").stat().st_size


def test_the_commands_on_a_trained_network_run(tmp_path: Path) -> None:
    _, commands, *_ = blocks("sh")
    text = said(commands, tmp_path)
    assert text.count("repair: least squares") == 3
    assert "% fine-tuned" in text
    assert "the weakest by l-obs first, the layers behind refitted" in text
    assert "searched for the fewest macs at a drop of at most 3 points of accuracy" in text
    made = {"third.onnx", "third.json", "tuned.onnx", "curves.json", "curves.svg", "smallest.onnx"}
    assert {p.name for p in tmp_path.iterdir()} >= {"dense.pt", *made}


def test_the_training_commands_run(tmp_path: Path) -> None:
    *_, commands = blocks("sh")
    assert said(commands, tmp_path).count("trained: accuracy") == 3
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".onnx", ".run"}


def test_the_sweep_is_one(tmp_path: Path) -> None:
    [text] = blocks("toml")
    (tmp_path / "sweep.toml").write_text(text)
    assert len(read_sweep(tmp_path / "sweep.toml")) == 3 * (1 + 2 + 1)


def test_the_python_runs(tmp_path: Path, monkeypatch) -> None:
    [code] = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert {p.name for p in tmp_path.iterdir()} == {"small.onnx", "small.safetensors"}


def test_every_method_and_network_is_named() -> None:
    for name in networks.names():
        assert f"`{name}" in README, name
    assert table() in README, table()


def test_every_option_of_a_pruning_is_told() -> None:
    assert options_table(Pruning, Searching, Timing) in README, options_table(Pruning, Searching, Timing)


@pytest.mark.parametrize("target", ["demo", "test", "bench", "check", "test-slow"])
def test_the_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
