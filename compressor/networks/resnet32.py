"""ResNet-32 for CIFAR, twice as wide as He et al. have it, as GraSP compares on."""

from __future__ import annotations

from torch import nn

from compressor.networks._residual import ResNet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """1.9 million parameters."""
    return ResNet(in_channels, classes, (32, 64, 128), (5, 5, 5))
