"""WRN-16-8: a wide residual network of 16 layers, 8 times as wide (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import nn

from compressor.networks._residual import WideResNet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """11.0 million parameters."""
    return WideResNet(in_channels, classes, depth=16, widen=8)
