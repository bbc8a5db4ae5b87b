"""What a network is trained on: the data that it is scored on, all of them, in memory where they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compressor.data import Arrays, Batches, Columns, Preprocessing, Rows, Samples, held_bytes, hold
from compressor.errors import BadInput
from compressor.model.inputs import tensors
from compressor.model.origin import origin_of
from compressor.objective.batches import Batch, call, inputs_of
from compressor.options import spelled
from compressor.sources.scoring import Source, source_for
from compressor.types.origin import Origin


@dataclass(frozen=True)
class TrainingData:
    """Data to train one network on.

    Attributes:
        source: the same data for scoring, by way of `forward`, and inputs to prove with.
        train: all samples, in memory; batches of the user's own where the data are that, or more than fits.
        test: likewise; None without any.
        colour: images that may be mirrored.
        forward: how a batch goes through the network.
    """

    source: Source
    train: Columns | Iterable[Batch]
    test: Columns | Iterable[Batch] | None
    colour: bool
    forward: Callable[[nn.Module, Batch], Any]


def training_data_for(
    model: nn.Module, named: str | None, *, loss: str = "cross-entropy", count: int = 2560, batch_size: int = 64,
    step_size: int = 512, seed: int = 0, progress: Callable[[str, int, int], None] = lambda *_: None,
) -> TrainingData:  # fmt: skip
    """Open data to train on: what `source_for` opens, all of it, images decoded once and held in memory.

    Args:
        count: samples that each event scores, in batches of `batch_size`.
        step_size: samples of a training step.
    Raises:
        BadInput: as `source_for`; and where there is no data, or batches that can be read but once.
    """
    origin = origin_of(model) or Origin(None, {})
    source = source_for(model, named, loss=loss, count=count, batch_size=batch_size, seed=seed)
    data = source.opened  # the same object: code that splits at random would split anew
    if data is None:
        raise BadInput(f"no data to train on: name some with {spelled('data')}")
    if isinstance(data, Batches):
        if isinstance(data.train, Iterator):
            raise BadInput(f"data {data.name}: is an iterator, and training reads it in every epoch; return a list or a loader")
        return TrainingData(source, data.train, data.test, False, call)
    if isinstance(data, Arrays):
        return TrainingData(source, data.train, data.test, False, call)
    shape, preprocessing = (
        origin.input_shape,
        Preprocessing.from_dict(origin.preprocessing) if origin.preprocessing else Preprocessing(),
    )
    name = origin.inputs[0].name
    forward = call if name is None else lambda network, batch: network(**{name: tensors(inputs_of(batch))[0]})
    colour = data.native[0] == 3
    if sum(held_bytes(split, shape) for split in (data.train, data.test)) > HELD_BYTES:
        remark = f"The images are read anew in each epoch: in memory they would take more than {HELD_BYTES >> 30} GiB."
        parts = [Samples(split, shape, len(split.labels), step_size, seed, preprocessing) for split in (data.train, data.test)]
        source = replace(source, train=Samples(data.train, shape, count, batch_size, seed, preprocessing))
        return TrainingData(replace(source, remarks=(*source.remarks, remark)), parts[0], parts[1], colour, forward)
    train = hold(data.train, shape, preprocessing, lambda done, total: progress("reading training images", done, total))
    test = hold(data.test, shape, preprocessing, lambda done, total: progress("reading test images", done, total))
    return TrainingData(replace(source, train=Rows(train, count, batch_size, seed)), train, test, colour, forward)


HELD_BYTES = 8 << 30
"""Images that take more than this in memory are read from their files in every epoch."""
