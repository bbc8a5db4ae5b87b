"""A weight that two layers share is one weight, whoever counts it."""

from __future__ import annotations

import torch
from torch import nn

from compressor import compress
from compressor.model.weights import maskable, weight_matrices


class Tied(nn.Module):
    """Two layers with one weight, behind a layer of their own and before another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other, self.head = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 4)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.head(torch.relu(self.other(torch.relu(self.one(torch.relu(self.stem(x)))))))


def test_masks_costs_and_reports_agree() -> None:
    model = Tied()
    assert len(weight_matrices(model)) == len(maskable(model)) == 3
    batches = [(torch.randn(16, 6), torch.randint(4, (16,)))]
    summary = compress(model, "magnitude", batches, sparsity=0.5, unit="weight").summary
    assert summary.before.weights == 6 * 10 + 10 * 10 + 10 * 4
    assert summary.weights.total == summary.before.weights
    assert summary.weight_sparsity >= summary.weights.reached == 0.5
    alive = summary.weights.effective
    assert summary.after.weights == alive
