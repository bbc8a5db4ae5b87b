"""The papers' networks, one file each, discovered by name.

A file holds `INPUT` (the default input shape) and `make(in_channels, classes, image_size)`; its name is the network's name.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import WrongUsage, first_line, nearest
from compressor.model.origin import set_origin
from compressor.networks._foreign import hollow, inputs_of, is_code
from compressor.networks._foreign import make as make_foreign
from compressor.networks._initialise import initialise
from compressor.options import spelled
from compressor.types.origin import InputSpec, Origin

__all__ = [
    "build",
    "built",
    "default_input",
    "hollow",
    "initialised",
    "inputs_of",
    "is_builder",
    "is_code",
    "names",
    "recognised",
    "size_text",
    "skeleton",
    "unfilled",
]


def names() -> list[str]:
    """Names of all networks."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def default_input(name: str) -> tuple[int, int, int]:
    """The input `(channels, height, width)` a network has in its paper.

    Raises:
        WrongUsage: no network has that name.
    """
    channels, height, width = _module(name).INPUT
    return channels, height, width


def build(
    name: str,
    *,
    in_channels: int | None = None,
    classes: int = 10,
    image_size: int | None = None,
    seed: int = 0,
    data: str | None = None,
) -> nn.Module:
    """A fresh network, initialised as in its paper; it remembers its origin as `.origin`.

    Args:
        in_channels: channels of the input image; the paper's by default.
        image_size: height and width of the input image; the paper's by default.
        seed: of the initialisation; the global random state is left alone.
        data: the data set that the network is meant for.
    Raises:
        WrongUsage: no network has that name, or the image is too small for it.
    """
    model, origin = skeleton(name, in_channels=in_channels, classes=classes, image_size=image_size)
    set_origin(model, replace(origin, data=data))
    try:
        _allocate(model)
    except RuntimeError as error:
        raise WrongUsage(f"{name}: does not fit in memory with these arguments ({first_line(error)})") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialised(model, name)
    return model


def is_builder(name: str) -> bool:
    """Whether a name is that of a builder elsewhere: `torchvision:resnet18`, `timm:...`, `file.py:factory`."""
    return ":" in name


def built(spec: str, arguments: Mapping[str, Any], inputs: Sequence[InputSpec], seed: int, data: str | None) -> nn.Module:
    """A fresh network of a builder elsewhere, with the weights that it gives; it remembers its origin.

    Args:
        inputs: what it takes; what it says of itself where there are none.
        seed: of the initialisation; the global random state is left alone.
        data: the data set that the network is meant for.
    Raises:
        WrongUsage: no such builder, or it does not take the arguments.
        MissingEnvironment: its library cannot be imported.
    """
    model = make_foreign(spec, arguments, seed)
    set_origin(model, Origin(spec, dict(arguments), tuple(inputs) or inputs_of(model), data))
    return model


def initialised(model: nn.Module, name: str | None) -> bool:
    """Initialise `model` in place, at any widths, as the paper of the network of that name does; False if it is not ours."""
    if name not in names():
        return False
    initialise(model, **getattr(_module(name), "INITIALISATION", {}))
    return True


def skeleton(
    name: str, *, in_channels: int | None = None, classes: int = 10, image_size: int | None = None
) -> tuple[nn.Module, Origin]:
    """The network on the meta device (shapes without values, for loading weights into), and its origin."""
    channels, size, _ = default_input(name)
    arguments = {"in_channels": in_channels or channels, "classes": classes, "image_size": image_size or size}
    if not all(isinstance(n, int) and 1 <= n <= LARGEST for n in arguments.values()):
        raise WrongUsage(f"{name}: channels, classes and image size are whole numbers from 1 to {LARGEST:,}")
    shape = (arguments["in_channels"], arguments["image_size"], arguments["image_size"])
    with torch.device("meta"):
        model = _module(name).make(**arguments)
        if arguments["image_size"] != size:  # the paper's own fits, and a pass without values takes as long to import as torch
            _check_size(name, model, shape)
    return model, Origin(name, arguments, (InputSpec(shape),))


def _allocate(model: nn.Module) -> None:
    """Give a network on the meta device memory on the CPU, in place, with whatever lies there.

    As `Module.to_empty` does, which first imports torch's symbolic shapes.
    """
    empty = model.state_dict()
    model.load_state_dict({name: torch.empty(t.shape, dtype=t.dtype, device="cpu") for name, t in empty.items()}, assign=True)


def _check_size(name: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse an image that a network on the meta device, which is left in train mode, cannot take.

    Raises:
        WrongUsage: naming the image's size.
    """
    try:
        with torch.no_grad():
            model.eval()(torch.empty(1, *shape, device="meta"))
    except RuntimeError as error:
        raise WrongUsage(f"{name}: an image of {size_text(shape)} is too small for it ({error})") from error
    model.train()


LARGEST = 1_000_000
"""Channels, classes, or pixels in a row, beyond which an argument is a mistake."""


def unfilled(spec: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Origin]:
    """A network to load weights into, by any builder: one of ours, `torchvision:...`, `timm:...` or `file.py:factory`.

    Raises:
        WrongUsage: no such builder, or it does not take the arguments.
        MissingEnvironment: its library cannot be imported.
    """
    if is_builder(spec):
        model = make_foreign(spec, arguments)
        return model, Origin(spec, dict(arguments), inputs_of(model))
    if unknown := sorted(set(arguments) - {"in_channels", "classes", "image_size"}):
        raise WrongUsage(f"{spelled('arguments', unknown[0])}: {spec} takes in_channels, classes and image_size")
    return skeleton(spec, **arguments)


def recognised(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The networks of ours whose tensors have the names and shapes in `state`, with the arguments that make them so."""
    for name in names():
        channels, size, _ = default_input(name)
        matrices = [state[tensor] for tensor in _tensors_of(name) if tensor in state and state[tensor].dim() > 1]
        if not matrices:
            continue
        for image_size in dict.fromkeys((size, 28, 32, 64, 224)):
            flat = matrices[0].dim() == 2  # then the image's size is in the shapes
            if not _names_fit(name, state):
                break
            arguments = {"in_channels": channels if flat else matrices[0].shape[1], "classes": matrices[-1].shape[0]}
            try:
                model, _ = skeleton(name, image_size=image_size, **arguments)
            except WrongUsage:
                continue
            if _shapes(model.state_dict()) == _shapes(state):
                yield name, {**arguments, "image_size": image_size}
                break


@functools.cache
def _tensors_of(name: str) -> tuple[str, ...]:
    """In the order in which the network has them; files may have another."""
    return tuple(_shapes(skeleton(name)[0].state_dict()))


def _names_fit(name: str, state: Mapping[str, Tensor]) -> bool:
    return set(_tensors_of(name)) == _shapes(state).keys()


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without the batch norms' counters, which old files lack."""
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}


def size_text(shape: tuple[int, ...]) -> str:
    """`3x32x32`."""
    return "x".join(map(str, shape))


def _module(name: str) -> ModuleType:
    if name not in names():
        raise WrongUsage(f"no network {name!r}: {nearest(name, names(), 'choose ' + ', '.join(names()))}")
    return importlib.import_module(f"compressor.networks.{name}")
