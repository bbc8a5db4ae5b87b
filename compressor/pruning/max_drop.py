"""A search for the smallest network from data by name: what judges, what is measured once, and how each step is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compressor.data import Columns
from compressor.model.observe import values_of
from compressor.objective.losses import loss_named
from compressor.objective.metrics import metric_named
from compressor.objective.objective import Objective
from compressor.pruning.choice import chosen
from compressor.pruning.compress import compress
from compressor.pruning.course import Trained
from compressor.pruning.result import Result
from compressor.pruning.search import STEPS, Search, smallest
from compressor.pruning.sensitivity import sensitivity
from compressor.pruning.setup import device_of
from compressor.pruning.train import train
from compressor.pruning.unlabelled import tells_inputs
from compressor.settings import AUTO, TARGETS, Pruning, Searching
from compressor.sources.judging import judging_for
from compressor.sources.training import TrainingData
from compressor.system.files import file_sha256, staged
from compressor.system.progress import Progress
from compressor.training.fingerprint import fingerprint_of, fingerprint_of_data, loss_text
from compressor.training.recipe import fine_tuning

CURVES = "curves.json"


@dataclass(frozen=True)
class Tuning:
    """How each network of a search is trained.

    Attributes:
        epochs: of training.
        numbers: of the recipe, where they are not its own.
        portions: that the pruning is divided into.
        taught: what is learnt beside the labels, as keywords of `train`.
    """

    epochs: int
    numbers: Mapping[str, Any] = field(default_factory=dict)
    portions: int = 1
    taught: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a search came to: the result, the training that led to it, the path, and sentences for the reader."""

    result: Result
    trained: Trained | None
    search: Search
    remarks: tuple[str, ...]


def smallest_within(
    dense: nn.Module, held: TrainingData, asked: Searching, method: str, pruning: Pruning, options: Mapping[str, Any], *,
    folder: Path, loss: str = "cross-entropy", metric: str | None = None, drawn: Mapping[str, Any] | None = None,
    resume: bool = False, tuning: Tuning | None = None, progress: Progress = lambda *_: None,
) -> Found:  # fmt: skip
    """The smallest network that loses at most `asked.max_drop` points. Errors as in `smallest` and `judging_for`.

    Args:
        held: all data.
        pruning: what is asked beside a target.
        options: of the method.
        folder: where each step is kept; made when there is one.
        drawn: `count`, `batch_size` and `seed` of what is scored.
        resume: go on with the folder's steps.
        tuning: train each network.
    """
    drawn = dict(drawn or {})
    seed, unit = drawn.get("seed", 0), asked.minimise
    judging = judging_for(dense, held, asked.val_data, loss=loss, progress=progress, **drawn)
    source = judging.held.source
    known: dict[str, Any] = {
        "loss": loss, "forward": held.forward, "example_inputs": source.inputs, "seed": seed, "progress": progress, **options,
    }  # fmt: skip
    shares = _with_curves(pruning, dense, judging.held, method, folder, known)
    trainings: dict[float, Trained] = {}
    option = next(name for name, counted in TARGETS.items() if counted == unit)

    def attempt(keep: float) -> Result:
        target: dict[str, Any] = {option: keep}
        aimed = replace(shares, **target)
        if tuning is None:
            return compress(dense, method, source.train, pruning=aimed, **known)
        folder.mkdir(exist_ok=True)
        count = len(judging.held.train) if isinstance(judging.held.train, Columns) else None
        trained = trainings[keep] = train(
            dense, judging.held.train, fine_tuning(tuning.epochs, count, dict(tuning.numbers)), test=held.test,
            scoring=source.train, metric=metric, colour=held.colour, method=method, stage="before",
            pruning=aimed, portions=tuning.portions, folder=folder / f"{keep:g}", resume=True, **tuning.taught, **known,
        )  # fmt: skip
        assert trained.pruning is not None
        return trained.pruning

    judge = Objective(judging.batches, loss_named(loss), held.forward, device_of(dense), metric=metric_named(metric))
    identity = {
        "network": _content(dense), "method": method, "options": dict(options), "pruning": asdict(pruning), **drawn,
        "training": None if tuning is None else _identity(tuning), "loss": loss_text(loss, loss_named(loss)),
        "judged_by": metric,
        "data": fingerprint_of_data(judging.held.train, seed), "val_data": fingerprint_of_data(judging.batches, seed),
        "curves": None if shares.sensitivity is None else file_sha256(Path(shares.sensitivity)),
    }  # fmt: skip
    result, search = smallest(
        dense, attempt, judge, asked.max_drop or 0.0, unit, folder=folder, resume=resume,
        identity=json.loads(json.dumps(identity, default=str)), minutes=asked.max_minutes, progress=progress,
    )  # fmt: skip
    trained = None if search.best is None else trainings.get(search.best.keep)
    return Found(result, trained, search, judging.remarks)


def _content(model: nn.Module) -> str:
    return fingerprint_of(values_of(model).values())


def _identity(tuning: Tuning) -> dict[str, Any]:
    """What tells a search with this training from others."""
    taught = {name: _content(value) if isinstance(value, nn.Module) else value for name, value in tuning.taught.items()}
    return {"epochs": tuning.epochs, **tuning.numbers, "portions": tuning.portions, **taught}


def _with_curves(
    pruning: Pruning, model: nn.Module, held: TrainingData, method: str, folder: Path, known: Mapping[str, Any]
) -> Pruning:
    """What is asked of each step, with the curves that it allocates by: they are measured once, and kept in the folder."""
    data, by_measuring = held.source.train, pruning.allocate == "sensitivity"
    if method == AUTO:
        shown = partial(tells_inputs, model, data, held.forward, device_of(model))
        by_measuring = chosen(model, pruning, True, measurable=shown)[1].allocate == "sensitivity"
    if not by_measuring or pruning.sensitivity is not None:
        return pruning
    path = folder / CURVES
    if not (path.exists() and (folder / STEPS).exists()):  # else they are this search's own
        found = sensitivity(model, data, method, pruning=pruning, **known)
        folder.mkdir(exist_ok=True)
        with staged(path) as [file]:
            file.write_text(json.dumps(found.as_dict(), indent=1), encoding="utf-8")
    return replace(pruning, sensitivity=str(path), allocate=None)
