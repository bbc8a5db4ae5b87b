"""Removing nodes for good: a plan and a network give a smaller network."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compressor.types import Kept, Structure


def shrink(model: nn.Module, structure: Structure, kept: Kept) -> nn.Module:
    """A new, smaller network that keeps only the nodes in `kept`; `model` is not changed.

    What is removed is never copied. Data type, device, `requires_grad`, train/eval flags and shared weights stay as they are.

    Args:
        model: the network that `structure` describes.
        kept: group -> sorted indices `(kept,)`; every prunable group must be there.
    Raises:
        BadInput: `kept` does not fit the structure.
    """
    stay: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (name, dim), indices in structure.kept_entries(kept).items():
        stay[name][dim] = indices
    smaller: dict[int, Tensor] = {}
    for name, tensor in _tensors(model).items():
        if name in stay:
            smaller[id(tensor)] = _sliced(tensor, stay[name])
    small = copy.deepcopy(model, smaller)  # the memo: deepcopy takes these instead of copying the originals
    depthwise = {s.layer for group in structure.groups for s in group.slices if s.role == "pass"}
    for name in {name.rpartition(".")[0] for name in stay}:
        refit(small.get_submodule(name), name in depthwise)
    return small


def zeroed_reads(model: nn.Module, structure: Structure, kept: Kept) -> dict[str, Tensor]:
    """The consumers' weights of `model` with the columns of removed nodes set to 0, by name.

    With `torch.func.functional_call` they make the dense network that the smaller one must equal.
    """
    tensors = _tensors(model)
    zeroed: dict[str, Tensor] = {}
    for name, dim, columns in _removed_reads(structure, kept):
        weight = zeroed.setdefault(name, tensors[name].detach().clone())
        weight.index_fill_(dim, columns.to(weight.device), 0.0)
    return zeroed


def zero_reads(model: nn.Module, structure: Structure, kept: Kept) -> None:
    """Set, in place, the columns of removed nodes to 0 in their consumers' weights."""
    tensors = _tensors(model)
    for name, dim, columns in _removed_reads(structure, kept):
        tensors[name].data.index_fill_(dim, columns.to(tensors[name].device), 0.0)


def _removed_reads(structure: Structure, kept: Kept) -> Iterator[tuple[str, int, Tensor]]:
    for group in structure.prunable:
        removed = torch.ones(group.width, dtype=torch.bool)
        removed[kept[group.name]] = False
        for s in group.slices:
            if s.role == "read" and bool(removed.any()):
                yield s.tensor, s.dim, s.index[removed].flatten()


def refit(module: nn.Module, depthwise: bool) -> None:
    """Set, in place, the sizes that a module remembers to those of its tensors.

    Args:
        depthwise: whether a convolution's channels are its groups, so that there are fewer groups now.
    """
    if isinstance(module, _ConvNd):
        outputs, inputs = module.weight.shape[:2]
        if depthwise:
            module.groups = outputs // (module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    for kind, fit in _FITS.items():
        if isinstance(module, kind):
            fit(module)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel of a convolution, as its network builds it, is a group of its own."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def _tensors(model: nn.Module) -> Mapping[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _sliced(tensor: Tensor, stay: Mapping[int, Tensor]) -> Tensor:
    with torch.no_grad():
        part = tensor
        for dim, indices in stay.items():
            part = part.index_select(dim, indices.to(tensor.device))
        part = part.contiguous()
    return nn.Parameter(part, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _fit_linear(module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


def _fit_batch_norm(module: nn.Module) -> None:
    assert isinstance(module, _NormBase)
    sized = module.weight if module.weight is not None else module.running_mean
    if sized is not None:
        module.num_features = len(sized)


def _fit_prelu(module: nn.Module) -> None:
    assert isinstance(module, nn.PReLU)
    module.num_parameters = module.weight.numel()


_FITS: dict[type[nn.Module], Callable[[nn.Module], None]] = {
    nn.Linear: _fit_linear,
    _NormBase: _fit_batch_norm,
    nn.PReLU: _fit_prelu,
}
