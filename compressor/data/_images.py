"""Labelled images, and their conversion to what a network takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import BadInput

GREY = ((0.1307,), (0.3081,))
"""Mean and standard deviation of MNIST: the normalisation of grey images."""

COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's, which the SNIP-it paper uses for CIFAR-10 too."""


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        labels: `(samples,)` int64.
        fetch: indices -> their images, each `(channels, h, w)` float32 in [0, 1].
    """

    labels: Tensor
    fetch: Callable[[Tensor], list[Tensor]]

    def read(self, indices: Tensor, input_shape: tuple[int, ...]) -> Tensor:
        """Images `(batch, c, h, w)`: converted to the channels and size of `input_shape`, normalised."""
        return torch.stack([convert(image, input_shape) for image in self.fetch(indices)])


@dataclass(frozen=True)
class Images:
    """A data set of labelled images.

    Attributes:
        name: as the user gave it.
        classes: number of classes.
        train: for scoring.
        test: for accuracy.
        native: `(channels, h, w)` of its first image.
    """

    name: str
    classes: int
    train: Split
    test: Split
    native: tuple[int, int, int]


def convert(image: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """One image `(channels, h, w)` in [0, 1] as a network's input: normalised, bilinear in size, grey to colour or back.

    Raises:
        BadInput: the network takes no image, or one of another number of channels than 1 or 3.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3, image.shape[0]):
        raise BadInput(f"images cannot be converted to the network's input {input_shape}; it must be 1 or 3 channels of pixels")
    mean, std = (torch.tensor(v)[:, None, None] for v in (GREY if image.shape[0] == 1 else COLOUR))
    if image.shape[1:] != input_shape[1:]:
        image = F.interpolate(image[None], size=input_shape[1:], mode="bilinear", antialias=True)[0]
    image = (image - mean) / std
    if image.shape[0] == input_shape[0]:
        return image
    return image.expand(input_shape[0], -1, -1) if image.shape[0] == 1 else image.mean(0, keepdim=True)


def held_out(size: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Indices for training and testing of data that has no test split; always the same for a size."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    test = round(size * share)
    return order[test:].sort().values, order[:test].sort().values
