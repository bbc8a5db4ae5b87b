"""Pieces that several of the paper's networks share: LeakyReLU of slope 0.05, dropout 0.3, batch norm everywhere."""

from __future__ import annotations

from torch import Tensor, nn

SLOPE = 0.05
DROPOUT = 0.3


def conv(inputs: int, outputs: int, kernel: int, *, padding: int = 0) -> list[nn.Module]:
    """Convolution of stride 1 with bias, batch norm, LeakyReLU."""
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE, inplace=True)]


def dense(inputs: int, outputs: int) -> list[nn.Module]:
    """Linear, batch norm, LeakyReLU, dropout."""
    return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU(SLOPE, inplace=True), nn.Dropout(DROPOUT)]


class Classifier(nn.Module):
    """Features `(batch, channels, h, w)`, pooled, flattened, classified.

    Args:
        features: convolutional part.
        pooled: height and width that the map is averaged to.
        classifier: part on the flattened map; dropout goes before it.
    """

    def __init__(self, features: list[nn.Module], pooled: int, classifier: list[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:  # (batch, channels, h, w) -> (batch, classes)
        return self.classifier(self.dropout(self.pool(self.features(x)).flatten(1)))
