"""MLP5 of the SNIP-it paper: four hidden layers of 512."""

from __future__ import annotations

from torch import nn

from compressor.networks._blocks import dense

INPUT = (1, 28, 28)


def make(in_channels: int, classes: int, image_size: int) -> nn.Module:
    """Linear, batch norm, LeakyReLU and dropout, four times, then the output layer (appendix L)."""
    hidden = [layer for n in range(4) for layer in dense(in_channels * image_size**2 if n == 0 else 512, 512)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, classes))
