"""SqueezeNet with simple bypass (Iandola et al. 2016), as in the reproduction of SNIP: without dropout."""

from __future__ import annotations

from torch import nn

from compressor.networks._squeeze import SqueezeNet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """741 thousand parameters."""
    return SqueezeNet(in_channels, classes, bypass=True)
