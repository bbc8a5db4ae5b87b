"""Saving and loading: bit for bit, in a fresh process, and never running what a file says."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from compressor import compress, load, networks, save
from compressor.errors import BadInput, WrongUsage
from compressor.model.origin import origin_of

SUFFIXES = (".pt", ".safetensors")


@pytest.fixture(scope="module")
def pruned(digits) -> nn.Module:
    return compress(networks.build("lenet5", data="digits"), "snapit", digits, 0.8).model


FRESH = """
import sys
import torch
from compressor import load
for path in sys.argv[2:]:
    model = load(path)
    expected = torch.load(sys.argv[1], weights_only=True)
    state = model.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[k], expected[k]) for k in state)
    assert model.training and model.features[0].out_channels == state["features.0.weight"].shape[0]
    before = model.features[0].weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters())
    torch.nn.functional.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    optimizer.step()
    assert not torch.equal(before, model.features[0].weight)
"""


def test_a_pruned_network_comes_back_bit_for_bit_in_a_fresh_process_and_trains(pruned, tmp_path: Path) -> None:
    paths = [tmp_path / f"small{suffix}" for suffix in SUFFIXES]
    for path in paths:
        save(pruned, path)
    torch.save(pruned.state_dict(), tmp_path / "expected.pth")
    command = [sys.executable, "-c", FRESH, tmp_path / "expected.pth", *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in paths:
        loaded = load(path)
        assert origin_of(loaded) == origin_of(pruned)
        assert origin_of(loaded).plan.events


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_loaded_network_can_be_pruned_again(suffix: str, pruned, tmp_path: Path, digits) -> None:
    save(pruned, tmp_path / f"small{suffix}")
    again = compress(load(tmp_path / f"small{suffix}"), "snap", digits, 0.2)
    plan = origin_of(again.model).plan
    assert plan.widths == origin_of(pruned).plan.widths
    layers = ("features.0", "features.4", "features.8", "classifier.0")
    outputs = [again.model.get_submodule(layer).weight.shape[0] for layer in layers]
    assert [len(plan.kept[layer]) for layer in layers] == outputs


def test_a_network_without_a_builder_is_pointed_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"write \.pt2 \(runs without this package\) or \.onnx instead"):
        save(nn.Linear(2, 2), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_unknown_suffix_and_missing_folder(lenet5, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="unknown suffix"):
        save(lenet5, tmp_path / "x.bin")
    with pytest.raises(BadInput, match="does not exist"):
        save(lenet5, tmp_path / "nowhere" / "x.pt")


class Bomb:
    """Leaves a trace if a loader runs it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


def test_a_malicious_pickle_never_runs_and_is_named(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"compressor": "{}", "state_dict": {"w": Bomb(trace)}}, path)
    with pytest.raises(BadInput, match=r"its pickle names (posix|nt)\.system"):
        load(path)
    assert not trace.exists()
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(BadInput, match="not a PyTorch checkpoint"):
        load(raw)
    assert not trace.exists()


def test_files_that_are_no_checkpoints(tmp_path: Path, lenet5) -> None:
    good = tmp_path / "good.pt"
    save(lenet5, good)
    safe = tmp_path / "good.safetensors"
    save(lenet5, safe)
    cases = {
        "missing.pt": (None, "no such file"),
        "empty.pt": (b"", "is empty"),
        "text.pt": (b"hello world", "not a PyTorch checkpoint"),
        "cut.pt": (good.read_bytes()[:-200], "not a PyTorch checkpoint"),
        "text.safetensors": (b"hello world, hello", "not a safetensors file"),
        "cut.safetensors": (safe.read_bytes()[:-200], "not a safetensors file"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            load(path)


def test_foreign_and_damaged_contents(tmp_path: Path, lenet5) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(BadInput, match="does not say of which network"):
        load(tmp_path / "bare.safetensors")
    save(lenet5, tmp_path / "good.pt")
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    for change, message in (
        ({"compressor": "{"}, "header is damaged"),
        ({"compressor": content["compressor"].replace("lenet5", "nosuch")}, "no network 'nosuch'"),
        ({"compressor": content["compressor"].replace('"schema": 1', '"schema": 9')}, "newer version"),
        ({"state_dict": {}}, "lacks tensors of the network"),
        ({"state_dict": 3}, "no state_dict"),
        ({"state_dict": {**content["state_dict"], "more": torch.ones(1)}}, "the network lacks: more"),
        ({"state_dict": {**content["state_dict"], "features.0.weight": torch.ones(9, 1, 5, 5)}}, "at most"),
    ):
        torch.save({**content, **change}, tmp_path / "changed.pt")
        with pytest.raises(BadInput, match=message):
            load(tmp_path / "changed.pt")
