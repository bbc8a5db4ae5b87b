"""Nodes without a path from input to output, after single weights were removed: they go, and what they always said stays.

A node that nothing arrives at still gives a constant, from biases and norms. Its readers get that constant in their bias, where
that is the same: not at the padded border of a convolution, which pads with zeros.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compressor.model.inputs import run, unlike
from compressor.model.observe import observed
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.paths import Paths
from compressor.types.structure import Group, Kept, Slice

ALIKE = 1e-6
"""Spread of a value, as a fraction of its size, up to which it counts as constant."""


@dataclass(frozen=True)
class _Fold:
    """What a layer always gets from nodes that go: `amounts` `(outputs,)`, for its bias or against a running mean."""

    layer: str
    norm: str | None
    amounts: Tensor


def removable(network: GroupedNetwork, found: Paths, floor: int = 1) -> dict[str, Tensor]:
    """group -> nodes that stay `(kept,)`; dead ones whose constant cannot be moved stay, and `floor` nodes of every group.

    Args:
        network: with its weights masked; constants are measured on its inputs.
        found: its paths.
    """
    constants = _Constants(network, found)
    kept = {}
    for group in network.structure.prunable:
        dead = found.dead(group.name)
        dead &= ~found.observable[group.name] | constants.movable(group)
        missing = min(floor, group.width) - int((~dead).sum())
        if missing > 0:
            dead[dead.nonzero().flatten()[:missing]] = False
        kept[group.name] = (~dead).nonzero().flatten()
    return kept


def without_dead(network: GroupedNetwork, found: Paths, kept: Kept) -> nn.Module:
    """A smaller network that computes what `network`, with its weights masked, does; constants are moved to biases.

    Args:
        kept: what `removable` gave.
    """
    constants = _Constants(network, found)
    small = network.shrink(kept).model
    entries = network.structure.kept_entries(kept)
    for group in network.structure.prunable:
        stays = torch.zeros(group.width, dtype=torch.bool)
        stays[kept[group.name]] = True
        for fold in constants.folds(group, ~stays & found.observable[group.name]):
            amounts = fold.amounts
            if (rows := entries.get((f"{fold.layer}.weight", 0))) is not None:
                amounts = amounts[rows.to(amounts.device)]
            _add(small, fold, amounts)
    return small


def sync_constant_running_means(network: GroupedNetwork, reachable: Mapping[str, Tensor]) -> None:
    """Give batch norms, in place, the running mean of nodes that nothing arrives at: the constant they are.

    In train mode such a node is its norm's shift, whatever its bias. Its running variance fades to 0, and the optimizer
    moves the bias on: where the running mean lags behind, eval mode divides the difference by sqrt(eps), 0.003.

    Args:
        network: its masked weights have been trained.
        reachable: group -> booleans `(width,)`, see `Paths`.
    """
    channels: dict[str, list[Tensor]] = defaultdict(list)
    model, structure = network.model, network.structure
    for group in structure.groups:
        for s in group.slices:
            if s.role == "produce" and s.layer in structure.norms and not bool(reachable[group.name].all()):
                channels[structure.norms[s.layer]].append(s.index[~reachable[group.name]].flatten())
    if not channels:
        return
    with observed(model) as twin, torch.no_grad():
        for name, some in channels.items():
            twin.get_submodule(name).register_forward_pre_hook(functools.partial(_constant_mean, torch.cat(some)))
        run(twin, network.inputs)  # those behind see what those before are now
        for name in channels:
            norm: Any = model.get_submodule(name)
            if norm.running_mean is not None:
                norm.running_mean.copy_(twin.get_submodule(name).running_mean)


def _constant_mean(channels: Tensor, norm: Any, args: tuple[Tensor, ...]) -> None:
    """Before a norm runs: the running mean of those of the channels that are constant here."""
    if norm.running_mean is not None:
        channels = channels.to(args[0].device)
        values = args[0].transpose(0, 1).flatten(1)[channels]
        low, high = values.amin(1), values.amax(1)
        alike = high - low <= ALIKE * torch.maximum(low.abs(), high.abs())
        norm.running_mean[channels[alike]] = low[alike].to(norm.running_mean.dtype)


def _add(small: nn.Module, fold: _Fold, amounts: Tensor) -> None:
    layer: Any = small.get_submodule(fold.layer)
    with torch.no_grad():
        if fold.norm is None:
            layer.bias += amounts.to(layer.bias.dtype)
        else:
            norm: Any = small.get_submodule(fold.norm)
            norm.running_mean -= amounts.to(norm.running_mean.dtype)


class _Constants:
    """What the readers of nodes that nothing arrives at always see."""

    def __init__(self, network: GroupedNetwork, found: Paths) -> None:
        self.model, self.norms = network.model, network.structure.norms
        self._seen: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        with observed(network.model) as twin, torch.no_grad():
            for group in network.structure.prunable:
                if not bool(found.reachable[group.name].all()):
                    for s in group.slices:
                        if s.role == "read" and _is_plain(twin.get_submodule(s.layer), s):
                            self._watch(twin.get_submodule(s.layer), group.name, s)
            for given in unlike(network.inputs):
                run(twin, given)

    def _watch(self, module: nn.Module, group: str, s: Slice) -> None:
        def see(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            x = (args[0] if args else options["input"]).detach()
            values = x.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)[
                s.index.to(x.device)
            ]  # (width, k, all)
            low, high = values.amin(2), values.amax(2)
            if (group, s.tensor) in self._seen:  # called more than once
                before = self._seen[group, s.tensor]
                low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            self._seen[group, s.tensor] = low, high

        module.register_forward_pre_hook(see, with_kwargs=True)

    def movable(self, group: Group) -> Tensor:
        """Booleans `(width,)`: the node's constant can be moved to where all its readers have one."""
        able = torch.ones(group.width, dtype=torch.bool)
        for s in group.slices:
            if s.role != "read":
                continue
            if (group.name, s.tensor) not in self._seen:
                return torch.zeros(group.width, dtype=torch.bool)
            low, high = self._seen[group.name, s.tensor]
            constant = (high - low <= ALIKE * torch.maximum(low.abs(), high.abs())).all(1).cpu()
            silent = ((low == 0) & (high == 0)).all(1).cpu()
            able &= silent | constant if self._place(s.layer) else silent
        return able

    def folds(self, group: Group, gone: Tensor) -> list[_Fold]:
        """What moves when the nodes `gone`, booleans `(width,)`, go."""
        found = []
        for s in group.slices:
            if s.role == "read" and (group.name, s.tensor) in self._seen and (place := self._place(s.layer)):
                low, _ = self._seen[group.name, s.tensor]
                module: Any = self.model.get_submodule(s.layer)
                weight = module.weight.detach().flatten(2).sum(2) if module.weight.dim() > 2 else module.weight.detach()
                columns = s.index[gone].flatten().to(weight.device)
                amounts = weight[:, columns] @ low[gone.to(low.device)].flatten().to(weight)
                if bool(amounts.any()):
                    found.append(_Fold(s.layer, None if place == "bias" else self.norms[s.layer], amounts))
        return found

    def _place(self, layer: str) -> str | None:
        """Where a layer takes a constant: its bias, or the running mean of the norm behind it."""
        module: Any = self.model.get_submodule(layer)
        if isinstance(module, _ConvNd) and (module.padding not in (0, "valid") and set(module.padding) != {0}):
            return None
        if module.bias is not None:
            return "bias"
        norm = self.norms.get(layer)
        behind = self.model.get_submodule(norm) if norm else None
        return "mean" if isinstance(behind, _NormBase) and behind.running_mean is not None else None


def _is_plain(module: nn.Module, s: Slice) -> bool:
    """Whether the input of a layer has one channel for each column of its weight."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not module.transposed and s.tensor.endswith("weight")
    return isinstance(module, nn.Linear)
