"""Noise in place of data, and inputs that fit a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.data import epoch_seed
from compressor.errors import BadInput, WrongUsage, first_line
from compressor.model.inputs import Inputs
from compressor.model.origin import origin_of
from compressor.options import spelled
from compressor.types.origin import InputSpec, Origin


def noise_remark() -> str:
    """That there is no data."""
    return f"No data was given, so synthetic noise was used: name real data with {spelled('data')}."


PROOF_SAMPLES = 64


def noise_like(specs: tuple[InputSpec, ...], samples: int, generator: torch.Generator, highest: int = 2) -> Inputs:
    """Random inputs: normal floats, integers below `highest`."""
    try:
        parts = [_random(spec, samples, generator, highest) for spec in specs]
    except (RuntimeError, MemoryError, OverflowError) as error:
        text = ", ".join(map(str, specs))
        raise BadInput(f"an input of {text} for {samples} samples does not fit in memory ({first_line(error)})") from error
    if all(spec.name for spec in specs):
        return {str(spec.name): part for spec, part in zip(specs, parts, strict=True)}
    return tuple(parts)


def example_of(model: nn.Module, samples: int = PROOF_SAMPLES, seed: int = 0) -> Inputs:
    """Noise that fits a loaded network's inputs.

    Raises:
        BadInput: they are not known.
    """
    specs = known_inputs(origin_of(model) or Origin(None, {})).inputs
    return noise_like(specs, samples, torch.Generator().manual_seed(seed), vocabulary_of(model))


def known_inputs(origin: Origin) -> Origin:
    if not origin.inputs:
        raise BadInput(
            f"the network's input shape is not known; add {spelled('inputs', '3x224x224')} (channels, height, width, without "
            "the batch)"
        )
    if len({bool(spec.name) for spec in origin.inputs}) > 1:
        raise WrongUsage(f"{spelled('inputs')}: name all inputs or none")
    names = [spec.name for spec in origin.inputs if spec.name]
    if len(set(names)) < len(names):
        raise WrongUsage(f"{spelled('inputs')}: {max(names, key=names.count)} is named twice")
    return origin


@dataclass
class Noise:
    """Batches of noise with random targets that fit a loss, for networks without data. What it says of accuracy is nothing.

    Attributes:
        specs: the network's inputs.
        vocabulary: integers are below it.
        outputs: shape of the network's output for one sample.
        loss: name of the loss that the targets are for.
        count: samples of one epoch, in batches of `batch_size`.
    """

    specs: tuple[InputSpec, ...]
    vocabulary: int
    outputs: tuple[int, ...]
    loss: str
    count: int
    batch_size: int
    seed: int = 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The batches of one epoch, counted from 0; each epoch's are its own."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        for start in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - start)
            inputs = noise_like(self.specs, size, generator, self.vocabulary)
            yield inputs, self._targets(size, generator)

    def _targets(self, size: int, generator: torch.Generator) -> Tensor:
        if self.loss == "mse":
            return torch.randn(size, *self.outputs, generator=generator)
        if self.loss == "bce":
            return torch.randint(2, (size, *self.outputs), generator=generator).float()
        return torch.randint(self.outputs[0], (size, *self.outputs[1:]), generator=generator)


def vocabulary_of(model: nn.Module) -> int:
    """What integers must stay below, for the smallest embedding has so many rows."""
    return min((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=2)


def _random(spec: InputSpec, samples: int, generator: torch.Generator, highest: int) -> Tensor:
    shape, dtype = (samples, *spec.shape), getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(2 if dtype == torch.bool else highest, shape, generator=generator).to(dtype)
