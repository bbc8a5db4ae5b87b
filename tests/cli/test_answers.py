"""What every command says by its exit code, and what a mistake in typing is answered with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from compressor import networks, save
from tests import ROOT
from tests.command import process, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("answers")
    save(networks.build("lenet300100"), made / "net.pt")
    save(networks.build("lenet300100", seed=1), made / "other.pt")
    (made / "broken.pt").write_bytes(b"x" * 100)
    (made / "factory.py").write_text("def net():\n    raise SystemExit(1)\n")
    torch.save({"w": torch.zeros(3)}, made / "state.pt")
    return made


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("net.pt", "net.pt"), 0),
        (("net.pt", "other.pt"), 1),
        (("net.pt", "none.pt"), 2),
        (("net.pt", "broken.pt"), 2),
        (("net.pt", "state.pt"), 2),
        (("net.pt", "state.pt", "--network", "factory.py:net"), 2),
        (("net.pt",), 2),
        (("net.pt", "net.pt", "--data", "./none"), 2),
        (("net.pt", "net.pt", "--tolerance", "-1"), 2),
        (("net.pt", "net.pt", "--input", "9x9x9"), 2),
        (("net.pt", "net.pt", "--samples", "0"), 2),
        (("net.pt", "net.pt", "--device", "cuda:99"), 3),
    ],
)
def test_verify_exits_as_diff_does(words: tuple[str, ...], code: int, folder: Path) -> None:
    """1 is a difference and nothing else: a gate must not take a missing file for one, nor the other way round."""
    done = run("verify", *words, cwd=folder)
    assert done.returncode == code, done.stderr
    assert (done.stderr.count("\n") == 1) == (code > 1)


def test_a_crash_is_no_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.exporters.equivalence.check_equivalence", lambda *_, **__: 1 / 0)
    assert run("verify", "net.pt", "net.pt", cwd=folder).returncode == 2


def test_the_table_says_so() -> None:
    """The README's, which is what a script is written by."""
    rows = dict(re.findall(r"^\| (\d) \| ([^|]*) \|", (ROOT / "README.md").read_text(), re.M))
    assert rows == {
        "0": "the networks compute the same", "1": "they differ, and only that", "2": "trouble: bad input, wrong usage",
        "3": "this machine cannot do it",
    }  # fmt: skip


def test_compress_alone_prints_its_help() -> None:
    alone, asked = process(), process("--help")
    assert alone.stdout == asked.stdout
    assert (alone.returncode, alone.stderr) == (2, "")
    assert alone.stdout.count("\n") > 50


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("snapt", "snapit"), ("shw", "show"), ("L1-filters", "l1-filters"), ("verfy", "verify"), ("snap-it", "snapit")],
)
def test_did_you_mean(typed: str, meant: str) -> None:
    done = run(typed, "net.pt")
    assert done.returncode == 2
    assert re.search(rf"no command or method '{typed}': did you mean .*\b{meant}\b", done.stderr)


def test_a_loss_of_ones_own_says_nothing_of_accuracy(folder: Path) -> None:
    """Nobody knows what its targets mean, unless a metric says so."""
    (folder / "loss.py").write_text(
        "from torch.nn import functional as F\n\ndef loss(outputs, batch):\n    return F.cross_entropy(outputs, batch[1])\n"
    )
    own = ("snap", "net.pt", "--sparsity", "0.5", "-o", "x.pt", "--data", "digits", "--loss", "loss.py:loss")
    assert "accuracy" not in run(*own, cwd=folder).stdout.replace("judging its accuracy", "")
    assert re.search(r"accuracy on \d", run(*own, "--metric", "accuracy", cwd=folder).stdout)
    assert re.search(r"accuracy on \d", run(*own[:-2], cwd=folder).stdout)
