"""ResNet-20 for CIFAR (He et al. 2016), its shortcuts projected where the width changes."""

from __future__ import annotations

from torch import nn

from compressor.networks._residual import ResNet

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """0.27 million parameters, 41 million multiply-adds."""
    return ResNet(in_channels, classes, (16, 32, 64), (3, 3, 3), projected=True)
