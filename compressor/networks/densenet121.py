"""DenseNet-121 with a growth of 32 (Huang et al. 2017)."""

from __future__ import annotations

from torch import nn

from compressor.networks._dense import densenet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """7.0 million parameters."""
    return densenet(in_channels, classes, image_size, (6, 12, 24, 16))
