"""GoogLeNet (Szegedy et al. 2015) as in the reproduction of SNIP: no auxiliary heads, batch norm before every ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.networks._snip import normed

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}
SIZES = (
    (192, 64, 96, 128, 16, 32, 32), (256, 128, 128, 192, 32, 96, 64),
    (480, 192, 96, 208, 16, 48, 64), (512, 160, 112, 224, 24, 64, 64), (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64), (528, 256, 160, 320, 32, 128, 128),
    (832, 256, 160, 320, 32, 128, 128), (832, 384, 192, 384, 48, 128, 128),
)  # fmt: skip
"""Of each inception module: inputs, 1x1, before and of the 3x3, before and of the 5x5, behind the pooling."""


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pooling side by side, concatenated."""

    def __init__(self, inputs: int, one: int, before3: int, three: int, before5: int, five: int, pooled: int) -> None:
        super().__init__()
        self.one = nn.Sequential(*normed(nn.Conv2d(inputs, one, 1)))
        self.three = nn.Sequential(*normed(nn.Conv2d(inputs, before3, 1)), *normed(nn.Conv2d(before3, three, 3, padding=1)))
        self.five = nn.Sequential(*normed(nn.Conv2d(inputs, before5, 1)), *normed(nn.Conv2d(before5, five, 5, padding=2)))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), *normed(nn.Conv2d(inputs, pooled, 1)))

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, one + three + five + pooled, h, w)
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """6.0 million parameters; small images skip the stem's strides."""
    stride = 2 if image_size > 64 else 1
    layers = [*normed(nn.Conv2d(in_channels, 64, 7, stride, 3)), *([nn.MaxPool2d(3, 2, 1)] if stride == 2 else [])]
    layers += [*normed(nn.Conv2d(64, 64, 1)), *normed(nn.Conv2d(64, 192, 3, padding=1)), nn.MaxPool2d(3, 2, 1)]
    for place, sizes in enumerate(SIZES):
        layers += [Inception(*sizes), *([nn.MaxPool2d(3, 2, 1)] if place in (1, 6) else [])]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes))
