"""Plans and checkpoints of before: they are read, shown, replayed and written anew."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import apply_plan, load, networks, save
from compressor.types.plan import Plan
from tests.command import run

KEPT = Path(__file__).parent.parent / "kept"
NETWORKS = ("small.pt", "twice.pt", "whole.pt", "masked.safetensors", "synflow.safetensors")
PLANS = ("plan.json", "masked.json", "synflow.json")
X = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def kept(name: str, folder: Path) -> Path:
    """A file of before, in a folder of the test's own."""
    packed = KEPT / f"{name}.gz"
    path = folder / name
    path.write_bytes(gzip.decompress(packed.read_bytes()) if packed.exists() else (KEPT / name).read_bytes())
    return path


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def same_masks(plan: Plan, model: nn.Module) -> bool:
    """Whether every weight has as many values as its mask leaves it, where no node of it went."""
    whole = {name: mask for name, mask in plan.masks.items() if mask.shape == shapes(model)[name]}
    state = model.state_dict()
    return all(bool((state[name][~mask.tensor()] == 0).all()) for name, mask in whole.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_before_is_read_and_comes_back_from_a_file_of_now(name: str, tmp_path: Path) -> None:
    model = load(kept(name, tmp_path)).eval()
    plan = model.origin.plan
    assert plan.events
    assert torch.isfinite(model(X)).all()
    assert same_masks(plan, model)
    for suffix in (".pt", ".safetensors") if model.origin.network else (".pt",):
        save(model, tmp_path / f"again{suffix}")
        again = load(tmp_path / f"again{suffix}").eval()
        assert again.origin == model.origin
        assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_before_is_shown(name: str, tmp_path: Path) -> None:
    kept(name, tmp_path)
    done = run("show", name, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == len(load(tmp_path / name).origin.plan.events)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "whole.pt"])
def test_the_plan_of_a_network_of_before_is_replayed(name: str, tmp_path: Path) -> None:
    model = load(kept(name, tmp_path))
    again = apply_plan(model.origin.plan, networks.build("lenet5"), X)
    assert shapes(again) == shapes(model)
    assert same_masks(model.origin.plan, again)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_of_before_is_read_replayed_and_comes_back_from_a_text_of_now(name: str, tmp_path: Path) -> None:
    text = kept(name, tmp_path).read_text()
    raw, plan = json.loads(text), Plan.from_json(text)
    assert raw["schema"] == 1
    assert [{n: list(nodes) for n, nodes in e.kept.items()} for e in plan.events] == [e["kept"] for e in raw["events"]]
    assert plan.masks.keys() == raw["masks"].keys()
    again = plan.to_json()
    assert Plan.from_json(again) == plan
    assert len(again) < len(text)
    small = apply_plan(plan, networks.build("lenet5"), X)
    assert [len(nodes) for nodes in small.origin.plan.kept.values()] == [len(nodes) for nodes in plan.kept.values()]
    assert same_masks(plan, small)


def test_a_plan_of_before_is_replayed_by_the_command(tmp_path: Path) -> None:
    kept("masked.json", tmp_path)
    save(networks.build("lenet5"), tmp_path / "net.pt")
    done = run("apply", "masked.json", "net.pt", "-o", "small.safetensors", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "small.safetensors").origin.plan.masks


def test_a_plan_of_before_names_every_group_at_every_event(tmp_path: Path) -> None:
    """What a later version leaves out because nothing changed is damage in an earlier one's text."""
    raw = json.loads(kept("plan.json", tmp_path).read_text())
    del raw["events"][-1]["kept"]["features.8"]
    with pytest.raises(Exception, match="speaks of other groups"):
        Plan.from_json(json.dumps(raw))
