"""VGG16 of the SNIP-it paper: 13 convolutions, the last with 1,024 channels, and three wide linear layers."""

from __future__ import annotations

from torch import nn

from compressor.networks._blocks import Classifier, conv, dense

INPUT = (3, 32, 32)
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 1024))


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """Max pooling between the stages, average pooling to 2x2 after the last (appendix L)."""
    features: list[nn.Module] = []
    for stage in STAGES:
        if features:
            features.append(nn.MaxPool2d(2))
        for width in stage:
            features += conv(in_channels, width, 3, padding=1)
            in_channels = width
    return Classifier(features, 2, [*dense(4 * 1024, 4096), *dense(4096, 4096), nn.Linear(4096, classes)])
