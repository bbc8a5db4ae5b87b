"""`compress sensitivity`: curves as a table, as JSON and as a picture, and what later commands do with them; on real digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import run


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A folder with a trained lenet5 and its curves."""
    folder = tmp_path_factory.mktemp("sensitivity")
    train = ("train", "lenet5", "--data", "digits", "--epochs", "3", "--batch-size", "64", "-o", "dense.pt", "--quiet")
    assert run(*train, cwd=folder).returncode == 0
    done = run("sensitivity", "dense.pt", "-o", "curves.json", "-o", "curves.svg", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_what_each_layer_loses_is_shown_written_and_drawn(measured: Path) -> None:
    held, said = json.loads((measured / "curves.json").read_text()), (measured / "said.txt").read_text()
    assert (held["kind"], held["method"], held["refitted"], held["data"]) == ("sensitivity", "l-obs", True, "digits")
    assert [group["widths"][-1] for group in held["groups"].values()] == [6, 16, 120, 84]
    for name, group in held["groups"].items():
        assert group["losses"][-1] == 0
        assert group["losses"][0] > 0
        assert f" {name} " in said
    assert set(held["sensitive"]) <= held["groups"].keys()
    for name in held["sensitive"]:
        assert f"sensitive: {name} loses" in said
        assert f"--freeze '{name}'" in said
    picture = (measured / "curves.svg").read_text()
    assert picture.lstrip().startswith("<svg")
    assert all(f">{name}<" in picture for name in held["groups"])
    assert "mathdefault" not in picture
    assert said.splitlines()[-1] == (
        "next: compress prune dense.pt --target-macs 0.5 --data digits --sensitivity curves.json -o small.onnx"
    )


def test_a_later_command_allocates_by_the_file(measured: Path) -> None:
    """The same widths as measuring gives; without data, too, for there is nothing to measure."""
    given = ("--target-macs", "0.4", "--json", "-o", "small.pt")
    by_file, by_measuring, without = (
        json.loads(run(*command, *given, cwd=measured).stdout)
        for command in (
            ("prune", "dense.pt", "--sensitivity", "curves.json"),
            ("prune", "dense.pt"),
            ("l1-filters", "dense.pt", "--sensitivity", "curves.json", "--data", "synthetic"),
        )
    )
    assert by_file["asked"]["sensitivity"] == "curves.json"
    assert by_file["widths"] == by_measuring["widths"]
    assert by_file["nodes"] == without["nodes"]


def renamed(held: dict[str, Any]) -> None:
    held["groups"] = {f"other.{name}": group for name, group in held["groups"].items()}


def narrower(held: dict[str, Any]) -> None:
    group = next(iter(held["groups"].values()))
    group["widths"][-2:] = [5]
    group["losses"][-2:] = [0.0]


def negative(held: dict[str, Any]) -> None:
    next(iter(held["groups"].values()))["losses"][0] = -1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.clear(), "no file of `compress sensitivity`"),
        (lambda held: held.update(kind="plan"), "its kind is 'plan' of schema 1, not 'sensitivity' of 1"),
        (narrower, "its curves are of another network: NAME has 6 nodes here, 5 there"),
        (renamed, "its curves are of another network: NAME has 6 nodes here, none there"),
        (negative, "no file of `compress sensitivity`"),
    ],
)
def test_what_is_no_file_of_this_network_is_refused(measured: Path, tmp_path: Path, change, words: str) -> None:
    held = json.loads((measured / "curves.json").read_text())
    first = next(iter(held["groups"]))
    change(held)
    (tmp_path / "other.json").write_text(json.dumps(held))
    command = ("prune", str(measured / "dense.pt"), "--target-macs", "0.5", "--sensitivity", "other.json", "-o", "x.pt")
    done = run(*command, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"compress: other.json: {words.replace('NAME', first)}"
    assert not (tmp_path / "x.pt").exists()


def test_what_it_cannot_do_is_said(measured: Path) -> None:
    for command, words in (
        (("sensitivity", "dense.pt", "--method", "snip"), "snip removes single weights"),
        (("sensitivity", "dense.pt", "--data", "synthetic"), "no data to measure on: name some with --data"),
        (("sensitivity", "dense.pt", "-o", "curves.txt"), "curves.txt"),
        (
            ("prune", "dense.pt", "--target-macs", "0.5", "-o", "x.pt", "--sensitivity", "curves.json", "--allocate", "layer"),
            "--sensitivity is for --allocate sensitivity, not for --allocate layer; leave one of them out",
        ),
        (
            ("prune", "dense.pt", "--target-macs", "0.5", "-o", "x.pt", "--sensitivity", "curves.json", "--per", "macs"),
            "leave one of them out",
        ),
    ):
        done = run(*command, cwd=measured)
        assert done.returncode != 0
        assert words in done.stderr.splitlines()[-1]


def test_as_cut_more_is_lost(measured: Path) -> None:
    cut = json.loads(run("sensitivity", "dense.pt", "--as-cut", "--json", cwd=measured).stdout)
    held = json.loads((measured / "curves.json").read_text())
    assert not cut["refitted"]
    for name, group in cut["groups"].items():
        assert sum(group["losses"]) > sum(held["groups"][name]["losses"])
