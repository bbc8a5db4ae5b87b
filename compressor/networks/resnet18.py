"""ResNet18 of the SNIP-it paper: biased 3x3 convolutions in the blocks, a hidden linear layer of 256."""

from __future__ import annotations

from torch import Tensor, nn

from compressor.networks._blocks import SLOPE, Classifier, dense

INPUT = (3, 32, 32)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual sum; a bias-free 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.LeakyReLU(SLOPE, inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut)


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """A 7x7 stem with stride 2 and max pooling, even on 32x32 images, as the authors have it."""
    stem = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    features = [stem, nn.BatchNorm2d(64), nn.LeakyReLU(SLOPE, inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width in (64, 128, 256, 512):
        features += [BasicBlock(inputs, width, 1 if width == inputs else 2), BasicBlock(width, width, 1)]
        inputs = width
    return Classifier(features, 2, [*dense(4 * 512, 256), nn.Linear(256, classes)])
