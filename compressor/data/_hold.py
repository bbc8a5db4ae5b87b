"""Images as tensors in memory, decoded once: an epoch must not wait for files."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from compressor.data._arrays import Columns
from compressor.data._images import Preprocessing, Split

Progress = Callable[[int, int], None]
CHUNK = 1000


def hold(
    split: Split,
    input_shape: tuple[int, ...],
    preprocessing: Preprocessing,
    progress: Progress = lambda *_: None,
) -> Columns:
    """All images of a split as a network takes them, `(samples, c, h, w)` float32, with their labels.

    Args:
        progress: called with the number of images read, and of all.
    Raises:
        BadInput: an image cannot be decoded, or the network takes no images.
    """
    total = len(split.labels)
    held = torch.empty(total, *input_shape)
    for chosen in torch.arange(total).split(CHUNK):
        held[chosen] = split.read(chosen, input_shape, preprocessing)
        progress(int(chosen[-1]) + 1, total)
    return Columns(held, split.labels)


def held_bytes(split: Split, input_shape: tuple[int, ...]) -> int:
    """Bytes that `hold` would take."""
    return 4 * len(split.labels) * math.prod(input_shape)
