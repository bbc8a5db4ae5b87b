"""DenseNet-BC (Huang et al. 2017): every layer reads all before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROWTH = 32


class Layer(nn.Module):
    """Norm, ReLU, 1x1 to 128, norm, ReLU, 3x3 to 32, concatenated with the input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * GROWTH, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * GROWTH), nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, inputs + 32, h, w)
        out = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(out)))], 1)


def densenet(in_channels: int, classes: int, image_size: int, blocks: tuple[int, ...]) -> nn.Module:
    """Dense blocks with halving transitions between; images up to 64x64 have a 3x3 stem without strides."""
    width = 2 * GROWTH
    small = image_size <= 64
    stem = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False) if small else nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *([] if small else [nn.MaxPool2d(3, 2, 1)])]
    for place, count in enumerate(blocks):
        if place:
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            width //= 2
        for _ in range(count):
            layers.append(Layer(width))
            width += GROWTH
    tail = [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(*layers, *tail)
