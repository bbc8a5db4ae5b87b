"""A fresh network for some data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compressor import networks
from compressor.data import Arrays, Batches, Images, open_data
from compressor.errors import WrongUsage
from compressor.options import spelled
from compressor.system.user_code import LIBRARIES
from compressor.types.origin import InputSpec


def fresh_network(
    name: str, data: str, *, in_channels: int | None = None, classes: int | None = None, image_size: int | None = None,
    seed: int = 0, remembered: str | None = None, arguments: Mapping[str, Any] | None = None, inputs: Sequence[InputSpec] = (),
) -> nn.Module:  # fmt: skip
    """A fresh network for some data.

    Args:
        name: of one of ours, or a builder elsewhere: `torchvision:resnet18`, `timm:...`, `file.py:factory`.
        in_channels: the paper's by default, but three where the images are in colour.
        classes: as many as the data has by default, or 10.
        image_size: height and width; the paper's by default.
        remembered: the data that the network is to remember, see `Origin`.
        arguments: of a builder elsewhere.
        inputs: what a network of a builder elsewhere takes; the data as they are by default.
    Raises:
        WrongUsage: no such network, or fewer classes than the data has.
    """
    opened = open_data(data)
    has = getattr(opened, "classes", None)
    if classes is not None and has is not None and classes < has:
        raise WrongUsage(f"{spelled('classes', classes)}: {data} has {has} classes; leave it out or raise it")
    if networks.is_builder(name):
        given, shape = dict(arguments or {}), _shape_of(opened, name, in_channels, image_size)
        if name.partition(":")[0] in LIBRARIES:
            given.setdefault("num_classes", classes or has or 10)
        elif classes is not None:
            raise WrongUsage(
                f"{spelled('classes')}: a builder of your own knows its classes; give what it takes with {spelled('arguments')}"
            )
        return networks.built(name, given, inputs or ((InputSpec(shape),) if shape else ()), seed, remembered)
    if in_channels is None and isinstance(opened, Images):
        in_channels = max(opened.native[0], networks.default_input(name)[0])
    return networks.build(
        name, in_channels=in_channels, classes=classes or has or 10, image_size=image_size, seed=seed, data=remembered
    )


def _shape_of(data: Images | Arrays | Batches, name: str, channels: int | None, size: int | None) -> tuple[int, ...] | None:
    """What one sample of the data is for a network of a builder elsewhere; None where only the data's code knows."""
    if isinstance(data, Arrays):
        return data.input_shape
    if not isinstance(data, Images):
        return None
    native = data.native
    colour = name.partition(":")[0] in LIBRARIES  # their networks take colour
    return channels or (3 if colour else native[0]), size or native[1], size or native[2]
