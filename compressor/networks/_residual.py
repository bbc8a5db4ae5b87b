"""Residual networks of the SNIP papers: WRN, ResNet-34 and ResNet-32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PreActivation(nn.Module):
    """Two 3x3 convolutions, each behind its norm and ReLU; a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)
        active = torch.relu(self.norm1(x))
        out = self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-widen: three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen` channels."""

    def __init__(self, in_channels: int, classes: int, depth: int, widen: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        blocks, width = [], 16
        for stage in range(3):
            for block in range((depth - 4) // 6):
                outputs = 16 * widen * 2**stage
                blocks.append(PreActivation(width, outputs, 2 if stage and not block else 1))
                width = outputs
        self.blocks, self.norm, self.classifier = nn.Sequential(*blocks), nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, in_channels, h, w) -> (batch, classes)
        return self.classifier(torch.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class Basic(nn.Module):
    """Two 3x3 convolutions around a sum with the input.

    Where the width changes, that is thinned out and padded with zeros, or projected by a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.shortcut = stride, None
        if projected and inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)
        out = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None:
            return torch.relu(out + self.shortcut(x))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        missing = out.shape[1] - shortcut.shape[1]
        return torch.relu(out + (F.pad(shortcut, (0, 0, 0, 0, 0, missing)) if missing else shortcut))


class ResNet(nn.Module):
    """A 3x3 stem and stages of basic blocks, as for 32x32 images (He et al. 2016, option A, or B where `projected`)."""

    def __init__(
        self, in_channels: int, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...], projected: bool = False
    ) -> None:
        super().__init__()
        stages, width = [], widths[0]
        self.stem, self.norm = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        for stage, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stages.append(Basic(width, outputs, 2 if stage and not block else 1, projected))
                width = outputs
        self.blocks, self.classifier = nn.Sequential(*stages), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, in_channels, h, w) -> (batch, classes)
        return self.classifier(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))
