"""A run's folder: damage is seen, the state before is gone on from, and one training works in it at a time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor import train
from compressor.errors import BadInput
from compressor.training.recipe import Recipe
from tests.command import wait_for

BATCHES = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(n)), torch.arange(8) % 3) for n in range(3)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def trained(folder: Path, epochs: int, resume: bool = False) -> Any:
    how = {"method": "snap", "sparsity": 0.5, "scoring": BATCHES}
    return train(network(), BATCHES, Recipe(epochs=epochs, batch_size=8), folder=folder, resume=resume, **how)


def weights(outcome: Any) -> list[torch.Tensor]:
    return [p.detach() for p in outcome.model.parameters()]


@pytest.fixture(scope="module")
def whole() -> list[torch.Tensor]:
    """The weights of a run that nothing happened to."""
    return weights(train(network(), BATCHES, Recipe(epochs=4, batch_size=8), method="snap", sparsity=0.5, scoring=BATCHES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained(tmp_path / "run", 3)
    return tmp_path / "run"


def flip(path: Path, share: float) -> None:
    """Flip one bit of the values of the largest record that lies at this share of its bytes."""
    with zipfile.ZipFile(path) as records:
        record = max(records.infolist(), key=lambda r: (r.filename.rpartition("/")[2].isdigit(), r.file_size))
    content = bytearray(path.read_bytes())
    start = content.find(record.filename.encode()) + len(record.filename)
    with zipfile.ZipFile(path) as records:
        start = content.find(records.read(record)[:32], start)
    content[start + int(share * (record.file_size - 1))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_seen_and_the_state_before_is_taken(share: float, folder: Path, whole) -> None:
    """It was loaded in silence once, and another network came out."""
    flip(folder / "state.pt", share)
    outcome = trained(folder, 4, resume=True)
    [said] = [n for n in outcome.notes if "damaged" in n]
    assert "record" in said
    assert "state before it, 2 epochs" in said
    assert all(torch.equal(a, b) for a, b in zip(weights(outcome), whole, strict=True))
    assert sorted(p.name for p in folder.iterdir()) == ["history.csv", "state.before.pt", "state.pt"]
    again = trained(folder, 4, resume=True)
    assert not [n for n in again.notes if "damaged" in n]


def test_a_state_that_is_gone_or_cut_is_replaced_by_the_one_before(folder: Path, whole) -> None:
    content = (folder / "state.pt").read_bytes()
    before = (folder / "state.before.pt").read_bytes()
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(content[: len(content) // 2]), lambda p: p.write_bytes(b"")):
        (folder / "state.pt").write_bytes(content)
        (folder / "state.before.pt").write_bytes(before)
        damage(folder / "state.pt")
        outcome = trained(folder, 4, resume=True)
        assert all(torch.equal(a, b) for a, b in zip(weights(outcome), whole, strict=True))


def test_both_damaged_is_one_line_and_changes_nothing(folder: Path) -> None:
    for name in ("state.pt", "state.before.pt"):
        flip(folder / name, 0.5)
    there = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(
        BadInput, match=r"state\.pt: damaged \(the checksum of its record .* is wrong\).*state before it"
    ) as error:
        trained(folder, 4, resume=True)
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == there


def test_a_new_run_does_not_go_on_from_an_old_ones_state(folder: Path) -> None:
    """The old run is finished; its last state is not the one before the new run's first."""
    trained(folder, 1)
    assert not (folder / "state.before.pt").exists()
    trained(folder, 2, resume=True)
    assert (folder / "state.before.pt").exists()


def _change(held: dict[str, Any], what: str) -> None:
    content = held["content"]
    wrong: dict[str, tuple[dict[str, Any], Any]] = {
        "schema": (held, "two"), "configuration": (held, 3), "epoch": (held, "1"), "content": (held, [1]),
        "model": (content, {}), "moments": (content, [1, 2]), "epochs_done": (content, "x"), "rows": (content, [{"epoch": 1}]),
        "macs": (content, None), "sticky": (content, 7), "pruning": (content, None),
        "plan": (content["pruning"], "{}"), "kept": (content["pruning"], 5), "samples": (content["pruning"], "many"),
        "passed": (content["pruning"], None), "proofs": (content["pruning"], [{"what": 1}]),
        "snapshot": (content["pruning"], 3), "ranks": (content["pruning"], [1]), "curves": (content["pruning"], 1.0),
    }  # fmt: skip
    place, value = wrong[what]
    place[what] = value


CONTENTS = (
    "schema", "configuration", "epoch", "content", "model", "moments", "epochs_done", "rows", "macs", "sticky", "pruning",
    "plan", "kept", "samples", "passed", "proofs", "snapshot", "ranks", "curves",
)  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_wrong_contents_are_one_line(what: str, folder: Path) -> None:
    held = torch.load(folder / "state.pt", weights_only=True)
    _change(held, what)
    torch.save(held, folder / "state.pt")
    (folder / "state.before.pt").unlink()
    with pytest.raises(BadInput, match=r"state\.pt: (damaged|.*remove it|was made)") as error:
        trained(folder, 4, resume=True)
    assert "\n" not in str(error.value)


SLOW = """
import sys, time
from pathlib import Path
from tests.pruning.test_run_folder import BATCHES, network
from compressor import train
from compressor.training.recipe import Recipe
def wait(_):
    Path("here").touch()
    while not Path("go").exists():
        time.sleep(0.01)
train(network(), BATCHES, Recipe(epochs=2, batch_size=8), folder="run", on_epoch=wait)
"""


def test_two_trainings_share_no_folder(tmp_path: Path, monkeypatch) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", SLOW], cwd=tmp_path, env=_finding_tests(), stderr=subprocess.PIPE, text=True
    )
    wait_for((tmp_path / "here").exists, other)
    with pytest.raises(BadInput, match="another training is at work in it"):
        trained(tmp_path / "run", 1)
    (tmp_path / "go").touch()
    _, said = other.communicate(timeout=60)
    assert other.returncode == 0, said
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["history.csv", "state.before.pt", "state.pt"]
    trained(tmp_path / "run", 1)


def _finding_tests() -> dict[str, str]:
    import os

    from tests import ROOT

    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), BATCHES, Recipe(epochs=1, batch_size=8), folder=tmp_path / "run", on_epoch=stop)
    assert not (tmp_path / "run").exists()
