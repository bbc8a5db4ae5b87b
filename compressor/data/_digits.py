"""`digits`: scikit-learn's 1,797 real handwritten digits of 8x8 pixels, embedded in that library."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.data._images import Images, Split, held_out


def digits() -> Images:
    """The digits, a fifth of them held out for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (torch.from_numpy(pixels) / 16).float().reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()

    def part(indices: Tensor) -> Split:
        return Split(targets[indices], lambda chosen: list(images[indices[chosen]]))

    train, test = held_out(len(targets))
    return Images("digits", 10, part(train), part(test), (1, 8, 8))
