"""LeNet-300-100 of the SNIP paper: two hidden layers of 300 and 100."""

from __future__ import annotations

from torch import nn

INPUT = (1, 28, 28)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """266,610 parameters on 28x28 images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 300),
        nn.ReLU(inplace=True),
        nn.Linear(300, 100),
        nn.ReLU(inplace=True),
        nn.Linear(100, classes),
    )
