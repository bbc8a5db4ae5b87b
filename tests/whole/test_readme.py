"""What the README says is run: its commands, its Python, and the names it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compressor import networks
from compressor.benchmarks.experiments.sweep import read_sweep
from compressor.method import table
from compressor.settings import Pruning, Timing
from compressor.settings import table as options_table
from tests import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_commands_run(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands, measure, _ = blocks("sh")
    assert commands.count("compress ") == 5
    assert measure.startswith("compress bench vgg16.pt small.onnx small.safetensors -o report.html")
    shorter = measure.strip() + " --rounds 2 --batch 2 --no-memory\n"
    done = subprocess.run(
        ["bash", "-euc", commands + shorter], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "node sparsity 0.93000 reached" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {
        "vgg16.pt", "small.onnx", "small.safetensors", "pruned.json", "plan.json", "again.safetensors", "report.html",
        "report.json",
    }  # fmt: skip
    assert (tmp_path / "small.onnx").stat().st_size < 2_000_000 < 200_000_000 < (tmp_path / "vgg16.pt").stat().st_size


def test_the_training_commands_run(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    _, _, commands = blocks("sh")
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: accuracy") == 3
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".onnx", ".run"}


def test_the_sweep_is_one(tmp_path: Path) -> None:
    [text] = blocks("toml")
    (tmp_path / "sweep.toml").write_text(text)
    assert len(read_sweep(tmp_path / "sweep.toml")) == 3 * (1 + 2 + 1)


def test_the_python_runs(tmp_path: Path) -> None:
    [code] = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_method_and_network_is_named() -> None:
    for name in networks.names():
        assert f"`{name}" in README, name
    assert table() in README, table()


def test_every_option_of_a_pruning_is_told() -> None:
    assert options_table(Pruning, Timing) in README, options_table(Pruning, Timing)


@pytest.mark.parametrize("target", ["demo", "test", "bench", "check", "test-slow"])
def test_the_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
