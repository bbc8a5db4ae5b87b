"""Real data for scoring and for accuracy: `digits`, folders of images, local Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from compressor.data._images import Images, Split
from compressor.errors import BadInput

__all__ = ["Images", "Samples", "Split", "Synthetic", "open_data"]


def open_data(name: str) -> Images:
    """The data set behind `--data`.

    Args:
        name: `digits`, or a folder: of class folders of images, or of parquet files in the Hugging Face layout.
    Raises:
        BadInput: no such folder, nothing readable in it, or no labelled images.
    """
    if name == "digits":
        from compressor.data._digits import digits

        return digits()
    if not Path(name).is_dir():
        raise BadInput(f"data {name}: no such folder; name a folder of class folders, of parquet files, or `digits`")
    from compressor.data._folder import folder

    return folder(Path(name))


@dataclass
class Samples:
    """Batches `(inputs (batch, c, h, w), labels (batch,))` drawn from a split, afresh at each iteration.

    Attributes:
        split: what to draw from.
        input_shape: what the images are converted to, `(c, h, w)`.
        count: samples of one iteration; all there are when the split is smaller.
        batch_size: samples of a batch.
        seed: of the shuffle; iteration n uses a shuffle of its own. None keeps the first `count` in order.
    """

    split: Split
    input_shape: tuple[int, ...]
    count: int
    batch_size: int
    seed: int | None = 0
    _iterations: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Samples of one iteration."""
        return min(self.count, len(self.split.labels))

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._iterations)
            order = torch.randperm(len(self.split.labels), generator=generator)[: self.size]
            self._iterations += 1
        for chosen in order.split(self.batch_size):
            yield self.split.read(chosen, self.input_shape), self.split.labels[chosen]


@dataclass
class Synthetic:
    """Batches of normal noise with random labels, for networks without data. What it says of accuracy is nothing."""

    input_shape: tuple[int, ...]
    classes: int
    count: int
    batch_size: int
    seed: int = 0
    _iterations: int = field(default=0, init=False)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._iterations)
        self._iterations += 1
        for start in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - start)
            x = torch.randn(size, *self.input_shape, generator=generator)
            yield x, torch.randint(self.classes, (size,), generator=generator)
