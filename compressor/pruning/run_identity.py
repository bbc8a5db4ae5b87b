"""What must be the same for a run to go on."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from compressor.data import Columns, Drawn
from compressor.method import Method
from compressor.model.check import architecture_of
from compressor.objective.batches import Batch
from compressor.objective.losses import Loss
from compressor.options import options_of
from compressor.pruning.course import Course
from compressor.pruning.setup import prepare
from compressor.training.fingerprint import fingerprint_of, fingerprint_of_data, loss_text
from compressor.training.recipe import Recipe


def configuration_of(
    recipe: Recipe, course: Course, model: nn.Module, data: Columns | Iterable[Batch],
    test: Columns | Iterable[Batch] | None, method: str | Method | None, sparsity: float, pruning: Mapping[str, Any],
    loss: str | Loss, scoring: Iterable[Batch] | None,
) -> dict[str, Any]:  # fmt: skip
    """What must be the same for a run to go on; the number of epochs may grow where no event depends on it."""
    numbers = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "epochs"}
    held = {
        "architecture": architecture_of(model),
        "method": "none" if method is None else str(method),
        **numbers,
        "seed": course.seed,
        "weights": fingerprint_of(model.state_dict().values()),
        "data": fingerprint_of_data(data, course.seed),
        "test data": None if test is None else fingerprint_of_data(test, course.seed),
        "threads": torch.get_num_threads(),
        "device": course.trainer.objective.device,
        "loss": loss_text(loss, course.trainer.objective.loss),
        "flip": course.trainer.flip,
        "shift": course.trainer.shift,
        **({} if course.keep_zeros else {"zeros": "trained"}),
        "samples scored": scoring.size if isinstance(scoring, Drawn) else None,
    }
    if course.pruner is not None:
        events = {str(epoch): list(numbers) for epoch, numbers in course.pruner.due.items()}
        rest = {name: str(value) for name, value in sorted(pruning.items())}
        held |= {"sparsity": sparsity, "stage": course.pruner.stage, "events": events, **rest}
    return held


def unsaid_of(method: type[Method]) -> dict[str, str]:
    """What the arguments of a pruning are that nobody gave, as a configuration holds them."""
    own = {o.name: str(o.default) for o in options_of(method)}
    return own | {p.name: str(p.default) for p in inspect.signature(prepare).parameters.values() if p.default is not p.empty}
