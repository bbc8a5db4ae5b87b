"""Prove, else freeze: which groups may lose nodes, in a network whose code has sizes of its own.

Labels say what belongs together, but a network's code may count on more: `reshape(n, tokens, heads, channels // heads)` takes
the size of one tensor from another. So every group loses some nodes at random, and what does not run, or gives something else,
is first tied to what its code takes the size from, and frozen where that does not help.
"""

from __future__ import annotations

import copy
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compressor.coupling import Traced, Untraced, trace
from compressor.coupling.label_proof import Comparison
from compressor.errors import UnsupportedNetwork, first_line
from compressor.model.branches import in_branches
from compressor.model.inputs import Inputs, each, run
from compressor.model.observe import observed, outputs_of
from compressor.proof.prove import prove_randomised
from compressor.settings import Attention
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.shrink import shrink, tensors_of
from compressor.types.structure import Group, Structure, Tie

DRAWS = 2
"""Random removals that a group must survive before it may be pruned."""

OF_ITS_CODE = Exception
"""What a network's own code raises when a size does not fit: whatever it likes."""


def feasible(model: nn.Module, inputs: Inputs, attention: Attention = "heads") -> Structure:
    """The structure of `model` in which every group that is not frozen was seen to lose nodes and stay the same network.

    Errors as in `compressor.coupling.structure` and `prove_else_freeze`.
    """
    return explored(model, inputs, attention)[0]


def explored(model: nn.Module, inputs: Inputs, attention: Attention = "heads") -> tuple[Structure, Traced | Untraced]:
    """What `feasible` gives, and the trace that it comes from, which can be compared with a smaller network's."""
    traced = trace(model, inputs, attention)
    found = traced.structure()
    dry = _DryRuns(model, inputs)
    bound: frozenset[Tie] = frozenset()
    while (fault := dry.first_fault(found)) and fault.group:
        more = bound | _bonds(model, found, fault.group, fault.wrong.where)
        if more == bound:
            break
        again = traced.structure(sorted(more, key=str))
        left = dry.first_fault(again)
        if left and left.wrong.where == fault.wrong.where:  # it does not help there: without it more stays open
            break
        bound, found = more, again
    frozen = {name: wrong.what for name, wrong in dry.faults(found).items()} if fault else {}
    network = GroupedNetwork(model, found.freeze(frozen | _unsaved(model, found)), inputs)
    return compare_else_freeze(
        traced, replace(network, structure=prove_else_freeze(network, 1 if dry.possible else DRAWS))
    ), traced


def _unsaved(model: nn.Module, found: Structure) -> dict[str, str]:
    """Groups with nodes in a buffer that is not in the state dict: it would come back whole from a file."""
    unsaved = tensors_of(model).keys() - model.state_dict(keep_vars=True).keys()
    places = {g.name: sorted({s.tensor for s in g.slices} & unsaved) for g in found.prunable}
    return {
        name: f"{tensors[0]}: a buffer that no file keeps (persistent=False)" for name, tensors in places.items() if tensors
    }


@dataclass(frozen=True)
class Failure:
    """What does not work, and in which module."""

    what: str
    where: str = ""


@dataclass(frozen=True)
class _Fault:
    """A group that cannot lose nodes; None where only several together cannot."""

    group: Group | None
    wrong: Failure


def _bonds(model: nn.Module, found: Structure, group: Group, where: str) -> frozenset[Tie]:
    """What the producers of the group at fault read is tied to what its readers read; likewise in all modules of that kind.

    Only weights of the innermost module around the one that failed are looked at. Code that takes a size from its input
    (`b, n, c = x.shape`, and later `.reshape(b, n, c)`) needs both alike.
    """
    makers = {s.layer for s in group.slices if s.role == "produce"}
    inner = dict.fromkeys(s.tensor for g in found.groups for s in g.slices if s.role == "read" and s.layer in makers)
    outer = dict.fromkeys(s.tensor for s in group.slices if s.role == "read")
    modules = dict(model.named_modules())
    pairs = [(a, b) for a, b in itertools.product(inner, outer) if a != b and found.shapes[a][1] == found.shapes[b][1]]
    around = [pair for pair in pairs if f"{where}.".startswith(f"{_common(*pair)}.".removeprefix("."))]
    deepest = max((_common(*pair).count(".") + bool(_common(*pair)) for pair in around), default=0)
    bonds = set()
    for one, other in around:
        home = _common(one, other)
        if home.count(".") + bool(home) < deepest:
            continue
        for name, module in modules.items():
            pair = [f"{name}.{tensor.removeprefix(home).removeprefix('.')}".removeprefix(".") for tensor in (one, other)]
            sizes = [found.shapes.get(tensor, (0, 0))[1:2] for tensor in pair]
            if type(module) is type(modules[home]) and sizes[0] == sizes[1] and all(found.reads(tensor) for tensor in pair):
                bonds.add(Tie(*pair))
    return frozenset(bonds)


def _common(one: str, other: str) -> str:
    """The innermost module that two tensors are in."""
    pairs = zip(one.split(".")[:-1], other.split(".")[:-1], strict=False)
    return ".".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class _DryRuns:
    """Whether a network still runs when groups lose nodes. Only shapes are computed, where the network's code allows that."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = on_meta(model), each(inputs, lambda x: x[:2].to("meta"))
        self._possible: bool | None = None

    @property
    def possible(self) -> bool:
        """Whether the network runs without values; a smaller one that did says so, too."""
        if self._possible is None:
            self._possible = _error_of(copy.deepcopy(self.model), self.inputs) is None  # a copy: some keep what they computed
        return self._possible

    def failure(self, found: Structure, groups: tuple[Group, ...]) -> Failure | None:
        """What goes wrong when `groups` lose some nodes."""
        for seed in range(DRAWS):
            try:
                small = shrink(self.model, found, _some_of(found, groups, seed))
            except OF_ITS_CODE as error:
                return Failure(f"it cannot be made smaller: {first_line(error)}")
            wrong = _error_of(small, self.inputs)
            if wrong is None:
                self._possible = True
            elif not self.possible:
                return None
            else:
                return replace(wrong, what=f"the smaller network does not run: {wrong.what}")
        return None

    def faults(self, found: Structure) -> dict[str, Failure]:
        """Group -> the error, for all groups that cannot lose nodes."""
        return all_at_fault(found.prunable, lambda groups: self.failure(found, groups))

    def first_fault(self, found: Structure) -> _Fault | None:
        """One group that cannot, by halving; None where all can."""
        groups = found.prunable
        reason = self.failure(found, groups)
        while reason is not None and len(groups) > 1:
            middle = len(groups) // 2
            for half in (groups[:middle], groups[middle:]):
                if (wrong := self.failure(found, half)) is not None:
                    groups, reason = half, wrong
                    break
            else:
                return _Fault(None, reason)
        return _Fault(groups[0], reason) if reason is not None else None


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without values, in eval mode: its shapes are computed, its numbers are not."""
    memo: dict[int, Tensor] = {}
    for tensor in tensors_of(model).values():
        hollow = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(hollow, requires_grad=False) if isinstance(tensor, nn.Parameter) else hollow
    return copy.deepcopy(model, memo).eval()


def _error_of(model: nn.Module, inputs: Inputs) -> Failure | None:
    """The first line of what a forward pass raises, and the module whose code it comes from."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            run(model, inputs)
        except OF_ITS_CODE as error:
            names = {id(module): name for name, module in model.named_modules()}
            frames = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
            where = [names[one] for one in frames if one in names]
            return Failure(first_line(error), where[-1] if where else "")
    return None


def prove_else_freeze(network: GroupedNetwork, draws: int = DRAWS) -> Structure:
    """The structure with every group frozen whose removal does not give the same network.

    A random number of nodes of every group is removed, with random weights; the smaller network must also run in train mode.
    If that fails, the groups are halved until those at fault are found, each with what went wrong.

    Args:
        draws: random removals that a group must survive.
    Raises:
        UnsupportedNetwork: not even the whole network equals itself (it is random, or its output is not finite).
    """
    structure, training = network.structure, runs_in_training(network.model, network.inputs)
    branches = training and has_branches(network.model, network.inputs)

    def failure(groups: tuple[Group, ...]) -> Failure | None:
        for seed in range(draws):
            kept = _some_of(structure, groups, seed)
            try:
                proof = prove_randomised(network, kept, seed)
                if proof and branches:
                    proof = prove_randomised(network, kept, seed, branches=True)
                if not proof:
                    return Failure(f"removal changes the result (by {proof.needed_tolerance:.1e} of its range)")
                if training and seed == 0 and not runs_in_training(network.shrink(kept).model, network.inputs):
                    return Failure("the smaller network does not run in train mode")
            except OF_ITS_CODE as error:
                return Failure(f"the smaller network does not run: {first_line(error)}")
        return None

    frozen = all_at_fault(structure.prunable, failure)
    if len(frozen) == len(structure.prunable) and (reason := failure(())):
        raise UnsupportedNetwork(f"no proof is possible, even with nothing removed: {reason.what}")
    return structure.freeze({name: wrong.what for name, wrong in frozen.items()})


def compare_else_freeze(traced: Traced | Untraced, network: GroupedNetwork) -> Structure:
    """The structure with every group frozen whose removal makes an operator do something else to what is left.

    Samples do not show that where a branch sleeps on them. Code that counts channels by numbers of its own is found this way.
    """
    structure = network.structure
    while structure.prunable and traced.counts:
        found = structure

        def compared(groups: tuple[Group, ...], found: Structure = found) -> Comparison:
            kept = found.keep_all() | {g.name: _without_ends(g) for g in groups}
            return traced.compare(shrink(network.model, found, kept), found, kept, network.inputs)

        def failure(groups: tuple[Group, ...]) -> Failure | None:
            wrong = compared(groups).wrong
            return Failure(wrong) if wrong else None

        outcome = compared(found.prunable)
        if outcome:
            break
        bad = dict.fromkeys(outcome.groups, Failure(outcome.wrong)) or all_at_fault(found.prunable, failure)
        structure = structure.freeze({name: f"its code counts channels: {wrong.what}" for name, wrong in bad.items()})
    return structure


def _without_ends(group: Group) -> Tensor:
    """A random part of a group's nodes, at most half, of which neither the first nor the last is one: cuts at numbers show."""
    if group.width < 3:
        return torch.arange(group.width)[-1:]
    generator = torch.Generator().manual_seed(group.width)
    count = int(torch.randint(1, max(2, group.width // 2), (), generator=generator))
    return (1 + torch.randperm(group.width - 2, generator=generator)[:count]).sort().values


def has_branches(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the network gives something else in train mode, dropout and batch statistics aside, and always the same."""
    try:
        branched = outputs_of(model, inputs, within=in_branches)
    except OF_ITS_CODE:  # with its norms in eval mode those branches cannot run, so that they cannot be proven either
        return False
    if _alike(branched, outputs_of(model, inputs)):
        return False
    return _alike(branched, outputs_of(model, inputs, within=in_branches))


def _alike(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs)


def all_at_fault(groups: Sequence[Group], failure: Callable[[tuple[Group, ...]], Failure | None]) -> dict[str, Failure]:
    """Group -> what goes wrong with it, for groups without which the others do not fail; found by halving."""
    frozen: dict[str, Failure] = {}
    while bad := _at_fault(tuple(g for g in groups if g.name not in frozen), failure):
        frozen |= bad
    return frozen


def _at_fault(groups: tuple[Group, ...], failure: Callable[[tuple[Group, ...]], Failure | None]) -> dict[str, Failure]:
    reason = failure(groups) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    middle = len(groups) // 2
    found = _at_fault(groups[:middle], failure) | _at_fault(groups[middle:], failure)
    return found or {g.name: replace(reason, what=f"only together with others: {reason.what}") for g in groups}


def runs_in_training(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a copy of the network runs in train mode, where some have branches of their own."""
    with observed(model) as twin, torch.no_grad():
        try:
            run(twin.train(), inputs)
        except OF_ITS_CODE:
            return False
    return True


def _some_of(structure: Structure, groups: tuple[Group, ...], seed: int) -> dict[str, Tensor]:
    """All nodes but some of those of `groups`, the same ones whatever the other groups are."""
    generator = torch.Generator().manual_seed(seed)
    some = {g.name: _some(g, generator) for g in structure.prunable}
    return structure.keep_all() | {g.name: some[g.name] for g in groups}


def _some(group: Group, generator: torch.Generator) -> Tensor:
    """A random number of a group's nodes, different from that of other groups: some code counts on equal halves."""
    count = int(torch.randint(1, max(2, group.width), (), generator=generator))
    return torch.randperm(group.width, generator=generator)[:count].sort().values
