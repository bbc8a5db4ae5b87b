"""SqueezeNet: Fire modules, which squeeze to few channels and expand by 1x1 and 3x3 convolutions side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """1x1 to `squeezed`, then 1x1 and 3x3 to `expanded` each, concatenated."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one, self.three = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, 2 * expanded, h, w)
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.one(x), self.three(x)], 1))


class SqueezeNet(nn.Module):
    """Eight Fire modules; with `bypass`, every second one is added to its input."""

    def __init__(self, in_channels: int, classes: int, bypass: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 96, 7, 2, 3)
        sizes = ((96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128))
        deep = ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256))
        self.fires = nn.ModuleList(Fire(*size) for size in (*sizes, *deep))
        self.pool, self.classifier, self.bypass = nn.MaxPool2d(3, 2), nn.Conv2d(512, classes, 1), bypass

    def forward(self, x: Tensor) -> Tensor:  # (batch, in_channels, h, w) -> (batch, classes)
        x = self.pool(torch.relu(self.stem(x)))
        for place, fire in enumerate(self.fires):
            x = fire(x) + x if self.bypass and place % 2 else fire(x)
            x = self.pool(x) if place in (2, 6) else x
        return torch.relu(self.classifier(x)).mean((2, 3))
