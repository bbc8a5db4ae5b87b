"""LeNet-5-Caffe of the SNIP paper: two 5x5 convolutions and a hidden layer of 500."""

from __future__ import annotations

from torch import nn

INPUT = (1, 28, 28)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """431,080 parameters on 28x28 images."""
    left = ((image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * left * left, 500),
        nn.ReLU(inplace=True),
        nn.Linear(500, classes),
    )
