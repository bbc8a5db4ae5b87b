"""Training, with pruning before it, during it, after it, or not at all; a run that was killed goes on where it stopped."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.cost import count, count_training, weights_of
from compressor.data import Columns, Drawn, Rows
from compressor.equivalence import Equivalence
from compressor.errors import BadInput, UnsupportedNetwork, WrongUsage, first_line
from compressor.events import Progress, State
from compressor.inputs import Inputs
from compressor.method import Method
from compressor.objective import Batch, Loss, Objective, Quality, call, evaluate, loss_named
from compressor.pipeline import (
    Result,
    Setup,
    architecture_of,
    check_weights,
    device_of,
    example_for,
    prepare,
    proven,
    refreshed,
)
from compressor.precision import as_it_came, working_copy
from compressor.recipe import Recipe
from compressor.schedule import Stage, placed
from compressor.surgery import shrink, sliced
from compressor.training import Row, Trainer
from compressor.training.run import Run, fingerprint_of
from compressor.training.trainer import Moments, Seen
from compressor.types import Event, Kept, Plan, Structure
from compressor.weights import maskable, masked

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


def train(
    model: nn.Module,
    data: Columns | Iterable[Batch],
    recipe: Recipe | None = None,
    *,
    test: Columns | Iterable[Batch] | None = None,
    method: str | Method | None = None,
    sparsity: float = 0.5,
    stage: Stage | None = None,
    interval: int = 4,
    prune_at: int | None = None,
    scoring: Iterable[Batch] | None = None,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    colour: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Progress = lambda *_: None,
    on_epoch: Callable[[Row], None] = lambda _: None,
    **pruning: Any,
) -> Trained:
    """Train a copy of `model`; with a method, nodes or weights go on the way, and the optimizer's moments go with them.

    Args:
        model: any network; intact afterwards. Where a weight has zeros beside other values, they stay zero.
        data: columns, which are shuffled and batched as the recipe says, or batches to be read anew in each epoch.
        recipe: numbers of epochs, samples of a batch and all that; the SNIP-it paper's by default.
        test: looked at after each epoch.
        method: which nodes or weights go; without one, the network is only trained.
        sparsity: what goes in the end, see `compress`.
        stage: `before` the first epoch, `during` (one event every `interval` epochs), or `after` (at epoch `prune_at`, 7/8 of
            all by default; the rest is fine-tuning). The method's own by default.
        scoring: batches that the method scores; 2,560 samples of `data` where that is columns, else `data`.
        colour: the images may be mirrored, see the recipe's `flip`.
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
    mine = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        objective = Objective((), loss_named(loss), forward, device_of(model), seed)
        epochs = _batches(data, recipe.batch_size, seed, objective.device)
        tests = None if test is None else _batches(test, recipe.batch_size, None, objective.device)
        pruner: _Pruner | None = None
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
            pruner = _Pruner(setup, stage or setup.events.method.stage, recipe.epochs, interval, prune_at)
            objective = dataclasses.replace(setup.events.objective, data=epochs)
            dense = pruner.state.model
        course = _Course(Trainer(dense, recipe, objective, recipe.flips(colour)), pruner, epochs, tests, seed, progress)
        run = None
        if folder is not None:
            run = Run(Path(folder), _configuration(recipe, course, model, data, method, sparsity, pruning, loss, scoring))
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
class _Snapshot:
    """What a rewind goes back to."""

    model: dict[str, Tensor]
    moments: Moments
    epochs_done: int


class _Pruner:
    """The pruning of a run, as far as it is.

    Attributes:
        state: where the events have come to; its network is the one that is trained.
        due: epoch -> numbers of the events before it.
        passed: events so far, also those that removed nothing.
        proofs: that the last events removed what they should and nothing else.
        snapshot: of the epoch that the method rewinds to, once that was there.
    """

    def __init__(self, setup: Setup, stage: Stage, epochs: int, interval: int, prune_at: int | None) -> None:
        self.events = dataclasses.replace(setup.events, trained=stage == "during")
        self.setup = dataclasses.replace(setup, events=self.events)
        self.stage = stage
        self.due = placed(len(self.events.targets), stage, epochs, interval, prune_at)
        self.ablation, self.rewind = self.events.aim.ablation, self.events.method.rewind
        first = min(self.due)
        if self.events.aim.round_to > 1 and stage == "during":
            raise WrongUsage(
                "--round-to brings nodes back, and a training in between does not allow that: not with --stage during"
            )
        if self.ablation == "shuffle" and stage == "during":
            raise WrongUsage("--ablation shuffle draws anew at one event; with --stage during there are several")
        if self.rewind is not None and (self.rewind > first or self.events.method.unit != "weight"):
            raise WrongUsage(
                f"--rewind {self.rewind}: the first event comes at epoch {first}; rewind to that or an earlier one"
            )
        if first == 0 and type(self.events.method).penalty is not Method.penalty:
            setup.notes.append(
                f"{setup.name} adds its penalty until its last event, which comes before the first epoch: nothing was added; "
                "--stage after trains with it."
            )
        self.state = self.events.begin(setup.plan)
        self.passed = 0
        self.proofs: tuple[Equivalence, ...] = ()
        self.snapshot: _Snapshot | None = None

    @property
    def finished(self) -> bool:
        """No event is to come."""
        return self.passed == len(self.events.targets)

    def before(self, epoch: int, trainer: Trainer) -> int:
        """The events due before an epoch; the trainer goes on with the smaller network. The multiply-adds that scoring took."""
        if epoch == self.rewind:
            state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            moments = {name: {k: v.clone() for k, v in of.items()} for name, of in trainer.moments().items()}
            self.snapshot = _Snapshot(state, moments, trainer.epochs_done)
        macs = 0
        if not (numbers := self.due.get(epoch)):
            return macs
        torch.manual_seed((self.events.objective.seed * 1_000_003 + epoch + 500_009) % 2**63)  # for loaders that shuffle
        before = self.state = dataclasses.replace(self.state, model=trainer.model.eval())
        for number in numbers:
            left = self.state
            self.state = self.events.one(left, number)
            if self.state is not left and self.events.method.uses_data:
                macs += self.state.samples * training_macs(left.model, self.events.aim.inputs)
            self.passed += 1
        if self.finished:
            self.state = self.events.settle(self.state)
        moments = trainer.moments()
        if self.events.method.unit == "node":
            moments = self._without_nodes(before, moments)
        elif self.rewind is not None and self.snapshot is not None:
            moments = self._rewound(self.snapshot, trainer)
        if self.finished and self.events.method.unit == "weight":
            moments = self._without_dead(moments)
        if self.finished and self.ablation == "reinit":
            self.state, moments = dataclasses.replace(self.state, model=refreshed(self.state, self.events.objective.seed)), {}
        trainer.adopt(self.state.model, _masked_moments(moments, self.held()))
        return macs

    def after_epoch(self) -> None:
        """Eval mode gives what train mode does, also behind masked weights."""
        self.state = self.events.after_epoch(self.state)

    def _without_nodes(self, before: State, moments: Moments) -> Moments:
        """The moments of what is left; and the proof that nothing but nodes is gone."""
        start, end = before.plan.kept, self.state.plan.kept
        kept = {name: torch.searchsorted(start[name], end[name]) for name in start}
        self.progress("proving the small network")
        widths = {name: len(indices) for name, indices in start.items()}
        event = Event(0.0, {name: tuple(indices.tolist()) for name, indices in kept.items()})
        step = dataclasses.replace(self.state, plan=Plan(widths, "", (event,)))
        self.proofs = proven(before.model, step, before.structure, self.events.aim.inputs)
        return _sliced_moments(moments, before.structure, kept)

    def _without_dead(self, moments: Moments) -> Moments:
        """After the last event on weights, the moments of what is left without nodes on no path: nothing would train them."""
        whole = self.state.model
        self.state = self.events.clear(self.state)
        self.progress("proving the small network")
        self.proofs = proven(whole, self.state, self.events.found, self.events.aim.inputs)
        return _sliced_moments(moments, self.events.found, self.state.plan.kept)

    def _rewound(self, snapshot: _Snapshot, trainer: Trainer) -> Moments:
        """The weights of the snapshot in the state's network, but for what is masked; and its moments."""
        model = copy.deepcopy(self.state.model)
        model.load_state_dict(snapshot.model)
        self.state = dataclasses.replace(self.state, model=masked(model, self.state.kept))
        trainer.epochs_done = snapshot.epochs_done
        return snapshot.moments

    def progress(self, what: str) -> None:
        """Tell it."""
        self.events.progress(what, 0, 0)

    def held(self) -> dict[str, Tensor]:
        """Weight -> booleans, of the weights of which some are removed; of the network's shapes as it is now."""
        kept = self.state.kept
        if self.state.plan.masks:  # nodes on no path are gone
            kept = sliced(kept, self.events.found, self.state.plan.kept)
        return {name: mask for name, mask in kept.items() if not bool(mask.all())}

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What the method adds to the loss, until its last event."""
        return None if self.finished else self.events.method.penalty(model, self.state.structure)

    def content(self) -> dict[str, Any]:
        """All that cannot be had again; see `restore`."""
        s, kept = self.state, {name: mask.clone() for name, mask in self.state.kept.items()}
        return {
            "plan": s.plan.to_json(), "kept": kept, "samples": s.samples, "passed": self.passed,
            "curves": dict(s.curves), "ranks": dict(s.ranks), "proofs": [dataclasses.asdict(p) for p in self.proofs],
            "snapshot": None if self.snapshot is None else dataclasses.asdict(self.snapshot),
        }  # fmt: skip

    def restore(self, held: Mapping[str, Any]) -> None:
        """Go on from `content`; the network's values come from elsewhere."""
        plan, e = Plan.from_json(held["plan"]), self.events
        kept = plan.kept if plan.events else e.found.keep_all()
        model = shrink(e.dense, e.found, kept) if plan.events else e.dense
        self.state = State(model, e.found.shrink(kept), plan, held["ranks"], held["samples"], held["kept"], held["curves"])
        self.passed = held["passed"]
        self.proofs = tuple(Equivalence(**p) for p in held["proofs"])
        self.snapshot = None if held["snapshot"] is None else _Snapshot(**held["snapshot"])

    def result(self, trained: nn.Module) -> Result:
        """The pruning's result, of the network as it is now."""
        return self.setup.conclude(self.events.clear(dataclasses.replace(self.state, model=trained)), self.proofs)


class _Course:
    """A run while it goes on: the trainer, the pruning, and what was seen so far."""

    def __init__(
        self, trainer: Trainer, pruner: _Pruner | None, train: Iterable[Batch], test: Iterable[Batch] | None, seed: int,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.trainer, self.pruner, self.train, self.test = trainer, pruner, train, test
        self.seed, self.progress = seed, progress
        assert trainer.objective.example is not None
        self.inputs = trainer.objective.example
        self.sticky = _zeros_of(trainer.model) if pruner is None or pruner.events.method.unit == "node" else {}
        self.dense_weights = _weights(trainer.model)
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
        held = self.pruner.held() if self.pruner and self.pruner.state.kept else self.sticky

        def told(step: int, steps: int, loss: float) -> None:
            of = self.trainer.recipe.epochs
            parts = [f"epoch {epoch + 1} of {of}", f"loss {loss:.3f}"]
            if last and last.test_accuracy is not None:
                parts.append(f"test accuracy {last.test_accuracy:.1%}")
            weights = self.pruner is None or self.pruner.events.method.unit == "weight"
            if last and (gone := last.weight_sparsity if weights else last.node_sparsity):
                parts.append(f"sparsity {gone:.3f}")
            if last:
                parts.append(f"{_duration((of - epoch - step / max(steps, 1)) * last.seconds)} left")
            self.progress(", ".join(parts), step, steps)

        penalty = None if self.pruner is None else self.pruner.penalty
        seen = self.trainer.epoch(self.train, epoch, self.seed, penalty=penalty, held=held, progress=told)
        if self.pruner is not None:
            self.pruner.after_epoch()
        quality = self._quality(self.trainer.model)
        self.macs += seen.samples * self.step_macs
        self.rows.append(self._row(epoch, seen, quality, time.perf_counter() - started))

    def _events(self, epoch: int) -> None:
        if self.pruner is None or self.pruner.finished or epoch not in {*self.pruner.due, self.pruner.rewind}:
            return
        self.macs += self.pruner.before(epoch, self.trainer)
        self.sticky = _zeros_of(self.trainer.model) if self.sticky else {}
        self._measure()

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
            "model": dict(self.trainer.model.state_dict()),
            "moments": self.trainer.moments(),
            "epochs_done": self.trainer.epochs_done,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "macs": self.macs,
            "pruning": None if self.pruner is None else self.pruner.content(),
        }

    def restore(self, held: Mapping[str, Any]) -> None:
        """Go on from `content`."""
        model = self.trainer.model
        if self.pruner is not None:
            self.pruner.restore(held["pruning"])
            model = self.pruner.state.model
        model.load_state_dict(held["model"])
        self.trainer.adopt(model, held["moments"])
        self.trainer.epochs_done = held["epochs_done"]
        self.rows = [Row(**row) for row in held["rows"]]
        self.macs = held["macs"]
        self.sticky = _zeros_of(model) if self.sticky else {}
        self._measure()

    def finish(self, model: nn.Module, epochs: int) -> Trained:
        """Hand over, after the events that come at the very end."""
        self._events(epochs)
        trained = self.trainer.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        result = None if self.pruner is None else self.pruner.result(trained)
        if result is None:
            as_it_came(trained, model)
        final = trained if result is None else result.model
        final.train(model.training)
        seconds = sum(row.seconds for row in self.rows)
        stage = None if self.pruner is None else self.pruner.stage
        quality = self._quality(final)
        return Trained(final, tuple(self.rows), self.trainer.recipe, stage, quality, result, self.macs, seconds)


def _duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def training_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one sample's forward and backward pass.

    Raises:
        UnsupportedNetwork: it does not run in train mode.
    """
    try:
        return count_training(model, inputs).macs
    except RuntimeError as error:
        raise UnsupportedNetwork(f"the network does not run in train mode: {first_line(error)}") from error


def _weights(model: nn.Module) -> int:
    """Non-zero weights."""
    return sum(int(torch.count_nonzero(w)) for w in weights_of(model))


def _zeros_of(model: nn.Module) -> dict[str, Tensor]:
    """Weight -> booleans, of weights that were masked before: those with zeros beside other values."""
    there = {name: weight.detach() != 0 for name, weight in maskable(model).items()}
    return {name: mask for name, mask in there.items() if bool(mask.any()) and not bool(mask.all())}


def _masked_moments(moments: Moments, held: Mapping[str, Tensor]) -> Moments:
    """The moments, zero where the weights are removed."""

    def part(name: str, value: Tensor) -> Tensor:
        mask = held.get(name)
        return value if mask is None or mask.shape != value.shape else value.masked_fill(~mask.to(value.device), 0.0)

    return {name: {key: part(name, value) for key, value in of.items()} for name, of in moments.items()}


def _sliced_moments(moments: Moments, structure: Structure, kept: Kept) -> Moments:
    """The moments of what is left when `structure` keeps `kept`."""
    keys = {key for of in moments.values() for key in of}
    by_key = {key: sliced({n: of[key] for n, of in moments.items() if key in of}, structure, kept) for key in keys}
    return {name: {key: by_key[key][name] for key in of} for name, of in moments.items()}


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
    recipe: Recipe, course: _Course, model: nn.Module, data: Columns | Iterable[Batch], method: str | Method | None,
    sparsity: float, pruning: Mapping[str, Any], loss: str | Loss, scoring: Iterable[Batch] | None,
) -> dict[str, Any]:  # fmt: skip
    """What must be the same for a run to go on; the number of epochs may grow where no event depends on it."""
    numbers = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "epochs"}
    held = {
        "architecture": architecture_of(model),
        "method": "none" if method is None else str(method),
        **numbers,
        "seed": course.seed,
        "weights": fingerprint_of(model.state_dict().values()),
        "data": fingerprint_of((data.inputs, data.targets)) if isinstance(data, Columns) else None,
        "threads": torch.get_num_threads(),
        "device": course.trainer.objective.device,
        "loss": loss if isinstance(loss, str) else getattr(loss, "__name__", "a function"),
        "flip": course.trainer.flip,
        "samples scored": scoring.size if isinstance(scoring, Drawn) else None,
    }
    if course.pruner is not None:
        events = {str(epoch): list(numbers) for epoch, numbers in course.pruner.due.items()}
        rest = {name: str(value) for name, value in sorted(pruning.items())}
        held |= {"sparsity": sparsity, "stage": course.pruner.stage, "events": events, **rest}
    return held
