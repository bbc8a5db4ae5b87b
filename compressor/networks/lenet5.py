"""LeNet5 of the SNIP-it paper, with batch norm and LeakyReLU."""

from __future__ import annotations

from torch import nn

from compressor.networks._blocks import Classifier, conv, dense

INPUT = (1, 28, 28)


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """Three 5x5 convolutions of 6, 16 and 120 channels, average pooling to 3x3 (appendix L)."""
    features = [
        *conv(in_channels, 6, 5, padding=2),
        nn.MaxPool2d(2),
        *conv(6, 16, 5),
        nn.MaxPool2d(2),
        *conv(16, 120, 5),
    ]
    return Classifier(features, 3, [*dense(9 * 120, 84), nn.Linear(84, classes)])
