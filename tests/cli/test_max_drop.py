"""`--max-drop`: the smallest network that does well enough, on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import run

SEARCH = ("prune", "dense.pt", "--max-drop", "3", "--samples", "512", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a trained lenet5, and digits to judge by that are of another file."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("max_drop")
    train = ("train", "lenet5", "--data", "digits", "--epochs", "4", "--batch-size", "64", "-o", "dense.pt", "--quiet")
    assert run(*train, cwd=folder).returncode == 0
    digits = load_digits()
    pixels = np.round(digits.images / 16 * 255).astype(np.uint8)
    np.savez(folder / "val.npz", x_train=pixels[:9], y_train=digits.target[:9], x_test=pixels, y_test=digits.target)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict:
    done = run(*SEARCH, "-o", "small.onnx", "--val-data", "val.npz", "--plots", "plots", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_smallest_that_does_well_enough(folder: Path, whole: dict) -> None:
    search, steps = whole["search"], whole["search"]["steps"]
    assert (search["unit"], search["metric"], search["max_drop"], search["samples"]) == ("macs", "accuracy", 3.0, 1797)
    kept = [step for step in steps if step["kept"]]
    assert kept
    assert all(step["drop"] + step["margin"] <= 3.0 for step in kept)
    best = min(kept, key=lambda step: step["keep"])
    assert all(not step["kept"] for step in steps if step["keep"] < best["keep"])
    assert whole["macs"]["small"] / whole["macs"]["dense"] == pytest.approx(best["left"], abs=0.01)
    assert best["left"] < 0.5
    assert not any("kept aside" in note for note in whole["notes"])
    assert all(proof["equivalent"] for proof in whole["equivalence"])
    assert ">accuracy<" in (folder / "plots" / "search.svg").read_text()
    assert sorted(path.name for path in (folder / "small.search").iterdir()) == ["curves.json", "search.json"]


def test_it_goes_on_where_it_stopped(folder: Path, whole: dict) -> None:
    """To the same end; what was tried is not tried again."""
    how = ("--val-data", "val.npz", "-o", "again.onnx")
    first = json.loads(run(*SEARCH, *how, "--max-minutes", "0", cwd=folder).stdout)["search"]
    assert (len(first["steps"]), first["stopped"]) == (1, True)
    refused = run(*SEARCH, *how, cwd=folder)
    assert "holds a search; --resume goes on with it" in refused.stderr
    other = run(*SEARCH, *how, "--resume", "--seed", "1", cwd=folder)
    assert "holds a search that differs in seed" in other.stderr
    fewer = run(*SEARCH, *how, "--resume", "--samples", "256", cwd=folder)
    assert "holds a search that differs in count" in fewer.stderr
    dense = (folder / "dense.pt").read_bytes()
    try:  # another network by the same name
        train = ("train", "lenet5", "--data", "digits", "--epochs", "1", "--seed", "3", "-o", "dense.pt", "--run", "other")
        assert run(*train, cwd=folder).returncode == 0
        assert "holds a search that differs in network" in run(*SEARCH, *how, "--resume", cwd=folder).stderr
    finally:
        (folder / "dense.pt").write_bytes(dense)
    done = run(*SEARCH, *how, "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    rest = json.loads(done.stdout)
    assert rest["search"]["steps"][0] == first["steps"][0], "with the seconds it took"
    path = [(step["keep"], step["value"]) for step in rest["search"]["steps"]]
    assert path == [(step["keep"], step["value"]) for step in whole["search"]["steps"]]
    assert rest["widths"] == whole["widths"]


def test_a_part_of_the_training_data_is_kept_aside(folder: Path) -> None:
    """With a training of each network, whose state is kept in a folder of its own; and what is shown says what judged."""
    command = ("prune", "dense.pt", "--max-drop", "4", "--max-minutes", "0", "--finetune", "1", "-o", "tuned.pt")
    done = run(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "searched for the fewest macs at a drop of at most 4 points of accuracy, by 287 samples; dense " in done.stdout
    assert "Judged by 287 training samples that were kept aside" in done.stdout
    assert "the search was stopped for time: --resume goes on with it" in done.stdout
    assert (folder / "tuned.search" / "0.7" / "state.pt").is_file()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--target-macs", "0.5"), "--max-drop 3.0 searches for the target itself: give one of both"),
        (("--val-data", "digits"), "--val-data digits is what the report tests on, and would decide"),
        (("--val-data", "nothing.npz"), "no such file"),
        (("--method", "snip"), "is for methods that remove whole nodes"),
    ],
)
def test_what_it_cannot_do_is_said(folder: Path, more: tuple[str, ...], words: str) -> None:
    done = run("prune", "dense.pt", "--max-drop", "3", "-o", "other.onnx", "--data", "digits", *more, cwd=folder)
    assert done.returncode != 0
    assert words in done.stderr.splitlines()[-1]
    assert not any(folder.glob("other.onnx*"))
    assert not (folder / "other.search").exists()


def test_by_another_metric_and_another_resource(folder: Path) -> None:
    """A share is judged sample by sample; a metric of one's own batch by batch, of which there are enough."""
    (folder / "mine.py").write_text("def sure(outputs, batch):\n    return float(outputs.softmax(1).amax(1).mean())\n")
    found = []
    for metric in ("top5", "mine.py:sure"):
        how = ("--max-drop", "3", "--max-minutes", "0", "--minimise", "bytes", "--metric", metric, "--json")
        done = run("prune", "dense.pt", *how, "-o", "m.pt", "--run", metric.partition(".")[0], cwd=folder)
        assert done.returncode == 0, done.stderr
        search = json.loads(done.stdout)["search"]
        found.append((search["unit"], search["metric"], search["samples"]))
        assert search["steps"][0]["left"] == pytest.approx(0.7, abs=0.03)
    assert found == [("bytes", "top5", 287), ("bytes", "sure", 36)]


def test_its_options_are_for_it_alone(folder: Path) -> None:
    done = run("prune", "dense.pt", "--target-macs", "0.5", "--minimise", "bytes", "-o", "x.onnx", cwd=folder)
    assert done.stderr.splitlines()[-1] == ("compress: --minimise is for a search: give --max-drop 1.0, too, or leave it out")
    none = run("prune", "dense.pt", "--max-drop", "0", "--max-minutes", "0", "-o", "x.onnx", cwd=folder)
    assert "no network that was tried loses at most 0 points of accuracy: the nearest lost" in none.stderr.splitlines()[-1]
