"""What a search judges by: data that neither train a network nor report how well it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from compressor.data import Columns, Rows
from compressor.errors import BadInput, WrongUsage
from compressor.objective.batches import Batch
from compressor.options import spelled
from compressor.sources.training import TrainingData, training_data_for
from compressor.system.progress import Progress

ASIDE, MOST = 5, 10_000
"""One training sample in so many is kept aside, and no more than that."""

BATCH, PIECES = 128, 32
"""Samples of a batch at most; fewer where there would not be so many batches, of which a metric may have a value each."""


@dataclass(frozen=True)
class Judging:
    """Data to judge by.

    Attributes:
        held: the data to train, score and report on: without what is judged by.
        batches: read from the start at each use.
        name: of the data that judge.
        remarks: sentences for the reader.
    """

    held: TrainingData
    batches: Iterable[Batch]
    name: str
    remarks: tuple[str, ...] = ()


def judging_for(
    model: nn.Module, held: TrainingData, named: str | None, *, loss: str = "cross-entropy", count: int = 2560,
    batch_size: int = 64, seed: int = 0, progress: Progress = lambda *_: None,
) -> Judging:  # fmt: skip
    """The test part of the data that are named for it; else a part of the training data, which is kept aside.

    Args:
        held: all data; arguments behind it as in `training_data_for`.
    Raises:
        WrongUsage: the data that are named report the result.
        BadInput: there is no test part, or nothing that could be kept aside.
    """
    if named is not None:
        if named == held.source.name:
            raise WrongUsage(
                f"{spelled('val_data', named)} is what the report tests on, and would decide; leave it out, and a part of the "
                "training data is kept aside"
            )
        found = training_data_for(model, named, loss=loss, seed=seed, progress=progress).test
        if found is None:
            raise BadInput(f"data {named} has no test part to judge by")
        return Judging(held, _whole(found), named)
    if not isinstance(held.train, Columns):
        raise BadInput(f"nothing of {held.source.name} can be kept aside to judge by: give {spelled('val_data', 'DATA')}")
    order = torch.randperm(len(held.train), generator=torch.Generator().manual_seed(seed))
    number = min(MOST, max(1, len(order) // ASIDE))
    aside, rest = (
        Columns(held.train.inputs[part], held.train.targets[part]) for part in (order[:number], order[number:].sort()[0])
    )
    source = replace(held.source, train=Rows(rest, count, batch_size, seed))
    remark = (
        f"Judged by {number:,} training samples that were kept aside: a network does better on samples that it was trained on "
        f"before, and its drop on them is not its drop on new ones; {spelled('val_data', 'DATA')} judges by others."
    )
    return Judging(replace(held, train=rest, source=source), _whole(aside), held.source.name, (remark,))


def _whole(data: Columns | Iterable[Batch]) -> Iterable[Batch]:
    return Rows(data, len(data), max(1, min(BATCH, len(data) // PIECES)), None) if isinstance(data, Columns) else data
