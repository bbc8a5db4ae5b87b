"""AlexNet-b of the SNIP paper: strides in place of pooling, linear layers of 2048."""

from __future__ import annotations

from torch import nn

from compressor.networks._snip import alexnet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """8.5 million parameters on 3x32x32 images (SNIP, tables 2 and 5)."""
    return alexnet(in_channels, classes, 2048)
