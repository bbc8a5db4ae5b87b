"""VGG19 for CIFAR, as GraSP compares on: sixteen convolutions with batch norms and one linear layer."""

from __future__ import annotations

from torch import nn

from compressor.networks._snip import normed

INPUT = (3, 32, 32)
INITIALISATION = {"weights": "glorot"}


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """20.0 million parameters."""
    layers: list[nn.Module] = []
    width = in_channels
    for stage, (outputs, count) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))):
        layers += [nn.MaxPool2d(2, 2)] if stage else []
        for _ in range(count):
            layers += normed(nn.Conv2d(width, outputs, 3, padding=1, bias=False))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
