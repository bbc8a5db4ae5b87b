"""WRN-16-10: a wide residual network of 16 layers, 10 times as wide (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import nn

from compressor.networks._residual import WideResNet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """17.1 million parameters."""
    return WideResNet(in_channels, classes, depth=16, widen=10)
