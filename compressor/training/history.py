"""What an epoch came to: rows of a table, as text that any tool reads."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Row:
    """One epoch.

    Attributes:
        epoch: counted from 1.
        steps: of the optimizer.
        lr: learning rate.
        train_loss: mean over the samples, as they were trained on.
        train_accuracy: likewise; None where targets are not one label per sample.
        penalty: mean of what a method added to the loss.
        test_loss: after the epoch, on all test samples; None without any.
        test_accuracy: likewise.
        node_sparsity: while the epoch ran.
        weight_sparsity: likewise.
        macs: of one sample, inference.
        train_seconds: of the steps alone.
        seconds: of everything since the previous row: events, steps, evaluation.
    """

    epoch: int
    steps: int
    lr: float
    train_loss: float
    train_accuracy: float | None
    penalty: float
    test_loss: float | None
    test_accuracy: float | None
    node_sparsity: float
    weight_sparsity: float
    macs: int
    train_seconds: float
    seconds: float


def write_history(rows: Sequence[Row], path: Path) -> None:
    """As CSV, to exactly this file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in dataclasses.fields(Row)])
        writer.writerows(["" if v is None else v for v in dataclasses.astuple(row)] for row in rows)


def read_history(path: Path) -> list[Row]:
    """What `write_history` wrote."""
    kinds = {name: int if hint is int else float for name, hint in get_type_hints(Row).items()}
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [
            {k: None if v == "" else kinds[k](v) for k, v in row.items()} for row in csv.DictReader(file)
        ]
    return [Row(**row) for row in rows]
