"""Training, with pruning before it, during it, after it, or not at all; a run that was killed goes on where it stopped."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.data import Columns, Rows, own_randomness
from compressor.errors import BadInput, CompressError, WrongUsage, first_line
from compressor.method import Method
from compressor.model.check import check_weights
from compressor.model.inputs import Inputs
from compressor.model.origin import planned_masks
from compressor.model.precision import working_copy
from compressor.objective.batches import Batch, call
from compressor.objective.losses import Loss, loss_named
from compressor.objective.metrics import Metric, metric_named
from compressor.objective.objective import Objective, Quality, evaluate
from compressor.options import declares, divided, spelled
from compressor.pruning.choice import chosen, state_of
from compressor.pruning.course import Course, Trained
from compressor.pruning.facts import Note
from compressor.pruning.in_training import InTraining
from compressor.pruning.run_identity import identity_of, of_before, unsaid_of
from compressor.pruning.setup import device_of, example_for, prepare, settings_of
from compressor.pruning.unlabelled import tells_inputs
from compressor.settings import AUTO, DENSE, Budget, Pruning, Teaching, Timing, refuse_without_method, refuse_without_teacher
from compressor.system.progress import Progress
from compressor.training.history import Row
from compressor.training.recipe import Recipe
from compressor.training.run import OF_DAMAGE, STATE, Run
from compressor.training.teacher import Teacher
from compressor.training.trainer import Trainer

SCORED = 2560
"""Samples that each event scores, where the data leave it open."""


@declares(Timing, Pruning, Teaching)
def train(
    model: nn.Module,
    data: Columns | Iterable[Batch],
    recipe: Recipe | None = None,
    *,
    test: Columns | Iterable[Batch] | None = None,
    method: str | Method | None = None,
    pruning: Pruning | None = None,
    budget: Budget | None = None,
    scoring: Iterable[Batch] | None = None,
    loss: str | Loss = "cross-entropy",
    metric: str | Metric | Callable[[Any, Batch], Any] | None = None,
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    colour: bool = False,
    teacher: nn.Module | str | None = None,
    keep_zeros: bool = True,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Progress = lambda *_: None,
    on_epoch: Callable[[Row], None] = lambda _: None,
    **asked: Any,
) -> Trained:
    """Train a copy of `model`; with a method, nodes or weights go on the way, and the optimizer's moments go with them.

    Args:
        model: any network; intact afterwards. In a network in train mode, a module in eval mode, such as a batch norm of a
            frozen part, stays in that.
        data: columns, which are shuffled and batched as the recipe says, or batches to be read anew in each epoch.
        recipe: numbers of epochs, samples of a batch and all that; the SNIP-it paper's by default.
        test: looked at after each epoch.
        method: which nodes or weights go, `auto` as in `compress`; without one, the network is only trained.
        pruning: all that is asked of the pruning in one hand; `budget` one of its targets as an object, see `compress`.
        scoring: batches that the method scores; 2,560 samples of `data` where that is columns, else `data`.
        metric: what networks are judged by beside the loss: a name, a callable of (outputs, batch), or a `Metric`.
        colour: the images are in colour, see the recipe's `flip` and `shift`.
        teacher: a network of the same outputs that is learnt from beside the labels, or `dense`, which is `model` itself;
            `temperature` and `teacher_share` say how.
        keep_zeros: weights that are zero beside other values stay zero, as those of masked networks must; without it they are
            trained, as an initialisation that has zeros wants, such as the identity. For training without a method only.
        seed: of shuffles, dropout, and a method's own draws. The same seed gives the same weights on the same machine.
        folder: where the run keeps its state and its history after every epoch.
        resume: go on where the folder's run stopped; from the start if there is none.
        on_epoch: called after each.
        ...: OWNERS
        options: the method's options, such as `steps=5`.
    Raises:
        Diverged: the loss is no longer finite; the folder holds the last good epoch.
        CompressError: one of its kinds; the message is one line with what to do.
    """
    recipe = recipe or Recipe()
    when, rest = divided(asked, Timing)
    how, rest = divided(rest, Teaching)
    teaching = Teaching(**how)
    if teacher is None:
        refuse_without_teacher(how)
    timing = Timing(**when)
    settings, options = settings_of(pruning, rest, budget=budget)
    told: list[Note] = []
    forgiving = method == AUTO and settings.repair is None
    if method == AUTO:
        scored = _to_score(data, seed) if scoring is None else scoring
        method, settings, why = chosen(
            model, settings, True, lambda: _quality(model, test, loss, forward, seed),
            lambda: tells_inputs(model, scored, forward, device_of(model)),
        )  # fmt: skip
        told.append(why)
    if method is None:
        refuse_without_method(
            [*(name for name in asked if name not in how), *(["pruning"] if pruning else []), *(["budget"] if budget else [])]
        )
    elif not keep_zeros:
        raise WrongUsage(
            "zeros are trained without a method only, which counts them as gone: train the network first, then prune"
        )
    if not keep_zeros and planned_masks(model):
        raise WrongUsage(
            f"zeros of a network that was masked here belong to its plan: they stay; leave out {spelled('keep_zeros', False)}"
        )
    mine = copy.deepcopy(model)
    with own_randomness(data), own_randomness(scoring):
        objective = Objective((), loss_named(loss), forward, device_of(model), seed)
        epochs = _batches(data, recipe.batch_size, seed, objective.device)
        tests = None if test is None else _batches(test, recipe.batch_size, None, objective.device)
        pruner: InTraining | None = None
        if method is None:
            check_weights(mine)
            objective.data = epochs
            objective.example = example_for(objective, example_inputs)
            dense = working_copy(mine, objective.example)
        else:
            setup = prepare(
                mine, method, _to_score(data, seed) if scoring is None else scoring, settings, options, loss=loss,
                forward=forward, example_inputs=example_inputs, seed=seed, progress=progress,
            )  # fmt: skip
            setup.notes[:0] = told
            pruner = InTraining(setup, timing, recipe.epochs, forgiving)
            objective = dataclasses.replace(setup.events.objective, data=epochs)
            dense = pruner.state.model
        still = [name for name, module in model.named_modules() if model.training and not module.training]
        taught = None
        if teacher is not None:
            if isinstance(teacher, str) and teacher != DENSE:
                raise WrongUsage(f"{spelled('teacher', teacher)}: give a network, or {DENSE!r}")
            its = copy.deepcopy(model if isinstance(teacher, str) else teacher)
            of_teacher = working_copy(its, objective.example_inputs()).eval().requires_grad_(False)
            taught = Teacher(of_teacher, teaching.temperature, teaching.teacher_share, objective.forward)
        objective.metric = metric_named(metric)
        trainer = Trainer(dense, recipe, objective, recipe.flips(colour), recipe.shifts(colour), still, taught)
        judge = pruner is not None and state_of(model, settings.state).state == "trained"
        course = Course(trainer, pruner, epochs, tests, seed, progress, keep_zeros, judge)
        if folder is None:
            return _run_through(course, None, recipe.epochs, model, on_epoch)
        identity = identity_of(recipe, course, model, data, test, method, loss, scoring)
        run = Run(Path(folder), identity, unsaid_of(None if pruner is None else type(pruner.events.method)), of_before)
        run.check_place()
        with run.alone():
            _begin(run, course, resume)
            return _run_through(course, run, recipe.epochs, model, on_epoch)


def _quality(
    model: nn.Module, test: Columns | Iterable[Batch] | None, loss: str | Loss, forward: Callable[[nn.Module, Batch], Any],
    seed: int,
) -> Quality | None:  # fmt: skip
    """How well a network does before it is trained, where there are test data that say so."""
    if test is None:
        return None
    device = device_of(model)
    with own_randomness(test), suppress(CompressError):
        return evaluate(model, Objective(_batches(test, JUDGED, None, device), loss_named(loss), forward, device, seed))
    return None


JUDGED = 256
"""Samples that are judged together."""


def _begin(run: Run, course: Course, resume: bool) -> None:
    """Go on where the folder's run stopped, if that is asked and there is one.

    Raises:
        BadInput: there is one and that is not asked; or its state is damaged.
    """
    if not resume:
        run.check_new()
    elif (held := run.saved()) is not None:
        try:
            course.restore(held)
        except (*OF_DAMAGE, CompressError) as error:
            raise BadInput(
                f"{run.folder / STATE}: damaged, it holds something else than this run ({type(error).__name__}: "
                f"{first_line(error)}); remove it to begin anew"
            ) from error
        if run.fell_back is not None:
            course.told.append(f"{run.fell_back}.")


def _run_through(
    course: Course, run: Run | None, epochs: int, model: nn.Module, on_epoch: Callable[[Row], None]
) -> Trained:  # fmt: skip
    """The epochs that are left, each kept; and what comes at the end."""
    if len(course.rows) > epochs:
        raise BadInput(f"the run did {len(course.rows)} epochs already, {epochs} were asked for; give as many or more")
    for epoch in range(len(course.rows), epochs):
        course.one(epoch)
        on_epoch(course.rows[-1])
        if run is not None:
            run.keep(epoch + 1, epochs, course.content(), course.rows)
    return course.finish(model, epochs)


def _batches(data: Columns | Iterable[Batch], batch_size: int, seed: int | None, device: str) -> Iterable[Batch]:
    """Batches of an epoch; columns are put on the device and drawn from by a shuffle of each epoch's own.

    Raises:
        BadInput: batches that can be read but once.
    """
    if isinstance(data, Columns):
        columns = Columns(data.inputs.to(device), data.targets.to(device))
        return Rows(columns, len(columns), batch_size, seed)
    if iter(data) is data:
        raise BadInput("an iterator gives its batches once, and training reads them in every epoch; give a list or a loader")
    return data


def _to_score(data: Columns | Iterable[Batch], seed: int) -> Iterable[Batch]:
    return Rows(data, SCORED, 64, seed) if isinstance(data, Columns) else data
