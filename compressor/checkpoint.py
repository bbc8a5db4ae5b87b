"""Saving and loading networks, without ever running code from a file.

Two formats of our own hold the same: `.safetensors` (tensors, and everything else as JSON in the header) and `.pt` (a dict that
`torch.load(weights_only=True)` reads). The network's builder is named, and its pruned widths follow from the tensors' shapes.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from compressor import networks
from compressor.errors import BadInput, CompressError, first_line
from compressor.files import check_target, staged
from compressor.state import origin_of, set_origin
from compressor.surgery import is_depthwise, refit
from compressor.types import Origin, Plan

SUFFIXES = (".pt", ".safetensors")
KEY = "compressor"
SCHEMA = 1


def save(model: nn.Module, path: str | Path) -> None:
    """Write a network that has an origin (one of `compressor.networks`, pruned or not) to `.pt` or `.safetensors`.

    Raises:
        BadInput: the network has no named builder, or the folder cannot be written.
        WrongUsage: another suffix.
    """
    path = Path(path)
    check_target(path, SUFFIXES)
    with staged(path) as [temporary]:
        write(model, temporary)


def write(model: nn.Module, path: Path) -> None:
    """Write to exactly this file; `save` adds the checks and the rename."""
    origin = origin_of(model)
    if origin is None:
        raise BadInput(f"{path.suffix} needs a network made by compressor.networks.build; write .onnx instead")
    header = json.dumps(_as_json(origin))
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path, metadata={KEY: header})
    else:
        torch.save({KEY: header, "state_dict": state}, path)


def load(path: str | Path) -> nn.Module:
    """Bring a saved network back, bit for bit, in train mode as any new module; its `.origin` says where it comes from.

    Raises:
        BadInput: no such file, not a checkpoint of ours, damaged, or it names code (which is never run).
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty")
    header, state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    try:
        raw = json.loads(header)
        if raw["schema"] > SCHEMA:
            raise BadInput(f"{path}: made by a newer version (schema {raw['schema']}); update compressor")
        named = _from_json(raw)
        model, fresh = networks.skeleton(named.network, **named.arguments)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: its header is damaged ({error})") from error
    except CompressError as error:
        raise BadInput(f"{path}: {error}") from error
    _fill(model, state, path)
    set_origin(model, replace(fresh, data=named.data, plan=named.plan))
    return model


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Put tensors of whatever width into a skeleton, and let its modules remember the new sizes."""
    expected = model.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise BadInput(f"{path}: tensors are missing: {', '.join(missing[:3])}")
    if extra := sorted(state.keys() - expected.keys()):
        raise BadInput(f"{path}: tensors that the network does not have: {', '.join(extra[:3])}")
    for name, tensor in state.items():
        owner, _, attribute = name.rpartition(".")
        module, old = model.get_submodule(owner), expected[name]
        if tensor.dim() != old.dim() or any(new > size for new, size in zip(tensor.shape, old.shape, strict=True)):
            raise BadInput(f"{path}: {name} has shape {tuple(tensor.shape)}, the network at most {tuple(old.shape)}")
        if tensor.is_floating_point() != old.is_floating_point() or tensor.layout != torch.strided or 0 in tensor.shape:
            raise BadInput(f"{path}: {name} is not a dense tensor of the kind that the network has")
        if attribute in module._parameters:
            module._parameters[attribute] = nn.Parameter(tensor)
        else:
            module._buffers[attribute] = tensor
    for module in model.modules():
        refit(module, is_depthwise(module))


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a safetensors file, or cut short ({error})") from error
    if KEY not in metadata:
        raise BadInput(f"{path}: has weights but does not say of which network; make it with `compress new` or `save`")
    return metadata[KEY], state


def _read_torch(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not zipfile.is_zipfile(path):
        raise BadInput(f"{path}: not a PyTorch checkpoint, or cut short; make it with `compress new` or `save`")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise BadInput(f"{path}: {_refusal(path)}") from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, AttributeError, AssertionError) as error:
        raise BadInput(f"{path}: damaged checkpoint ({first_line(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get(KEY), str):
        raise BadInput(f"{path}: does not say of which network it is; make it with `compress new` or `save`")
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise BadInput(f"{path}: damaged checkpoint (no state_dict of tensors)")
    return content[KEY], state


def _refusal(path: Path) -> str:
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError, IndexError, EOFError) as error:
        return f"refused, its pickle cannot be read safely ({error})"
    listed = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return f"refused without running it, because its pickle names {listed}; save a state dict with `compressor.save` instead"


def _as_json(origin: Origin) -> dict[str, Any]:
    try:
        ours = version("compressor")
    except PackageNotFoundError:
        ours = "unknown"
    return {
        "schema": SCHEMA,
        "version": ours,
        "network": origin.network,
        "arguments": dict(origin.arguments),
        "data": origin.data,
        "plan": None if origin.plan is None else origin.plan.to_json(),
    }


def _from_json(raw: dict[str, Any]) -> Origin:
    plan = None if raw["plan"] is None else Plan.from_json(raw["plan"])
    return Origin(str(raw["network"]), dict(raw["arguments"]), (), raw["data"], plan)
