"""Labelled images, and their conversion to what a network takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import BadInput, WrongUsage

GREY = ((0.1307,), (0.3081,))
"""Mean and standard deviation of MNIST: the normalisation of grey images."""

COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's, which the SNIP-it paper uses for CIFAR-10 too."""


@dataclass(frozen=True)
class Preprocessing:
    """How pixels in [0, 1] are normalised: `(pixel - mean) / std`, per channel of the network's input.

    Without values, images are normalised as most networks expect: grey ones by MNIST's, colour ones by ImageNet's.

    Attributes:
        mean: one value for all channels, or one per channel of the network's input.
        std: as many, positive.
    Raises:
        WrongUsage: one without the other, of different lengths, not finite, or a `std` that is not positive.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.mean is None and self.std is None:
            return
        if self.mean is None or self.std is None:
            raise WrongUsage("mean and std belong together: give both, or neither")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise WrongUsage(f"mean has {_values(len(self.mean))}, std {len(self.std)}; give as many of each")
        if min(self.std) < SMALLEST_STD:
            raise WrongUsage(f"std {min(self.std):g}: must be positive, as pixels are divided by it")

    def apply(self, image: Tensor) -> Tensor:
        """The image `(c, h, w)` in [0, 1], normalised; as it is when there are no values.

        Raises:
            WrongUsage: the image has another number of channels than there are values.
        """
        if self.mean is None or self.std is None:
            return image
        if len(self.mean) not in (1, image.shape[0]):
            channels = f"{image.shape[0]} channel{'s' * (image.shape[0] != 1)}"
            raise WrongUsage(f"mean and std have {_values(len(self.mean))}, the network's input {channels}; give 1 or as many")
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (image - mean) / std

    def as_dict(self) -> dict[str, list[float] | None]:
        """The values, as JSON and checkpoints hold them."""
        return {name: None if v is None else list(v) for name, v in (("mean", self.mean), ("std", self.std))}

    @classmethod
    def from_dict(cls, values: object) -> Preprocessing:
        """What `as_dict` gave.

        Raises:
            BadInput: it is something else.
        """
        if not isinstance(values, Mapping) or set(values) != {"mean", "std"}:
            raise BadInput(f"preprocessing must be a table of mean and std, not {str(values)[:60]!r}")
        for name, held in values.items():
            if held is not None and not isinstance(held, (list, tuple)):
                raise BadInput(f"preprocessing: {name} must be a list of numbers, not {str(held)[:60]!r}")
        try:
            return cls(**values)
        except WrongUsage as error:
            raise BadInput(f"preprocessing: {error}") from error

    def said(self) -> str:
        """The values in words, for reports: `mean 0.5, std 0.25`."""
        if self.mean is None or self.std is None:
            return "mean and std of MNIST for grey images, of ImageNet for colour"
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


SMALLEST_STD = 1e-30
"""Below it, float32 pixels divided by it overflow."""


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, (tuple, list)) or not values:
        raise WrongUsage(f"{name} must be a list of numbers, not {str(values)[:60]!r}")
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise WrongUsage(f"{name} must be numbers, not {str(values)[:60]}")
    if not all(abs(v) < 1e30 for v in values) or not all(math.isfinite(v) for v in values):
        raise WrongUsage(f"{name} must be finite, not {' '.join(str(v)[:20] for v in values)}")
    return tuple(float(v) for v in values)


def _values(count: int) -> str:
    return f"{count} value{'s' * (count != 1)}"


USUAL = Preprocessing()
"""The normalisation when none is asked for."""


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        labels: `(samples,)` int64.
        fetch: indices -> their images, each `(channels, h, w)` float32 in [0, 1].
    """

    labels: Tensor
    fetch: Callable[[Tensor], list[Tensor]]

    def read(self, indices: Tensor, input_shape: tuple[int, ...], preprocessing: Preprocessing = USUAL) -> Tensor:
        """Images `(batch, c, h, w)`: converted to the channels and size of `input_shape`, normalised.

        Raises:
            BadInput: an image cannot be decoded, or the network takes no images.
            WrongUsage: the preprocessing has values for another number of channels.
        """
        return torch.stack([convert(image, input_shape, preprocessing) for image in self.fetch(indices)])


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


def convert(image: Tensor, input_shape: tuple[int, ...], preprocessing: Preprocessing = USUAL) -> Tensor:
    """One image `(channels, h, w)` in [0, 1] as a network's input: normalised, bilinear in size, grey to colour or back.

    Values of `preprocessing` are those of the network's channels, so they come last; the usual ones are those of the
    image's channels, so they come before its channels are converted.

    Raises:
        BadInput: the network takes no image, or one of another number of channels than 1 or 3.
        WrongUsage: the preprocessing has values for another number of channels.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3, image.shape[0]):
        raise BadInput(f"images cannot be converted to the network's input {input_shape}; it must be 1 or 3 channels of pixels")
    if image.shape[1:] != input_shape[1:]:
        image = F.interpolate(image[None], size=input_shape[1:], mode="bilinear", antialias=True)[0]
    if preprocessing.mean is None:
        mean, std = (torch.tensor(v)[:, None, None] for v in (GREY if image.shape[0] == 1 else COLOUR))
        image = (image - mean) / std
    if image.shape[0] != input_shape[0]:
        image = image.expand(input_shape[0], -1, -1) if image.shape[0] == 1 else image.mean(0, keepdim=True)
    return preprocessing.apply(image)


def held_out(size: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Indices for training and testing of data that has no test split; always the same for a size."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    test = round(size * share)
    return order[test:].sort().values, order[:test].sort().values
