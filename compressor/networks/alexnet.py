"""AlexNet of the SNIP-it paper: five convolutions and three wide linear layers."""

from __future__ import annotations

from torch import nn

from compressor.networks._blocks import Classifier, conv, dense

INPUT = (3, 32, 32)


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """Kernels 5, 5, 3, 3, 3; overlapping max pooling after the first two (appendix L)."""
    features = [
        *conv(in_channels, 64, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *conv(64, 192, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, padding=1),
        *conv(384, 256, 3, padding=1),
        *conv(256, 512, 3, padding=1),
    ]
    return Classifier(features, 2, [*dense(4 * 512, 4096), *dense(4096, 4096), nn.Linear(4096, classes)])
