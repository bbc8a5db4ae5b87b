"""The pruning of a training run: its events in between epochs, and what the optimizer knows of the rest."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import seed_all
from compressor.data._draw import epoch_seed
from compressor.errors import UnsupportedNetwork, WrongUsage, first_line
from compressor.method import Method
from compressor.model.cost import count_training
from compressor.model.inputs import Inputs
from compressor.model.observe import put_values, values_of
from compressor.model.origin import planned_masks
from compressor.model.weights import first_names, masked, unset
from compressor.options import spelled
from compressor.proof.equivalence import Equivalence
from compressor.pruning.events import PruningState
from compressor.pruning.facts import Fact, note
from compressor.pruning.proofs import proven, since
from compressor.pruning.repairs import mended
from compressor.pruning.result import Result
from compressor.pruning.setup import Setup, refreshed
from compressor.repair import Repair
from compressor.selection.schedule import placed, spread
from compressor.settings import Timing
from compressor.surgery.shrink import sliced
from compressor.training.run import held_as
from compressor.training.trainer import Moments, Trainer
from compressor.types.curves import Curve
from compressor.types.plan import Event, Plan
from compressor.types.structure import Kept, Structure


@dataclass(frozen=True)
class _Snapshot:
    """What a rewind goes back to."""

    model: dict[str, Tensor]
    moments: Moments
    epochs_done: int


@dataclass(frozen=True)
class _Content:
    """What `InTraining.content` holds."""

    plan: str
    kept: dict[str, Tensor]
    samples: int
    passed: int
    curves: dict[str, Tensor]
    ranks: dict[str, Tensor]
    proofs: list[Equivalence]
    snapshot: _Snapshot | None
    repair: Repair | None = None
    sensitivities: dict[str, Tensor] = field(default_factory=dict)


OF_EVENTS = 500_009
"""What tells the seeds of events from those of epochs."""


class InTraining:
    """The pruning of a run, as far as it is.

    Attributes:
        state: where the events have come to; its network is the one that is trained.
        due: epoch -> numbers of the events before it.
        passed: events so far, also those that removed nothing.
        cut: leaves of tensors of the network's shapes, by its names, what the last events left of the network.
        proofs: that the last events removed what they should and nothing else.
        forgiving: nobody asked for the repair, see `mended`.
        repair: what was done to what the last events left.
        pruned: what the last events left, before it was repaired; it is kept until an epoch has passed.
        trained_since: the last events.
        snapshot: of the epoch that the method rewinds to, once that was there.
    """

    def __init__(self, setup: Setup, timing: Timing, epochs: int, forgiving: bool = False) -> None:
        self.forgiving = forgiving
        stage = timing.stage or setup.events.method.stage
        several = stage == "during" or timing.portions > 1
        self.events = dataclasses.replace(setup.events, trained=several, portions=timing.portions)
        self.setup = dataclasses.replace(setup, events=self.events)
        self.stage = stage
        if timing.portions > 1 and stage != "before":
            raise WrongUsage(
                f"{spelled('portions', timing.portions)} is for {spelled('stage', 'before')}, the stage is {stage}"
            )
        self.due = placed(len(self.events.targets), stage, epochs, timing.interval, timing.prune_at)
        if timing.portions > 1:
            self.due = spread([len(part) for part in self.events.by_portion], epochs)
        self.ablation, self.rewind = self.events.aim.ablation, self.events.method.rewind
        first = min(self.due)
        untrue = {Fact.UNUSED_DATA}
        if first > 0:  # it is trained on them first
            untrue |= {Fact.FRESH_NORMS, Fact.FOR_TRAINED}
        setup.notes[:] = [told for told in setup.notes if told.fact not in untrue]
        if stage == "before" and self.rewind is not None:
            if self.rewind > 0:
                setup.notes.append(note(Fact.NO_REWIND, method=setup.name))
            self.rewind = None
        between = spelled("stage", "during") if stage == "during" else spelled("portions", timing.portions)
        if self.events.aim.round_to > 1 and several:
            raise WrongUsage(
                f"{spelled('round_to')} brings nodes back, and a training in between does not allow that: not with {between}"
            )
        if self.ablation == "shuffle" and several:
            raise WrongUsage(f"{spelled('ablation', 'shuffle')} draws anew at one event; with {between} there are several")
        if self.rewind is not None and (self.rewind > first or self.events.method.unit != "weight"):
            raise WrongUsage(
                f"{spelled('rewind', self.rewind)}: the first event comes at epoch {first}; rewind to that or an earlier one"
            )
        if first == 0 and type(self.events.method).penalty is not Method.penalty:
            setup.notes.append(note(Fact.NO_PENALTY, method=setup.name))
        self.state = self.events.begin(setup.plan)
        self.passed = 0
        self.cut: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
        self.proofs: tuple[Equivalence, ...] = ()
        self.repair: Repair | None = None
        self.pruned: nn.Module | None = None
        self.trained_since = False
        self.snapshot: _Snapshot | None = None

    @property
    def finished(self) -> bool:
        """No event is to come."""
        return self.passed == len(self.events.targets)

    def before(self, epoch: int, trainer: Trainer) -> int:
        """The events due before an epoch; the trainer goes on with the smaller network. The multiply-adds that scoring took."""
        if epoch == self.rewind:
            state = {name: tensor.clone() for name, tensor in values_of(trainer.model).items()}
            moments = {name: {k: v.clone() for k, v in of.items()} for name, of in trainer.moments().items()}
            self.snapshot = _Snapshot(state, moments, trainer.epochs_done)
        macs = 0
        if not (numbers := self.due.get(epoch)):
            return macs
        objective = self.events.objective
        seed_all(objective.data, epoch_seed(objective.seed, epoch + OF_EVENTS))  # for loaders that shuffle
        before = self.state = self.state.with_weights(trainer.model.eval())
        self.trained_since = False
        for number in numbers:
            left = self.state
            self.state = self.events.one(left, number)
            if self.state is not left and self.events.method.uses_data:
                macs += self.state.samples * training_macs(left.model, left.network.inputs)
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
        self.pruned = self.state.model
        if self.finished and self.ablation == "reinit":
            self.state, moments = self.state.with_weights(refreshed(self.state, self.events.objective.seed)), {}
            self.repair = None
        elif self.events.aim.settings.repairs and self.state.plan is not before.plan:
            self.state, self.repair = mended(self.events, before.network, self._kept_since(before), self.state, self.forgiving)
        trainer.adopt(self.state.model, _masked_moments(moments, self.held(), self.state.model))
        return macs

    def after_epoch(self) -> None:
        """Eval mode gives what train mode does, also behind masked weights."""
        self.state = self.events.after_epoch(self.state)
        self.trained_since, self.pruned = True, None

    def _without_nodes(self, before: PruningState, moments: Moments) -> Moments:
        """The moments of what is left; and the proof that nothing but nodes is gone."""
        kept = self._kept_since(before)
        self.progress("proving the small network")
        widths = {name: len(indices) for name, indices in before.plan.kept.items()}
        event = Event(0.0, {name: tuple(indices.tolist()) for name, indices in kept.items()})
        step = dataclasses.replace(self.state, plan=Plan(widths, "", (event,)))
        self.proofs = proven(before.network, step)
        self.cut = functools.partial(_sliced, model=before.model, structure=before.structure, kept=kept)
        return _sliced_moments(moments, before.model, before.structure, kept)

    def _kept_since(self, before: PruningState) -> dict[str, Tensor]:
        """Group -> indices `(kept,)` of the nodes of before that are left."""
        start, end = before.plan.kept, self.state.plan.kept
        return {name: torch.searchsorted(start[name], end[name]) for name in start}

    def _without_dead(self, moments: Moments) -> Moments:
        """After the last event on weights, the moments of what is left without nodes on no path: nothing would train them."""
        whole = self.state.model
        self.state = self.events.clear(self.state)
        self.progress("proving the small network")
        self.proofs = proven(self.events.network.with_weights(whole), self.state)
        return _sliced_moments(moments, whole, self.events.found, self.state.plan.kept)

    def _rewound(self, snapshot: _Snapshot, trainer: Trainer) -> Moments:
        """The weights of the snapshot in the state's network, but for what is masked; and its moments."""
        model = copy.deepcopy(self.state.model)
        put_values(model, snapshot.model)
        self.state = self.state.with_weights(masked(model, self.state.kept))
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
            "repair": None if self.repair is None else self.repair.as_dict(),
            "sensitivities": {name: curve.packed() for name, curve in s.sensitivities.items()},
        }  # fmt: skip

    def restore(self, held: Mapping[str, Any]) -> None:
        """Go on from `content`; the network's values come from elsewhere."""
        kept, e = held_as(_Content, held), self.events
        plan = Plan.from_json(kept.plan)
        left = e.network.shrink(plan.kept) if plan.events else e.network
        found = {name: Curve.of(packed) for name, packed in kept.sensitivities.items()}
        self.state = PruningState(left, plan, kept.ranks, kept.samples, kept.kept, kept.curves, sensitivities=found)
        self.passed, self.trained_since = kept.passed, True
        self.proofs, self.snapshot, self.repair = tuple(kept.proofs), kept.snapshot, kept.repair

    def result(self, trained: nn.Module) -> Result:
        """The pruning's result, of the network as it is now."""
        done = [what for what, was in (("repaired", self.repair), ("trained", self.trained_since)) if was]
        proofs = since(self.proofs, " and ".join(done)) if done else self.proofs
        result = self.setup.conclude(self.events.clear(self.state.with_weights(trained)), proofs, repair=self.repair)
        before, dense = result.summary.before, self.events.dense
        before = dataclasses.replace(before, weights=before.weights + unset(dense, planned_masks(dense)))
        return dataclasses.replace(result, summary=dataclasses.replace(result.summary, before=before))


def training_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one sample's forward and backward pass.

    Raises:
        UnsupportedNetwork: it does not run in train mode.
    """
    try:
        return count_training(model, inputs).macs
    except RuntimeError as error:
        raise UnsupportedNetwork(f"the network does not run in train mode: {first_line(error)}") from error


def _masked_moments(moments: Moments, held: Mapping[str, Tensor], model: nn.Module) -> Moments:
    """The moments, zero where the weights are removed."""
    first = first_names(model)
    masks = {first[name]: mask for name, mask in held.items()}

    def part(name: str, value: Tensor) -> Tensor:
        mask = masks.get(name)
        return value if mask is None or mask.shape != value.shape else value.masked_fill(~mask.to(value.device), 0.0)

    return {name: {key: part(name, value) for key, value in of.items()} for name, of in moments.items()}


def _sliced_moments(moments: Moments, model: nn.Module, structure: Structure, kept: Kept) -> Moments:
    """The moments of what is left when `structure`, that of `model`, keeps `kept`."""
    keys = {key for of in moments.values() for key in of}
    by_key = {key: _sliced({n: of[key] for n, of in moments.items() if key in of}, model, structure, kept) for key in keys}
    return {name: {key: by_key[key][name] for key in of} for name, of in moments.items()}


def _sliced(tensors: Mapping[str, Tensor], model: nn.Module, structure: Structure, kept: Kept) -> dict[str, Tensor]:
    """`sliced`, whichever of the names of a shared parameter the structure uses."""
    known, first = {name for name, _ in structure.kept_entries(kept)}, first_names(model)
    used = {first[name]: name for name in known & first.keys()}
    called = {name: used.get(first.get(name, name), name) for name in tensors}
    found = sliced({called[name]: tensor for name, tensor in tensors.items()}, structure, kept)
    return {name: found[called[name]] for name in tensors}
