"""ResNet-34 for 32x32 images, as in the reproduction of SNIP: shortcuts without weights."""

from __future__ import annotations

from torch import nn

from compressor.networks._residual import ResNet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """21.1 million parameters."""
    return ResNet(in_channels, classes, (64, 128, 256, 512), (3, 4, 6, 3))
