"""Networks as users name them: a file, a fresh one of the papers, or a builder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor import networks
from compressor.checkpoint.checkpoint import load
from compressor.data import Preprocessing
from compressor.errors import WrongUsage, nearest
from compressor.model.origin import origin_of, set_origin
from compressor.options import options_of, pairs_of, spelled
from compressor.settings import Building, Normalisation, Reading
from compressor.sources.fresh import fresh_network
from compressor.types import InputSpec, Origin


def opened(path: Path, reading: Reading, images: Normalisation | None = None) -> nn.Module:
    """The network in a file, with what the user said of it. Errors as in `load`."""
    model = load(
        path, network=reading.network, arguments=pairs_of(reading.arguments), inputs=specs_of(reading.inputs), key=reading.key,
        trust_pickle=reading.trust_pickle,
    )  # fmt: skip
    adapt(model, reading.image_size, images or Normalisation())
    return model


def fresh(
    name: str, data: str, building: Building, images: Normalisation, seed: int, *, in_channels: int | None = None,
    classes: int | None = None, image_size: int | None = None,
) -> nn.Module:  # fmt: skip
    """A fresh network for some data, which it remembers.

    Raises:
        WrongUsage: no such network, or an option that it has no use for.
    """
    remembered: str | None = remembered_name(data)
    sizes: dict[str, Any] = {"in_channels": in_channels, "classes": classes, "image_size": image_size, "seed": seed}
    if networks.is_builder(name):
        given: dict[str, Any] = {"arguments": pairs_of(building.arguments), "inputs": specs_of(building.inputs)}
        model = fresh_network(name, data, remembered=remembered, **sizes, **given)
    else:
        for option in ("arguments", "inputs"):
            if getattr(building, option):
                ours = "in_channels, image_size and classes"
                raise WrongUsage(f"{spelled(option)} is for a builder elsewhere; {name} takes {ours}")
        if (in_channels or networks.default_input(name)[0]) not in (1, 3):
            remembered = None  # images cannot be converted to such an input
        model = fresh_network(name, data, remembered=remembered, **sizes)
        set_origin(model, replace(origin_of(model) or Origin(None, {}), trained=False))
    adapt(model, None, images)
    return model


def fresh_or_opened(network: Path, data: str | None, seed: int, reading: Reading, images: Normalisation) -> nn.Module:
    """A fresh network by its name, or one from a file. Errors as in `fresh` and `opened`."""
    name, known = str(network), networks.names()
    if network.exists() or (name not in known and not networks.is_builder(name)):
        if not network.exists() and not network.suffix:
            hint = nearest(name, known, f"there are {', '.join(known)}")
            raise WrongUsage(f"{name}: neither a file nor a network; {hint}")
        return opened(network, reading, images)
    for o in options_of(Reading):
        of_builder = o.name in ("arguments", "inputs") and networks.is_builder(name)
        if getattr(reading, o.name) != o.default and not of_builder and o.name != "image_size":
            raise WrongUsage(f"{spelled(o.name)} is for files; {name} is a fresh network")
    return fresh(name, data or "digits", reading, images, seed, image_size=reading.image_size)


def adapt(model: nn.Module, image_size: int | None, images: Normalisation) -> None:
    """Let the network remember, in place, what the user said of its images."""
    origin = origin_of(model)
    if origin is None:
        return
    if image_size is not None:
        known = origin.inputs or (InputSpec((3, image_size, image_size)),)
        resized = replace(known[0], shape=(*known[0].shape[:-2], image_size, image_size))
        origin = replace(origin, inputs=(resized, *known[1:]))
    if images.mean or images.std:
        origin = replace(origin, preprocessing=Preprocessing(images.mean, images.std).as_dict())
    set_origin(model, origin)


def remember_data(model: nn.Module, data: str) -> None:
    """Let the network remember, in place, the data that it belongs to."""
    if (origin := origin_of(model)) is not None:
        set_origin(model, replace(origin, data=remembered_name(data)))


def remembered_name(data: str) -> str:
    """The name of data as a checkpoint keeps it: found from any folder."""
    return data if data == "digits" or not Path(data).exists() else str(Path(data).resolve())


def specs_of(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Inputs as they are written on the command line."""
    return tuple(map(InputSpec.parse, texts))
