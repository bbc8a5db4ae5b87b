"""Removing nodes for good: a plan and a network give a smaller network."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compressor.types.structure import Kept, Structure


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
    tensors = tensors_of(model)
    for name, tensor in tensors.items():
        if name in stay:
            smaller[id(tensor)] = _sliced(tensor, stay[name])
    small = copy.deepcopy(model, smaller)  # the memo: deepcopy takes these instead of copying the originals
    depthwise = {s.layer for group in structure.groups for s in group.slices if s.role == "pass"}
    for name in {name.rpartition(".")[0] for name, tensor in tensors.items() if id(tensor) in smaller}:  # tied ones too
        refit(small.get_submodule(name), name in depthwise)
    for name in {s.tensor for group in structure.groups for s in group.slices if s.role == "size"} & stay.keys():
        remember(small, name, len(stay[name][0]))
    return small


def sliced(tensors: Mapping[str, Tensor], structure: Structure, kept: Kept) -> dict[str, Tensor]:
    """Tensors of a network's shapes by its names, such as an optimizer's moments, without the entries that `shrink` removes.

    Names that the structure does not have, and scalars, stay as they are.
    """
    stay: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (name, dim), indices in structure.kept_entries(kept).items():
        stay[name][dim] = indices
    return {name: _sliced(t, stay[name]) if name in stay and t.dim() else t for name, t in tensors.items()}


def remember(model: nn.Module, name: str, number: int) -> None:
    """Set, in place, a number that a module of `model` remembers: an attribute, or a place in one, `bias_shape.2`.

    Raises:
        AttributeError: there is no such module, attribute or place, or the number there is smaller.
    """
    owner, _, attribute = name.rpartition(".")
    place: int | None = None
    if attribute.isdigit():
        (owner, _, attribute), place = owner.rpartition("."), int(attribute)
    module = model.get_submodule(owner)
    old = getattr(module, attribute)
    if place is None and type(old) is int and number <= old:
        setattr(module, attribute, number)
    elif place is not None and type(old) in (tuple, list) and place < len(old) and number <= old[place]:
        setattr(module, attribute, type(old)((*old[:place], number, *old[place + 1 :])))
    else:
        raise AttributeError(f"{name} is not a number of at least {number}")


def sizes_of(structure: Structure) -> dict[str, int]:
    """The numbers of channels that modules remember: attribute -> number, such as `blocks.0.attn.num_heads`."""
    names = {s.tensor for group in structure.groups for s in group.slices if s.role == "size"}
    return {name: structure.shapes[name][0] for name in sorted(names)}


def refit(module: nn.Module, depthwise: bool) -> None:
    """Set, in place, the sizes that a module remembers to those of its tensors.

    Args:
        depthwise: whether a convolution's channels are its groups, so that there are fewer groups now.
    """
    if isinstance(module, _ConvNd) and module.transposed:
        inputs, outputs = module.weight.shape[:2]
        module.groups = inputs if depthwise else module.groups
        module.in_channels, module.out_channels = inputs, outputs * module.groups
    elif isinstance(module, _ConvNd):
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


def tensors_of(model: nn.Module) -> Mapping[str, Tensor]:
    """All parameters and buffers by every name that they have."""
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


def _fit_layer_norm(module: nn.Module) -> None:
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _fit_group_norm(module: nn.Module) -> None:
    assert isinstance(module, nn.GroupNorm)
    if module.weight is not None:
        module.num_channels = len(module.weight)


def _fit_embedding(module: nn.Module) -> None:
    assert isinstance(module, nn.Embedding)
    module.embedding_dim = module.weight.shape[1]


def _fit_recurrent(module: nn.Module) -> None:
    assert isinstance(module, nn.RNNBase)
    hidden, inputs = module.get_parameter("weight_hh_l0"), module.get_parameter("weight_ih_l0")
    module.hidden_size = hidden.shape[0] // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    module.input_size = inputs.shape[1]
    module._init_flat_weights()


def _fit_attention(module: nn.Module) -> None:
    assert isinstance(module, nn.MultiheadAttention)
    if module.in_proj_weight is not None:
        module.embed_dim = module.kdim = module.vdim = module.out_proj.weight.shape[0]
        module.num_heads = module.embed_dim // module.head_dim


_FITS: dict[type[nn.Module], Callable[[nn.Module], None]] = {
    nn.Linear: _fit_linear,
    _NormBase: _fit_batch_norm,
    nn.PReLU: _fit_prelu,
    nn.LayerNorm: _fit_layer_norm,
    nn.RMSNorm: _fit_layer_norm,
    nn.GroupNorm: _fit_group_norm,
    nn.Embedding: _fit_embedding,
    nn.RNNBase: _fit_recurrent,
    nn.MultiheadAttention: _fit_attention,
}
