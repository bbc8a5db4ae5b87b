"""Runs, sweeps and reports of before: trainings go on, trials are not repeated, pages are what they were."""

from __future__ import annotations

import gzip
import math
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from compressor import load
from compressor.training.history import read_history
from tests.command import run

KEPT = Path(__file__).parent.parent / "kept"
RUNS = {
    "run": ("lenet5", "--method", "snapit", "--sparsity", "0.9"),
    "run_budget": (
        "lenet5", "--method", "snap", "--target-macs", "0.6", "--round-to", "8", "--stage", "after", "--prune-at", "1",
        "--freeze", "features.0",
    ),
    "run_weights": ("lenet300100", "--image-size", "8", "--method", "snip", "--sparsity", "0.9"),
}  # fmt: skip


def kept(name: str, folder: Path) -> Path:
    """A run of before, in a folder of the test's own."""
    shutil.copytree(KEPT / name, folder / name)
    packed = folder / name / "state.pt.gz"
    (folder / name / "state.pt").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return folder / name


def resumed(folder: Path, name: str, epochs: int, *more: str) -> CompletedProcess[str]:
    """`compress train --resume` with what the run was made with."""
    asked = (*RUNS[name], "--data", "digits", "--samples", "320", "--threads", "1", "--run", name, "--resume")
    return run("train", *asked, "--epochs", epochs, "-o", "again.pt", *more, cwd=folder)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_before_goes_on(name: str, tmp_path: Path) -> None:
    before = read_history(kept(name, tmp_path) / "history.csv")
    done = resumed(tmp_path, name, len(before) + 1)
    assert done.returncode == 0, done.stderr
    rows = read_history(tmp_path / name / "history.csv")
    assert rows[: len(before)] == before
    assert len(rows) == len(before) + 1
    assert math.isfinite(rows[-1].train_loss)
    assert load(tmp_path / "again.pt").origin.plan.events


def test_a_run_of_before_refuses_another_pruning(tmp_path: Path) -> None:
    kept("run_budget", tmp_path)
    done = resumed(tmp_path, "run_budget", 3, "--floor", "2")
    assert done.returncode == 1
    assert "was made with floor 1, now it is 2" in done.stderr


def test_trials_of_before_are_not_done_again(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "sweep", tmp_path / "sweep")
    shutil.copy(KEPT / "sweep.toml", tmp_path)
    done = run("sweep", "sweep.toml", "-o", "sweep", cwd=tmp_path)
    assert done.stdout == "sweep: 0 trials done, 3 were done before, 0 failed\n", done.stderr
    page = run("report", "sweep", "-o", "page.md", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "page.md").read_text() == (KEPT / "sweep.md").read_text()


def test_a_report_of_before_is_shown_as_it_was(tmp_path: Path) -> None:
    done = run("report", KEPT / "bench.json", "-o", "page.md", "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.md").read_text() == (KEPT / "bench.md").read_text()
