"""Files that would take much memory for few bytes: each is refused before it does."""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor import load, networks, save
from compressor.benchmarks.studies.zoo import import_torchvision
from compressor.checkpoint import unpickle
from compressor.errors import BadInput, CompressError
from tests.checkpoint.test_unpickle import Call, with_pickle
from tests.command import isolated

GIGABYTES = 3_000_000_000
MOST = 300 * 1024
"""KiB that a refused file may take of a process that has imported what it needs."""

NUMBER = b"\x8a\x05" + GIGABYTES.to_bytes(5, "little")


def repeated() -> torch.Tensor:
    """Twelve gigabytes to look at, four bytes in memory."""
    return torch.zeros(1).expand(GIGABYTES)


def holding(value: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model.extra = value
    return model


def many_layers() -> nn.Module:
    model = nn.Sequential(nn.LSTM(2, 2))
    model[0].num_layers, model[0]._all_weights = 10**9, [[1]]
    return model


def header(path: Path, **changed: object) -> None:
    """A checkpoint of ours that says something else of itself."""
    save(networks.build("lenet5"), path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "compressor": json.dumps(json.loads(content["compressor"]) | changed)}, path)


def safetensors(path: Path, described: object) -> None:
    text = json.dumps(described).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(1_000_000))


def packed(path: Path) -> None:
    """Zeros in compressed records, beside the name of a network that has other tensors."""
    torch.save({"state_dict": {f"w{i}": torch.zeros(50_000_000) for i in range(2)}}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)


BOMBS: dict[str, Callable[[Path], None]] = {
    "bytearray": lambda p: with_pickle(p, b"\x80\x02cbuiltins\nbytearray\n" + NUMBER + b"\x85R."),
    "bytearray of Python 2": lambda p: with_pickle(p, b"\x80\x02c__builtin__\nbytearray\n" + NUMBER + b"\x85R."),
    "bytearray, old format": lambda p: torch.save(Call(bytearray, GIGABYTES), p, _use_new_zipfile_serialization=False),
    "a tensor": lambda p: with_pickle(p, b"\x80\x02ctorch\nFloatTensor\n" + NUMBER + b"\x85R."),
    "an array": lambda p: with_pickle(p, b"\x80\x02cnumpy\nndarray\n" + NUMBER + b"\x85R."),
    "an array that is converted": lambda p: torch.save(
        Call(torch._utils._rebuild_device_tensor_from_numpy, np.zeros(1), torch.float64, "cpu", False), p
    ),
    "a tensor that is converted": lambda p: torch.save(
        Call(torch._utils._rebuild_device_tensor_from_cpu_tensor, repeated(), torch.float64, "cpu", False), p
    ),
    "many values": lambda p: with_pickle(p, b"\x80\x02(" + b"\x8f" * 4_000_000 + b"t."),
    "a repeated tensor": lambda p: torch.save({"state_dict": {"w": repeated()}}, p),
    "a function of it": lambda p: torch.save(holding(Call(nn.functional.gelu, repeated())), p),
    "layers of an LSTM": lambda p: torch.save(many_layers(), p),
    "a pickle's length": lambda p: with_pickle(p, b"\x80\x02B" + struct.pack("<I", GIGABYTES) + b"x."),
    "compressed zeros": packed,
    "classes": lambda p: header(p, arguments={"classes": 10**15}),
    "a network of a library": lambda p: header(p, network="torchvision:vgg16", arguments={}),
    "its classes": lambda p: header(p, network="torchvision:vgg16", arguments={"num_classes": 200_000}),
    "its depth": lambda p: header(p, network="timm:vit_tiny_patch16_224", arguments={"depth": 200_000}),
    "its width": lambda p: header(p, network="timm:vit_tiny_patch16_224", arguments={"embed_dim": 240_000}),
    "a depth that none has": lambda p: header(p, network="timm:vit_tiny_patch16_224", arguments={"depth": 10**12}),
    "a plan in brackets": lambda p: header(p, plan="[" * 1_000_000),
    "sizes": lambda p: header(p, sizes={"0": 10**30}),
    "an input": lambda p: header(p, inputs=["3x" + "9" * 4000]),
    "a schema": lambda p: header(p, schema=10**400),
    "a .safetensors' many tensors": lambda p: safetensors(
        p.with_suffix(".safetensors"), {f"{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(500_000)}
    ),
    "its shape": lambda p: safetensors(
        p.with_suffix(".safetensors"), {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}
    ),
    "its dimensions": lambda p: safetensors(
        p.with_suffix(".safetensors"), {"w": {"dtype": "F32", "shape": [1] * 8_000_000, "data_offsets": [0, 4]}}
    ),
}


def taken(path: Path) -> tuple[str, int]:
    """What is said of a file, and by how many KiB the most memory that this process ever had has grown since its imports."""
    if any(named in path.read_bytes()[:10_000] for named in (b"torchvision:", b"timm:")):
        with contextlib.suppress(Exception):  # where they can be imported
            import_torchvision()
            importlib.import_module("timm")
    with pytest.raises(CompressError):
        load(path.with_name("none.pt"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(path)
    except CompressError as error:
        return str(error), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return "", 0


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_one_line_and_in_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    BOMBS[name](path)
    [path] = tmp_path.iterdir()
    said, kibibytes = isolated(taken, path)
    assert said, "it was read"
    assert "\n" not in said
    assert kibibytes < MOST, said


def test_the_bombs_are_live(tmp_path: Path) -> None:
    """torch's own reader takes the memory: else the test above would prove nothing."""
    with_pickle(tmp_path / "x.pt", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (10**8).to_bytes(5, "little") + b"\x85R.")
    assert len(torch.load(tmp_path / "x.pt", weights_only=True)) == 10**8


def test_values_of_a_trusted_file_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "LARGEST_VALUES", 1000)
    torch.save({"values": list(range(1000))}, tmp_path / "x.pt")
    with pytest.raises(BadInput, match="take more than 1,000 bytes"):
        unpickle.read(tmp_path / "x.pt")
    assert unpickle.read(tmp_path / "x.pt", trust=True) == {"values": list(range(1000))}
