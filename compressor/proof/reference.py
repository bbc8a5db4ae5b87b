"""The dense network that a smaller one must equal: readers ignore what is removed, norms over channels do not see it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from compressor.model.branches import in_branches
from compressor.model.inputs import Inputs, run
from compressor.model.observe import observed, outputs_of
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.shrink import tensors_of
from compressor.types.structure import Kept, Structure


def reference_outputs(network: GroupedNetwork, kept: Kept, *, inplace: bool = False, branches: bool = False) -> list[Tensor]:
    """What a network gives in eval mode when the nodes that are not kept are silent.

    Args:
        inplace: work on its model itself, which is of no use afterwards, rather than on a copy.
        branches: also what the network gives only in training, such as auxiliary heads.
    """
    model, structure = network.model, network.structure
    zeroed = zeroed_weights(model, structure, kept, inplace=inplace)

    @contextmanager
    def within(twin: nn.Module) -> Iterator[None]:
        with norms_over_kept(twin, structure, kept), in_branches(twin) if branches else nullcontext():
            yield

    return outputs_of(model, network.inputs, {} if inplace else zeroed, within, inplace=inplace)


def zeroed_weights(model: nn.Module, structure: Structure, kept: Kept, *, inplace: bool = False) -> dict[str, Tensor]:
    """The consumers' weights with the columns of removed nodes set to 0, by name; copies, unless `inplace`.

    Nodes that are multiplied with each other have no consumer with a weight: there the producers' rows are 0.
    """
    tensors = tensors_of(model)
    zeroed: dict[str, Tensor] = {}
    for group in structure.prunable:
        removed = torch.ones(group.width, dtype=torch.bool)
        removed[kept[group.name]] = False
        for s in group.slices if bool(removed.any()) else ():
            if (s.role == "read" or (group.multiplied and s.role in ("produce", "carry"))) and s.tensor in tensors:
                if s.tensor not in zeroed:
                    tensor = tensors[s.tensor].detach()
                    zeroed[s.tensor] = tensor if inplace else tensor.clone()
                weight = zeroed[s.tensor]
                weight.index_fill_(s.dim, s.index[removed].flatten().to(weight.device), 0.0)
    return zeroed


@contextmanager
def norms_over_kept(model: nn.Module, structure: Structure, kept: Kept) -> Iterator[None]:
    """Within, LayerNorm, RMSNorm and GroupNorm of `model` see the kept channels only, and give 0 for the rest.

    A removed channel would be in the mean and the variance that all the others are normalised with, even with its value 0.
    A norm is known by its weight, so that it does not matter which code calls it.
    """

    def stays() -> dict[int, Tensor]:
        entries = structure.kept_entries(kept)
        return {id(p): entries[name, 0] for name, p in model.named_parameters(remove_duplicate=False) if (name, 0) in entries}

    with _Norms(functools.cache(stays)):  # not computed where there is no such norm
        yield


def over_channels(model: nn.Module, inputs: Inputs) -> frozenset[str]:
    """Names of the weights of norms over channels, whichever code calls them."""
    seen: set[int] = set()
    with observed(model) as twin, torch.no_grad(), _Seen(seen):
        run(twin, inputs)
        return frozenset(name for name, p in twin.named_parameters(remove_duplicate=False) if id(p) in seen)


class _Seen(TorchFunctionMode):
    def __init__(self, seen: set[int]) -> None:
        self.seen = seen

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _PARTIAL:
            self.seen.update(id(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        return function(*args, **kwargs)


class _Norms(TorchFunctionMode):
    def __init__(self, stays: Callable[[], Mapping[int, Tensor]]) -> None:
        self.stays = stays

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _PARTIAL:
            names = ("x", "shape", "weight", *(("eps",) if _PARTIAL[function] is _root_mean_square else ("bias", "eps")))
            given = dict(zip(names, args, strict=False)) | {_RENAMED.get(k, k): v for k, v in kwargs.items()}
            stay = self.stays().get(id(given.get("weight")))
            if stay is not None:
                return _PARTIAL[function](stay=stay.to(given["x"].device), **given)
        return function(*args, **kwargs)


_RENAMED = {"input": "x", "normalized_shape": "shape", "num_groups": "shape"}


def _over_last(x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *, stay: Tensor) -> Tensor:
    part = x.index_select(-1, stay)
    part = F.layer_norm(part, (len(stay),), weight[stay], None if bias is None else bias[stay], eps)
    return torch.zeros_like(x).index_copy(-1, stay, part.to(x.dtype))


def _root_mean_square(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None, *, stay: Tensor) -> Tensor:
    part = F.rms_norm(x.index_select(-1, stay), (len(stay),), weight[stay], eps)
    return torch.zeros_like(x).index_copy(-1, stay, part.to(x.dtype))


def _over_groups(
    x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *, stay: Tensor
) -> Tensor:
    part = F.group_norm(x.index_select(1, stay), shape, weight[stay], None if bias is None else bias[stay], eps)
    return torch.zeros_like(x).index_copy(1, stay, part.to(x.dtype))


_PARTIAL: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: _over_last,
    torch.layer_norm: _over_last,
    F.group_norm: _over_groups,
    torch.group_norm: _over_groups,
    F.rms_norm: _root_mean_square,
    torch.rms_norm: _root_mean_square,
}
