"""Pieces of the SNIP papers' convolutional networks: batch norm and ReLU behind every layer, no dropout."""

from __future__ import annotations

from torch import nn


def normed(layer: nn.Conv2d | nn.Linear) -> list[nn.Module]:
    """The layer, its batch norm, ReLU."""
    norm = nn.BatchNorm2d(layer.out_channels) if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d(layer.out_features)
    return [layer, norm, nn.ReLU(inplace=True)]


def alexnet(in_channels: int, classes: int, hidden: int) -> nn.Module:
    """Five convolutions of stride 2, averaged to one position; two linear layers of `hidden`."""
    widths = ((in_channels, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3))
    layers = [part for a, b, kernel in widths for part in normed(nn.Conv2d(a, b, kernel, 2, kernel // 2))]
    dense = [*normed(nn.Linear(256, hidden)), *normed(nn.Linear(hidden, hidden)), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dense)


def vgg(in_channels: int, classes: int, image_size: int, *, third_kernel: int, hidden: int) -> nn.Module:
    """Thirteen convolutions and `hidden` linear layers of 512; images beyond 32x32 start with a stride of 2."""
    layers, width = [], in_channels
    for stage, (outputs, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for place in range(count):
            kernel = third_kernel if place == 2 else 3
            stride = 2 if not stage and not place and image_size > 32 else 1
            layers += normed(nn.Conv2d(width, outputs, kernel, stride, kernel // 2))
            width = outputs
        layers.append(nn.MaxPool2d(2, 2))
    dense = [part for _ in range(hidden) for part in normed(nn.Linear(512, 512))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dense, nn.Linear(512, classes))
