"""Conv6 of the SNIP-it paper: three pairs of 3x3 convolutions and three linear layers."""

from __future__ import annotations

from torch import nn

from compressor.networks._blocks import Classifier, conv, dense

INPUT = (3, 32, 32)


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """64, 128 and 256 channels, average pooling to 3x3 (appendix L)."""
    features: list[nn.Module] = []
    for width in (64, 128, 256):
        if features:
            features.append(nn.MaxPool2d(2))
        features += [*conv(in_channels, width, 3, padding=1), *conv(width, width, 3, padding=1)]
        in_channels = width
    return Classifier(features, 3, [*dense(9 * 256, 256), *dense(256, 256), nn.Linear(256, classes)])
