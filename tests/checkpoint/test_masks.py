"""Masks in files: tensors beside the network's, told apart by their names, small, and refused where they are damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from compressor import compress, load, networks, save
from compressor.checkpoint import checkpoint
from compressor.errors import BadInput, CompressError
from tests.damage import misfilled

X = torch.randn(4, 1, 28, 28)


@pytest.fixture(scope="module")
def sparse() -> nn.Module:
    """A LeNet with a third of its weights, drawn at random: its masks cannot be written shorter."""
    return compress(networks.build("lenet5"), "random", None, 0.66, example_inputs=X, unit="weight").model


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["compressor"])


def bytes_of_header(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def test_other_readers_can_tell_masks_from_weights(sparse: nn.Module, tmp_path: Path) -> None:
    save(sparse, tmp_path / "sparse.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "sparse.safetensors")
    masks = {name: t for name, t in tensors.items() if name.startswith("compressor.masks/")}
    assert tensors.keys() - masks.keys() == sparse.state_dict().keys()
    for name, mask in sparse.origin.plan.masks.items():
        bits = np.unpackbits(masks[f"compressor.masks/{name}"], count=math.prod(mask.shape)).reshape(mask.shape)
        assert np.array_equal(bits, mask.tensor().numpy())
    plan = json.loads(header_of(tmp_path / "sparse.safetensors")["plan"])
    assert plan["masks"]["features.0.weight"] == {"shape": [6, 1, 5, 5]}
    save(sparse, tmp_path / "sparse.pt")
    assert torch.load(tmp_path / "sparse.pt", weights_only=True)["masks"].keys() == sparse.origin.plan.masks.keys()


def test_only_networks_with_masks_have_such_tensors(lenet5: nn.Module, tmp_path: Path) -> None:
    small = compress(lenet5, "random", None, 0.5, example_inputs=X).model
    save(small, tmp_path / "small.safetensors")
    assert safetensors.torch.load_file(tmp_path / "small.safetensors").keys() == small.state_dict().keys()
    save(small, tmp_path / "small.pt")
    assert torch.load(tmp_path / "small.pt", weights_only=True).keys() == {"compressor", "state_dict"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_network_comes_back_with_its_masks(suffix: str, sparse: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"sparse{suffix}"
    save(sparse, path)
    back = load(path)
    assert back.origin == sparse.origin
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in sparse.state_dict().items())
    save(back, tmp_path / f"again{suffix}")
    assert load(tmp_path / f"again{suffix}").origin == sparse.origin


def test_a_network_that_is_pickled_whole_keeps_its_masks(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    small = compress(whole, "random", None, 0.5, example_inputs=X, unit="weight").model
    save(small, tmp_path / "whole.pt")
    assert load(tmp_path / "whole.pt").origin.plan == small.origin.plan
    assert small.origin.plan.masks


def test_masks_of_a_large_network_do_not_meet_the_headers_limit(
    sparse: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LONGEST_HEADER", 10_000)
    assert len(sparse.origin.plan.to_json()) > 10_000
    save(sparse, tmp_path / "sparse.safetensors")
    assert bytes_of_header(tmp_path / "sparse.safetensors") < 10_000
    assert load(tmp_path / "sparse.safetensors").origin == sparse.origin


def test_a_header_that_is_too_long_is_refused_before_anything_is_written(
    sparse: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparse.safetensors"
    save(sparse, path)
    old, longest = path.read_bytes(), bytes_of_header(path) - 1
    monkeypatch.setattr(checkpoint, "LONGEST_HEADER", longest)
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *_, **__: pytest.fail("it was written"))
    with pytest.raises(BadInput, match=rf"a header of .* bytes, more than the {longest:,} .* write \.pt"):
        save(sparse, path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    save(sparse, tmp_path / "sparse.pt")


def test_a_parameter_of_such_a_name_is_refused(tmp_path: Path, lenet5: nn.Module) -> None:
    lenet5.add_module("compressor", nn.ParameterDict({"masks/x": nn.Parameter(torch.ones(1))}))
    with pytest.raises(BadInput, match="such names are for masks"):
        save(lenet5, tmp_path / "x.safetensors")


NAME = "classifier.0.weight"
DAMAGES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "one is missing": lambda masks: masks.pop(NAME),
    "one too many": lambda masks: masks.update({"nosuch.weight": masks[NAME].clone()}),
    "longer": lambda masks: masks.update({NAME: masks[NAME].repeat(2)}),
    "shorter": lambda masks: masks.update({NAME: masks[NAME][:-1].clone()}),
    "of two dimensions": lambda masks: masks.update({NAME: masks[NAME][None]}),
    "of another type": lambda masks: masks.update({NAME: masks[NAME].to(torch.int8)}),
    "of numbers": lambda masks: masks.update({NAME: masks[NAME].float()}),
    "none": lambda masks: masks.clear(),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_masks_are_refused(
    suffix: str, damage: Callable[[dict[str, Tensor]], Any], sparse: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"sparse{suffix}"
    save(sparse, path)
    if suffix == ".pt":
        content = torch.load(path, weights_only=True)
        damage(content["masks"])
        torch.save(content, path)
    else:
        tensors, header = safetensors.torch.load_file(path), json.dumps(header_of(path))
        masks = {name: tensors.pop(f"{checkpoint.MASKS}{name}") for name in sparse.origin.plan.masks}
        damage(masks)
        tensors |= {f"{checkpoint.MASKS}{name}": mask for name, mask in masks.items()}
        safetensors.torch.save_file(tensors, path, metadata={"compressor": header})
    with pytest.raises(BadInput, match="not a plan"):
        load(path)


@pytest.mark.parametrize("masks", [3, [torch.ones(1)], {"a": 3}, {1: torch.ones(1)}, None])
def test_masks_that_are_no_tensors_are_refused(masks: Any, sparse: nn.Module, tmp_path: Path) -> None:
    save(sparse, tmp_path / "sparse.pt")
    content = torch.load(tmp_path / "sparse.pt", weights_only=True)
    torch.save({**content, "masks": masks}, tmp_path / "sparse.pt")
    with pytest.raises(BadInput, match="its masks are no tensors"):
        load(tmp_path / "sparse.pt")


def test_masks_without_a_plan_are_refused(lenet5: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(lenet5, path)
    header = json.dumps(header_of(path))
    tensors = safetensors.torch.load_file(path) | {f"{checkpoint.MASKS}x": torch.zeros(3, dtype=torch.uint8)}
    safetensors.torch.save_file(tensors, path, metadata={"compressor": header})
    with pytest.raises(BadInput, match="masks without a plan"):
        load(path)


def test_other_reserved_names_are_tensors_that_the_network_lacks(lenet5: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(lenet5, path)
    header = json.dumps(header_of(path))
    tensors = safetensors.torch.load_file(path) | {"compressor.other/x": torch.zeros(3)}
    safetensors.torch.save_file(tensors, path, metadata={"compressor": header})
    with pytest.raises(BadInput, match=r"has tensors that the network lacks: compressor\.other/x"):
        load(path)


def test_a_file_that_lost_its_header_is_a_state_dict_without_masks(tmp_path: Path) -> None:
    dense = networks.build("lenet300100", image_size=8)
    masked = compress(dense, "magnitude", None, 0.3, unit="weight", example_inputs=torch.randn(4, 1, 8, 8)).model
    path = tmp_path / "net.safetensors"
    save(masked, path)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    back = load(path, network="lenet300100", arguments={"image_size": 8})
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in masked.state_dict().items())


def test_headers_with_something_unexpected_are_refused_or_sound(tmp_path: Path) -> None:
    dense = networks.build("lenet300100", image_size=8)
    path = tmp_path / "net.safetensors"
    save(compress(dense, "magnitude", None, 0.6, unit="weight", example_inputs=torch.randn(4, 1, 8, 8)).model, path)
    tensors, header = safetensors.torch.load_file(path), header_of(path)
    refused = 0
    for seed in range(150):
        plan = misfilled(header["plan"], seed)
        text = json.dumps({**header, "plan": plan}) if seed % 2 else misfilled(json.dumps(header), seed)
        safetensors.torch.save_file(tensors, path, metadata={"compressor": text})
        refused += refusal_of(path) is not None
    assert refused > 75


def refusal_of(path: Path) -> str | None:
    """What loading says in one line, if it refuses; nothing else may happen."""
    try:
        load(path)
    except CompressError as error:
        return str(error) if "\n" not in str(error) else pytest.fail(f"several lines: {error}")
    return None
