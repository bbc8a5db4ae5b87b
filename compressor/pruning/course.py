"""A training run while it goes on: the trainer, the pruning, and what was seen so far."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.coupling import structure
from compressor.errors import UnsupportedNetwork
from compressor.model.cost import count
from compressor.model.inputs import Inputs
from compressor.model.observe import put_values, values_of
from compressor.model.origin import origin_of, planned_masks, set_origin
from compressor.model.precision import as_it_came
from compressor.model.weights import maskable, present, unset, weight_matrices
from compressor.objective.batches import Batch
from compressor.objective.objective import Quality, evaluate
from compressor.options import spelled
from compressor.proof.reference import over_channels
from compressor.pruning.in_training import InTraining, training_macs
from compressor.pruning.result import Result
from compressor.settings import Stage
from compressor.surgery.dead_nodes import sync_constant_running_means
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.paths import paths
from compressor.system.progress import Progress
from compressor.training.history import Row
from compressor.training.recipe import Recipe
from compressor.training.run import held_as
from compressor.training.trainer import EpochStats, Moments, Trainer
from compressor.types.origin import Origin
from compressor.types.structure import Structure


@dataclass(frozen=True)
class Sticky:
    """Weights that were masked before the run, by `held`: weight -> booleans of its shape. They stay zero.

    Attributes:
        structure: of the network; None where batch norms have nothing to do with it.
        reachable: group -> booleans `(width,)`, see `Paths`.
    """

    held: Mapping[str, Tensor]
    structure: Structure | None = None
    reachable: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, found: Structure | None) -> Sticky:
        """Those with zeros beside other values; where all of a weight is zero, only a plan tells it from a fresh start."""
        there = present(model, planned_masks(model))
        return cls.holding({name: mask for name, mask in there.items() if not bool(mask.all())}, model, inputs, found)

    @classmethod
    def holding(cls, held: Mapping[str, Tensor], model: nn.Module, inputs: Inputs, found: Structure | None) -> Sticky:
        """These masks."""
        if not held or not any(isinstance(m, _BatchNorm) for m in model.modules()):
            return cls(held)
        try:
            found = found or structure(model, inputs, prunable=False)
        except UnsupportedNetwork:  # it is trained all the same: only who prunes needs a graph
            return cls(held)
        return cls(held, found, paths(model, found, held, over_channels(model, inputs)).reachable)

    def after_epoch(self, model: nn.Module, inputs: Inputs) -> None:
        """Eval mode gives what train mode does, also behind masked weights."""
        if self.structure is not None:
            sync_constant_running_means(GroupedNetwork(model, self.structure, inputs), self.reachable)


@dataclass(frozen=True)
class _Content:
    """What `Course.content` holds, beside what it holds of the pruning."""

    model: dict[str, Tensor]
    moments: Moments
    epochs_done: int
    rows: list[Row]
    macs: int
    sticky: dict[str, Tensor]
    stages: dict[str, Quality] = field(default_factory=dict)


class Course:
    """A run while it goes on: the trainer, the pruning, and what was seen so far."""

    def __init__(
        self, trainer: Trainer, pruner: InTraining | None, train: Iterable[Batch], test: Iterable[Batch] | None, seed: int,
        progress: Progress, keep_zeros: bool, judge: bool = False,
    ) -> None:  # fmt: skip
        """Begin.

        Args:
            judge: see how well the network does before the events, as it was pruned, and repaired.
        """
        self.judge = judge and test is not None
        self.stages: dict[str, Quality] = {}
        self.trainer, self.pruner, self.train, self.test = trainer, pruner, train, test
        self.seed, self.progress, self.keep_zeros = seed, progress, keep_zeros
        assert trainer.objective.example is not None
        self.inputs = trainer.objective.example
        weights = pruner is not None and pruner.events.method.unit == "weight"  # the method's masks know those from before
        free = weights or not keep_zeros
        self.sticky = Sticky({}) if free else Sticky.of(trainer.model, self.inputs, self._structure())
        self.dense_weights = nonzero_weights(trainer.model) + unset(trainer.model, planned_masks(trainer.model))
        if not keep_zeros:
            self.dense_weights = sum(w.numel() for w in weight_matrices(trainer.model))
        self.rows: list[Row] = []
        self.told: list[str] = []
        self.macs = 0
        self._measure()

    def _measure(self) -> None:
        """What one sample costs the network as it is now."""
        self.inference_macs = count(self.trainer.model, self.inputs).macs
        teacher = self.trainer.teacher
        taught = 0 if teacher is None else count(teacher.network, self.inputs).macs
        self.step_macs = training_macs(self.trainer.model, self.inputs) + taught

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
        dense = self.trainer.model
        judge = self.judge and epoch in self.pruner.due
        if judge and (seen := self._quality(dense)) is not None:
            self.stages.setdefault("dense", seen)
        self.macs += self.pruner.before(epoch, self.trainer)
        steps = {"as pruned": self.pruner.pruned, **({"repaired": self.trainer.model} if self.pruner.repair else {})}
        for stage, network in steps.items():
            if judge and network is not None and (seen := self._quality(network)) is not None:
                self.stages[stage] = seen
        if self.sticky.held:
            self._hold(self.pruner.cut(self.sticky.held))
        self._measure()

    def _hold(self, masks: Mapping[str, Tensor]) -> None:
        """Let what these masks took stay zero, where it is: fresh weights are not masked."""
        weights = maskable(self.trainer.model)
        some = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        held = {name: mask for name, mask in some.items() if not bool(weights[name].detach().cpu()[~mask].any())}
        self.sticky = Sticky.holding(held, self.trainer.model, self.inputs, self._structure())

    def _structure(self) -> Structure | None:
        return None if self.pruner is None else self.pruner.state.structure

    def _quality(self, model: nn.Module) -> Quality | None:
        return None if self.test is None else evaluate(model, dataclasses.replace(self.trainer.objective, data=self.test))

    def _row(self, epoch: int, seen: EpochStats, quality: Quality | None, seconds: float) -> Row:
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
            weight_sparsity=1 - nonzero_weights(self.trainer.model) / max(1, self.dense_weights),
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
            "stages": {name: dataclasses.asdict(seen) for name, seen in self.stages.items()},
            "pruning": None if self.pruner is None else self.pruner.content(),
        }

    def restore(self, held: Mapping[str, Any]) -> None:
        """Go on from `content`."""
        model, kept = self.trainer.model, held_as(_Content, held)
        if self.pruner is not None:
            self.pruner.restore(held["pruning"])
            model = self.pruner.state.model
        put_values(model, kept.model)
        self.trainer.adopt(model, kept.moments)
        self.stages = kept.stages
        self.trainer.epochs_done, self.rows, self.macs = kept.epochs_done, kept.rows, kept.macs
        self._hold(kept.sticky)
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
        known = origin_of(final) or Origin(None, {})
        set_origin(final, dataclasses.replace(known, trained=True if self.rows else known.trained))
        for name, module in final.named_modules():
            module.training = modes.get(name, model.training)
        seconds = sum(row.seconds for row in self.rows)
        stage = None if self.pruner is None else self.pruner.stage
        quality = self._quality(final)
        sticky = sum(int((~mask).sum()) for mask in self.sticky.held.values())
        way = "" if result or planned_masks(model) else f"; {spelled('keep_zeros', False)} trains them"
        zeros = f"{sticky:,} weights that came as zeros, as masked ones do, stayed zero{way}."
        notes = [*self.told, *([zeros] if sticky else [])]
        if self.pruner is not None and max(self.pruner.due) >= epochs:
            notes.append("The last event came after the last epoch: fine-tune the network before judging its accuracy.")
        tuned = self.stages and quality is not None and self.pruner is not None and self.pruner.trained_since
        stages = {**self.stages, **({"fine-tuned": quality} if tuned and quality is not None else {})}
        return Trained(
            final, tuple(self.rows), self.trainer.recipe, stage, quality, result, self.macs, seconds, tuple(notes), stages
        )


def _duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def nonzero_weights(model: nn.Module) -> int:
    """Non-zero weights."""
    return sum(int(torch.count_nonzero(w)) for w in weight_matrices(model))


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
        stages: of a network that was trained before: how well it does on the test data dense, as pruned, repaired, fine-tuned.
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
    stages: Mapping[str, Quality] = field(default_factory=dict)
