"""What must be the same for a run to go on."""

from __future__ import annotations

import ast
import dataclasses
import re
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
from compressor.settings import TARGETS, Budget, Pruning
from compressor.training.fingerprint import fingerprint_of, fingerprint_of_data, loss_text
from compressor.training.recipe import Recipe


def identity_of(
    recipe: Recipe, course: Course, model: nn.Module, data: Columns | Iterable[Batch],
    test: Columns | Iterable[Batch] | None, method: str | Method | None, loss: str | Loss, scoring: Iterable[Batch] | None,
) -> dict[str, Any]:  # fmt: skip
    """What must be the same for a run to go on; the number of epochs may grow where no event and no rate depends on it."""
    numbers = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "epochs"}
    held = {
        "architecture": architecture_of(model),
        "method": "none" if method is None else str(method),
        **numbers,
        **({"epochs": recipe.epochs} if recipe.schedule == "cosine" else {}),
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
    if (teacher := course.trainer.teacher) is not None:
        held["teacher"] = fingerprint_of(teacher.network.state_dict().values())
        held |= {"temperature": teacher.temperature, "teacher_share": teacher.share}
    if course.pruner is not None:
        events = {str(epoch): list(numbers) for epoch, numbers in course.pruner.due.items()}
        own = course.pruner.events.method
        options = {o.name: str(getattr(own, o.name)) for o in options_of(type(own))} if isinstance(method, str) else {}
        asked = course.pruner.events.aim.settings
        held |= {**options, **_texts(asked), "sparsity": asked.share, "stage": course.pruner.stage, "events": events}
    return held


def _texts(settings: Pruning) -> dict[str, str]:
    """What is asked of a pruning, as text; a target as the number that it is, however it was written."""
    budget = settings.budget
    targets = {name: str(budget.keep) for name, unit in TARGETS.items() if budget is not None and unit == budget.unit}
    return {o.name: str(getattr(settings, o.name)) for o in options_of(Pruning)} | targets


def unsaid_of(method: type[Method] | None) -> dict[str, Any]:
    """What the options of a training, and of its pruning, are that a kept run does not name: those that came later."""
    owners = () if method is None else (method, Pruning)
    numbers = {o.name: o.default for o in options_of(Recipe)}
    return numbers | {o.name: str(o.default) for owner in owners for o in options_of(owner)}


def of_before(kept: Mapping[str, Any]) -> dict[str, Any]:
    """A run's identity as it was kept until 0.1, in today's names: a budget was an object, lists were of both kinds."""
    held = dict(kept)
    budget = re.fullmatch(r"Budget\(unit='(\w+)', keep=(.+)\)", str(held.pop("budget", None)))
    if budget is not None:
        held |= {name: str(Budget(unit, float(budget[2])).keep) for name, unit in TARGETS.items() if unit == budget[1]}
        held["sparsity"] = 0.0
    for name in ("freeze", "only"):
        if name in held:
            held[name] = str(tuple(ast.literal_eval(held[name])))
    return held
