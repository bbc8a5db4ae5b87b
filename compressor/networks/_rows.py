"""A recurrent layer that reads an image row by row, as SNIP has it for sequential MNIST."""

from __future__ import annotations

from torch import Tensor, nn


class Rows(nn.Module):
    """Each row goes through a linear layer, then the recurrent one; its last output is classified."""

    def __init__(self, row: int, units: int, cell: type[nn.LSTM] | type[nn.GRU], classes: int) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Linear(row, units), cell(units, units, batch_first=True)
        self.classifier = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, channels, h, w) -> (batch, classes)
        rows = x.transpose(1, 2).flatten(2)  # (batch, h, channels * w)
        return self.classifier(self.cell(self.embedding(rows))[0][:, -1])
