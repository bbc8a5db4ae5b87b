"""Training, with pruning before it, during it, after it, or not at all; a run that was killed goes on where it stopped."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.connectivity import paths
from compressor.cost import count, weights_of
from compressor.coupling import structure
from compressor.data import Columns, Drawn, Rows, own_randomness
from compressor.dead import steady
from compressor.errors import BadInput, UnsupportedNetwork, WrongUsage
from compressor.events import Progress
from compressor.inputs import Inputs
from compressor.masked import over_channels
from compressor.method import Method
from compressor.objective import Batch, Loss, Objective, Quality, call, evaluate, loss_named
from compressor.options import options_of
from compressor.pipeline import architecture_of, check_weights, device_of, example_for, prepare
from compressor.precision import as_it_came, working_copy
from compressor.pruner import Pruner, training_macs
from compressor.recipe import Recipe
from compressor.schedule import Stage
from compressor.state import planned_masks, put_values, values_of
from compressor.summary import Result
from compressor.training import Row, Trainer
from compressor.training.fingerprint import fingerprint_of, fingerprint_of_data, loss_text
from compressor.training.run import Run
from compressor.training.trainer import Seen
from compressor.types import Structure
from compressor.weights import maskable, present, unset

SCORED = 2560
"""Samples that each event scores, where the data leave it open."""


@dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes:
        model: the network, small where it was pruned.
        history: a row for each epoch.
        recipe: what it was trained by.
        stage: when it was pruned; None without a method.
        quality: on the test data, at the end; None without any.
        pruning: what the pruning did; None without a method.
        notes: sentences for the reader.
        macs: multiply-adds of the whole run: forward and backward of every sample, and of every sample scored.
        seconds: of all epochs and events.
    """

    model: nn.Module
    history: tuple[Row, ...]
    recipe: Recipe
    stage: Stage | None
    quality: Quality | None
    pruning: Result | None
    macs: int
    seconds: float
    notes: tuple[str, ...] = ()


def train(
    model: nn.Module,
    data: Columns | Iterable[Batch],
    recipe: Recipe | None = None,
    *,
    test: Columns | Iterable[Batch] | None = None,
    method: str | Method | None = None,
    sparsity: float = 0.5,
    stage: Stage | None = None,
    interval: int | None = None,
    prune_at: int | None = None,
    scoring: Iterable[Batch] | None = None,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    colour: bool = False,
    keep_zeros: bool = True,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Progress = lambda *_: None,
    on_epoch: Callable[[Row], None] = lambda _: None,
    **pruning: Any,
) -> Trained:
    """Train a copy of `model`; with a method, nodes or weights go on the way, and the optimizer's moments go with them.

    Args:
        model: any network; intact afterwards. In a network in train mode, a module in eval mode, such as a batch norm of a
            frozen part, stays in that.
        data: columns, which are shuffled and batched as the recipe says, or batches to be read anew in each epoch.
        recipe: numbers of epochs, samples of a batch and all that; the SNIP-it paper's by default.
        test: looked at after each epoch.
        method: which nodes or weights go; without one, the network is only trained.
        sparsity: what goes in the end, see `compress`.
        stage: `before` the first epoch, `during` (one event every `interval` epochs), or `after` (at epoch `prune_at`, 7/8 of
            all by default; the rest is fine-tuning). The method's own by default.
        scoring: batches that the method scores; 2,560 samples of `data` where that is columns, else `data`.
        colour: the images are in colour, see the recipe's `flip` and `shift`.
        keep_zeros: weights that are zero beside other values stay zero, as those of masked networks must; without it they are
            trained, as an initialisation that has zeros wants, such as the identity. For training without a method only.
        seed: of shuffles, dropout, and a method's own draws. The same seed gives the same weights on the same machine.
        folder: where the run keeps its state and its history after every epoch.
        resume: go on where the folder's run stopped; from the start if there is none.
        on_epoch: called after each.
        pruning: more arguments of `compress`, such as `round_to`, `budget`, or the method's options.
    Raises:
        Diverged: the loss is no longer finite; the folder holds the last good epoch.
        CompressError: one of its kinds; the message is one line with what to do.
    """
    recipe = recipe or Recipe()
    if method is None and (pruning or stage is not None or prune_at is not None):
        raise WrongUsage(f"without a method nothing is pruned: leave out {', '.join(pruning) or 'stage and prune_at'}")
    if method is not None and not keep_zeros:
        raise WrongUsage(
            "zeros are trained without a method only, which counts them as gone: train the network first, then prune"
        )
    if not keep_zeros and planned_masks(model):
        raise WrongUsage("zeros of a network that was masked here belong to its plan: they stay; leave out --train-zeros")
    mine = copy.deepcopy(model)
    with own_randomness(data), own_randomness(scoring):
        objective = Objective((), loss_named(loss), forward, device_of(model), seed)
        epochs = _batches(data, recipe.batch_size, seed, objective.device)
        tests = None if test is None else _batches(test, recipe.batch_size, None, objective.device)
        pruner: Pruner | None = None
        if method is None:
            check_weights(mine)
            objective.data = epochs
            objective.example = example_for(objective, example_inputs)
            dense = working_copy(mine, objective.example)
        else:
            setup = prepare(
                mine, method, _to_score(data, seed) if scoring is None else scoring, sparsity, loss=loss, forward=forward,
                example_inputs=example_inputs, seed=seed, progress=progress, **pruning,
            )  # fmt: skip
            pruner = Pruner(setup, stage or setup.events.method.stage, recipe.epochs, interval, prune_at)
            objective = dataclasses.replace(setup.events.objective, data=epochs)
            dense = pruner.state.model
        still = [name for name, module in model.named_modules() if model.training and not module.training]
        trainer = Trainer(dense, recipe, objective, recipe.flips(colour), recipe.shifts(colour), still)
        course = _Course(trainer, pruner, epochs, tests, seed, progress, keep_zeros)
        run = None
        if folder is not None:
            said = _configuration(recipe, course, model, data, test, method, sparsity, pruning, loss, scoring)
            run = Run(Path(folder), said, {} if pruner is None else _unsaid(type(pruner.events.method)))
            run.check_place()
            if not resume:
                run.check_new()
            elif (held := run.saved()) is not None:
                course.restore(held)
        if len(course.rows) > recipe.epochs:
            raise BadInput(
                f"the run did {len(course.rows)} epochs already, {recipe.epochs} were asked for; give as many or more"
            )
        for epoch in range(len(course.rows), recipe.epochs):
            course.one(epoch)
            on_epoch(course.rows[-1])
            if run is not None:
                run.keep(epoch + 1, recipe.epochs, course.content(), course.rows)
        return course.finish(model, recipe.epochs)


@dataclass(frozen=True)
class _Sticky:
    """Weights that were masked before the run, by `held`: weight -> booleans of its shape. They stay zero.

    Attributes:
        structure: of the network; None where batch norms have nothing to do with it.
        fed: group -> booleans `(width,)`, see `Paths`.
    """

    held: Mapping[str, Tensor]
    structure: Structure | None = None
    fed: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, found: Structure | None) -> _Sticky:
        """Those with zeros beside other values; where all of a weight is zero, only a plan tells it from a fresh start."""
        there = present(model, planned_masks(model))
        return cls.holding({name: mask for name, mask in there.items() if not bool(mask.all())}, model, inputs, found)

    @classmethod
    def holding(cls, held: Mapping[str, Tensor], model: nn.Module, inputs: Inputs, found: Structure | None) -> _Sticky:
        """These masks."""
        if not held or not any(isinstance(m, _BatchNorm) for m in model.modules()):
            return cls(held)
        try:
            found = found or structure(model, inputs, prunable=False)
        except UnsupportedNetwork:  # it is trained all the same: only who prunes needs a graph
            return cls(held)
        return cls(held, found, paths(model, found, held, over_channels(model, inputs)).fed)

    def after_epoch(self, model: nn.Module, inputs: Inputs) -> None:
        """Eval mode gives what train mode does, also behind masked weights."""
        if self.structure is not None:
            steady(model, self.structure, self.fed, inputs)


class _Course:
    """A run while it goes on: the trainer, the pruning, and what was seen so far."""

    def __init__(
        self, trainer: Trainer, pruner: Pruner | None, train: Iterable[Batch], test: Iterable[Batch] | None, seed: int,
        progress: Progress, keep_zeros: bool,
    ) -> None:  # fmt: skip
        self.trainer, self.pruner, self.train, self.test = trainer, pruner, train, test
        self.seed, self.progress, self.keep_zeros = seed, progress, keep_zeros
        assert trainer.objective.example is not None
        self.inputs = trainer.objective.example
        weights = pruner is not None and pruner.events.method.unit == "weight"  # the method's masks know those from before
        free = weights or not keep_zeros
        self.sticky = _Sticky({}) if free else _Sticky.of(trainer.model, self.inputs, self._structure())
        self.dense_weights = _weights(trainer.model) + unset(trainer.model, planned_masks(trainer.model))
        if not keep_zeros:
            self.dense_weights = sum(w.numel() for w in weights_of(trainer.model))
        self.rows: list[Row] = []
        self.macs = 0
        self._measure()

    def _measure(self) -> None:
        """What one sample costs the network as it is now."""
        self.inference_macs = count(self.trainer.model, self.inputs).macs
        self.step_macs = training_macs(self.trainer.model, self.inputs)

    def one(self, epoch: int) -> None:
        """The events before an epoch, and the epoch."""
        started = time.perf_counter()
        self._events(epoch)
        last = self.rows[-1] if self.rows else None
        held = self.pruner.held() if self.pruner and self.pruner.state.kept else self.sticky.held

        def told(step: int, steps: int, loss: float) -> None:
            of = self.trainer.recipe.epochs
            parts = [f"epoch {epoch + 1} of {of}", f"loss {loss:.3f}"]
            if last and last.test_accuracy is not None:
                parts.append(f"test accuracy {last.test_accuracy:.1%}")
            weights = self.pruner is None or self.pruner.events.method.unit == "weight"
            if last and (gone := last.weight_sparsity if weights else last.node_sparsity):
                parts.append(f"sparsity {gone:.3f}")
            if last:
                parts.append(f"{_duration((of - epoch - (step / steps if steps else 0)) * last.seconds)} left")
            self.progress(", ".join(parts), step, steps)

        penalty = None if self.pruner is None else self.pruner.penalty
        seen = self.trainer.epoch(self.train, epoch, self.seed, penalty=penalty, held=held, progress=told)
        if self.pruner is not None:
            self.pruner.after_epoch()
        self.sticky.after_epoch(self.trainer.model, self.inputs)
        quality = self._quality(self.trainer.model)
        self.macs += seen.samples * self.step_macs
        self.rows.append(self._row(epoch, seen, quality, time.perf_counter() - started))

    def _events(self, epoch: int) -> None:
        if self.pruner is None or self.pruner.finished or epoch not in {*self.pruner.due, self.pruner.rewind}:
            return
        self.macs += self.pruner.before(epoch, self.trainer)
        if self.sticky.held:
            self._hold(self.pruner.cut(self.sticky.held))
        self._measure()

    def _hold(self, masks: Mapping[str, Tensor]) -> None:
        """Let what these masks took stay zero, where it is: fresh weights are not masked."""
        weights = maskable(self.trainer.model)
        some = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        held = {name: mask for name, mask in some.items() if not bool(weights[name].detach().cpu()[~mask].any())}
        self.sticky = _Sticky.holding(held, self.trainer.model, self.inputs, self._structure())

    def _structure(self) -> Structure | None:
        return None if self.pruner is None else self.pruner.state.structure

    def _quality(self, model: nn.Module) -> Quality | None:
        return None if self.test is None else evaluate(model, dataclasses.replace(self.trainer.objective, data=self.test))

    def _row(self, epoch: int, seen: Seen, quality: Quality | None, seconds: float) -> Row:
        state = None if self.pruner is None else self.pruner.state
        found = None if self.pruner is None else self.pruner.events.found
        return Row(
            epoch=epoch + 1,
            steps=seen.steps,
            lr=seen.lr,
            train_loss=seen.loss,
            train_accuracy=seen.accuracy,
            penalty=seen.penalty,
            test_loss=None if quality is None else quality.loss,
            test_accuracy=None if quality is None else quality.accuracy,
            node_sparsity=1 - state.structure.nodes / found.total_nodes if state and found else 0.0,
            weight_sparsity=1 - _weights(self.trainer.model) / max(1, self.dense_weights),
            macs=self.inference_macs,
            train_seconds=seen.seconds,
            seconds=seconds,
        )

    def content(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "model": values_of(self.trainer.model),
            "moments": self.trainer.moments(),
            "epochs_done": self.trainer.epochs_done,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "macs": self.macs,
            "sticky": dict(self.sticky.held),
            "pruning": None if self.pruner is None else self.pruner.content(),
        }

    def restore(self, held: Mapping[str, Any]) -> None:
        """Go on from `content`."""
        model = self.trainer.model
        if self.pruner is not None:
            self.pruner.restore(held["pruning"])
            model = self.pruner.state.model
        put_values(model, held["model"])
        self.trainer.adopt(model, held["moments"])
        self.trainer.epochs_done = held["epochs_done"]
        self.rows = [Row(**row) for row in held["rows"]]
        self.macs = held["macs"]
        self._hold(held["sticky"])
        self._measure()

    def finish(self, model: nn.Module, epochs: int) -> Trained:
        """Hand over, after the events that come at the very end."""
        self._events(epochs)
        trained = self.trainer.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        result = None if self.pruner is None else self.pruner.result(trained)
        modes = {name: module.training for name, module in model.named_modules()}
        if result is None:
            as_it_came(trained, model)
        final = trained if result is None else result.model
        for name, module in final.named_modules():
            module.training = modes.get(name, model.training)
        seconds = sum(row.seconds for row in self.rows)
        stage = None if self.pruner is None else self.pruner.stage
        quality = self._quality(final)
        sticky = sum(int((~mask).sum()) for mask in self.sticky.held.values())
        way = "" if result or planned_masks(model) else "; --train-zeros trains them"
        notes = [f"{sticky:,} weights that came as zeros, as masked ones do, stayed zero{way}."] if sticky else []
        if self.pruner is not None and max(self.pruner.due) >= epochs:
            notes.append("The last event came after the last epoch: fine-tune the network before judging its accuracy.")
        return Trained(final, tuple(self.rows), self.trainer.recipe, stage, quality, result, self.macs, seconds, tuple(notes))


def _duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _weights(model: nn.Module) -> int:
    """Non-zero weights."""
    return sum(int(torch.count_nonzero(w)) for w in weights_of(model))


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


def _configuration(
    recipe: Recipe, course: _Course, model: nn.Module, data: Columns | Iterable[Batch],
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


def _unsaid(method: type[Method]) -> dict[str, str]:
    """What the arguments of a pruning are that nobody gave, as a configuration holds them."""
    own = {o.name: str(o.default) for o in options_of(method)}
    return own | {p.name: str(p.default) for p in inspect.signature(prepare).parameters.values() if p.default is not p.empty}
