"""What each family of ATen operators does to channels: one table, operator name -> rule.

A rule takes the flow, the node and its arguments, with tensors replaced by their labels, and returns the labels of what the
operator gives. An operator that is in no family freezes what goes in, and says its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compressor.structure.flow import Constant, Flow, Parameter, flat
from compressor.structure.labels import FILLER, collapsed, compact, constant_along

Rule = Callable[[Flow, fx.Node, list[Any], dict[str, Any]], Any]
NOT_A_CHANNEL = "it works along a dimension that carries no channels of its own"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


RESHAPES = _names("view reshape _unsafe_view view_as unflatten")
PARTS = _names("split split_with_sizes tensor_split chunk")
MOVES = _names(
    """flatten permute transpose t numpy_T mT swapaxes swapdims movedim moveaxis
    cat concat concatenate stack hstack vstack unbind select slice narrow
    roll flip rot90 unsqueeze squeeze expand expand_as repeat tile repeat_interleave pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle broadcast_to unfold diagonal"""
)
INDEXED = _names("index index_select gather")
SAME = _names(
    """contiguous clone alias detach lift_fresh_copy _to_copy to type_as dropout feature_dropout alpha_dropout
    feature_alpha_dropout native_dropout celu selu elu gelu silu mish hardtanh hardswish hardsigmoid relu6 leaky_relu softplus
    logsigmoid threshold rrelu zeros_like ones_like full_like rand_like randn_like"""
)
POOLS = _names(
    """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d
    upsample_trilinear3d upsample_nearest_exact2d _upsample_nearest_exact2d reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d replication_pad3d"""
)
REDUCTIONS = _names("mean sum amax amin max min prod var std logsumexp argmax argmin all any norm linalg_vector_norm")
SOFTMAXES = _names("softmax _softmax log_softmax _log_softmax")
CONVOLUTIONS = _names("conv1d conv2d conv3d convolution")
NORMS_OVER_CHANNELS = _names("layer_norm group_norm native_layer_norm native_group_norm local_response_norm rms_norm")
IGNORED = _names("new_zeros new_ones new_full sym_size _assert_scalar _assert_tensor_metadata sym_constrain_range_for_size")


def apply(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Labels of what the operator at `node` gives, when `arguments` carry theirs."""
    target: Any = node.target
    name = getattr(target, "_opname", str(target)).removesuffix("_")
    values = flat(arguments) + flat(options)
    if not values or name in IGNORED:
        return _result(flow, node, None)
    pointwise = torch.Tag.pointwise in getattr(target, "tags", ())
    rule = _elementwise if pointwise and (name not in RULES or name in REDUCTIONS) else RULES.get(name, _unknown)
    try:
        return rule(flow, node, arguments, options)
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):  # a use of the operator that the rule never met
        return _unknown(flow, node, arguments, options)


def _unknown(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    reason = f"operator {getattr(node.target, '_opname', node.target)} cannot be followed"
    if (owner := owner_of(node)) in flow.layers:
        flow.frozen_layers.setdefault(owner, f"{flow.where}: {reason}")
    flow.freeze(arguments + list(options.values()), reason)
    return _result(flow, node, reason)


def _result(flow: Flow, node: fx.Node, frozen: str | None) -> Any:
    """Labels for an outcome that is no node's: frozen where a reason is given, else filler."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if frozen is None:
            return torch.full((1,) * value.dim(), FILLER).expand(value.shape)
        return flow.stays(value.shape, f"{flow.where}: {frozen}")

    value = node.meta.get("val")
    return type(value)(one(v) for v in value) if isinstance(value, (tuple, list)) else one(value)


def _entries(flow: Flow, value: Any) -> Any:
    """Parameters and constants replaced by labels of their entries, in nested arguments."""
    if isinstance(value, Parameter):
        return flow.entry_labels(value)
    if isinstance(value, Constant):
        return flow.stays(tuple(value.value.shape), "a constant in the network's code")
    return type(value)(_entries(flow, v) for v in value) if isinstance(value, (list, tuple)) else value


def _move(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    target: Any = node.target
    outcome = target(*(_entries(flow, a) for a in arguments), **options)
    return list(outcome) if isinstance(outcome, tuple) else outcome


def _reshape(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Where channels are split over two dimensions, as in a shuffle, those along the smaller one go together.

    The network's code divides by that factor (`view(n, 2, c // 2, h, w)`), so each of its parts must keep as many.
    """
    x = _entries(flow, arguments[0])
    outcome = _move(flow, node, [x, *arguments[1:]], options)
    for first, last in _split_dimensions(tuple(x.shape), tuple(outcome.shape)):
        inside = [d for d in range(first, last) if not constant_along(outcome, d)]
        if len(inside) == 2:
            inside.sort(key=lambda d: outcome.shape[d], reverse=True)
        for dim in inside[1:]:  # of more than two, a linear layer made a map: its channels come first
            flow.labels.tie(outcome.narrow(dim, 0, 1).expand_as(outcome), outcome)
    return outcome


def _split_dimensions(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int]]:
    """The ranges of dimensions in `after` that were one dimension in `before`."""
    found: list[tuple[int, int]] = []
    start = 0
    for size in before:
        stop, product = start, 1
        while stop < len(after) and product < size and size % (product * after[stop]) == 0:
            product *= after[stop]
            stop += 1
        if product != size:
            return found  # dimensions were merged: from here on nothing is split
        if stop - start > 1:
            found.append((start, stop))
        start = max(stop, start + (size == 1 and start < len(after) and after[start] == 1))
    return found


def _part(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Equal parts stay equal: nodes in the same place of each go together."""
    parts = _move(flow, node, arguments, options)
    dim = options.get("dim", arguments[2] if len(arguments) > 2 else 0)
    if len({part.shape[dim] for part in parts}) == 1 and not constant_along(_entries(flow, arguments[0]), dim):
        for part in parts[1:]:
            flow.labels.tie(parts[0], part)
    return parts


def _prelu(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x, slope = arguments
    if isinstance(slope, Parameter) and slope.shape[0] > 1:
        flow.carry(slope, flow.channels(x, 1, NOT_A_CHANNEL))
    return x


def _index(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    if any(isinstance(v, (Tensor, Parameter)) for v in flat(arguments[1:])):
        return _unknown(flow, node, arguments, options)  # the places depend on the input
    target: Any = node.target
    x, *places = arguments
    places = [[p and p.value for p in q] if isinstance(q, list) else q.value if isinstance(q, Constant) else q for q in places]
    return target(_entries(flow, x), *places, **options)


def _same(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    return _entries(flow, arguments[0])


def _pad(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    mode = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], str) else "constant"
    if mode == "constant":
        return F.pad(x, arguments[1], value=FILLER)
    return F.pad(x.double(), arguments[1], mode=mode).long()


def _elementwise(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Labels that meet in one position are tied, but never through a broadcast axis of size 1."""
    shape = node.meta["val"].shape
    given = sorted(flat(arguments) + flat(options), key=lambda v: not isinstance(v, Tensor))  # activations before parameters
    operands = [_entries(flow, v) for v in given]
    operands = [compact(v.reshape((1,) * (len(shape) - v.dim()) + tuple(v.shape))) for v in operands]
    activations = operands[: max(1, sum(isinstance(v, Tensor) for v in given))]
    main = max(activations, key=lambda v: (v.numel(), bool((v != FILLER).any())))
    for other in operands:
        if other is main:
            continue
        varies = [d for d in range(len(shape)) if not constant_along(main, d)]
        spread = any(other.shape[d] == 1 and shape[d] > 1 for d in varies)
        if spread and all(constant_along(other, d) for d in varies):
            flow.freeze(other, "it multiplies or shifts several channels at once")
            continue
        main, other = torch.broadcast_tensors(main, other)
        flow.labels.tie(main, other)
        main = compact(torch.where(main == FILLER, other, main)) if bool((main == FILLER).any()) else compact(main)
    return main.expand(shape)


def _pool(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    values = node.meta["val"]
    shape = (values[0] if isinstance(values, (tuple, list)) else values).shape
    name = getattr(node.target, "_opname", "")
    spatial = next(int(digit) for digit in "321" if f"{digit}d" in name)
    for dim in range(x.dim() - spatial, x.dim()):
        if not constant_along(x, dim):
            flow.freeze(x, "it pools over channels")
            return _result(flow, node, "it pools over channels")
        x = collapsed(x, dim)
    labels = x.expand(shape)
    return [labels, torch.full_like(labels, FILLER)] if isinstance(values, (tuple, list)) else labels


def _reduce(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    schema = [a.name for a in getattr(node.target, "_schema").arguments]  # noqa: B009 - fx types targets loosely
    place = schema.index("dim") if "dim" in schema else len(arguments)
    dims = options.get("dim", arguments[place] if place < len(arguments) else None)
    dims = list(range(x.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    value = node.meta["val"]
    shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
    dims = sorted({d % x.dim() for d in dims}, reverse=True)
    for dim in dims:
        if not constant_along(x, dim):
            flow.freeze(x, "it reduces over channels")
            return _result(flow, node, "it reduces over channels")
        x = collapsed(x, dim)
    labels = x.reshape(shape) if x.numel() == shape.numel() else x
    for dim in dims if len(shape) < labels.dim() else ():
        labels = labels.squeeze(dim)
    return [labels, torch.full_like(labels, FILLER)] if isinstance(value, (tuple, list)) else labels


def _softmax(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    if not constant_along(x, arguments[1]):
        flow.freeze(x, "it normalises over channels")
    return x


def _channel_norm(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = arguments[0]
    channels = flow.channels(x, 1, NOT_A_CHANNEL)
    for parameter in arguments[1:5]:
        flow.carry(parameter, channels)
    return x


def _batch_norm_of_a_layer(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """As any norm of channels; beside it, note the layer that feeds nothing else, where both are used once."""
    source, stored = node.args[0], [a for a in node.args[1:5] if isinstance(a, fx.Node)]
    if stored and isinstance(source, fx.Node) and getattr(source.target, "_opname", "") in CONVOLUTIONS | {"linear"}:
        weight = source.args[1]
        own = (source, weight, *stored)
        if all(isinstance(n, fx.Node) and len(n.users) == 1 for n in own) and getattr(weight, "op", "") == "placeholder":
            flow.norms[owner_of(source)] = owner_of(node)
    return _channel_norm(flow, node, arguments, options)


def owner_of(node: fx.Node) -> str:
    """Name of the innermost module that an operator runs in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _over_channels(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    flow.freeze(arguments, "it normalises over channels")
    return _result(flow, node, "it normalises over channels")


def _linear(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    if not _own_weight(flow, node, x, weight):
        return _frozen_layer(flow, node, arguments)
    flow.read(weight, 1, flow.channels(x, x.dim() - 1, NOT_A_CHANNEL))
    made = flow.axis(weight, 0, "produce")
    flow.carry(bias, made)
    return made.expand(node.meta["val"].shape)


def _convolution(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    name, groups = getattr(node.target, "_opname", ""), _argument(arguments, options, "groups", 6)
    if name == "convolution":
        if arguments[6]:
            return _unknown(flow, node, arguments, options)
        groups = arguments[8]
    if not _own_weight(flow, node, x, weight) or x.dim() != len(weight.shape):
        return _frozen_layer(flow, node, arguments)
    channels = flow.channels(x, 1, NOT_A_CHANNEL)
    outputs, inputs = weight.shape[:2]
    if groups > 1 and inputs == 1:  # depthwise: each output belongs to the channel it reads
        made = flow.axis(weight, 0, "pass")
        flow.labels.tie(made, channels.repeat_interleave(outputs // groups))
    else:
        made = flow.axis(weight, 0, "produce")
        for group in channels.reshape(groups, inputs):
            flow.read(weight, 1, group)
        for group in made.reshape(groups, outputs // groups)[1:]:
            flow.labels.tie(made[: outputs // groups], group)
    flow.carry(bias, made)
    shape = node.meta["val"].shape
    return made.reshape(1, -1, *(1 for _ in shape[2:])).expand(shape)


def _argument(arguments: list[Any], options: dict[str, Any], name: str, place: int) -> int:
    return options.get(name, arguments[place] if len(arguments) > place else 1)


def _own_weight(flow: Flow, node: fx.Node, x: Any, weight: Any) -> bool:
    """The layer reads activations through a stored weight of the module that runs."""
    owner = owner_of(node)
    return (
        isinstance(x, Tensor)
        and isinstance(weight, Parameter)
        and owner in flow.layers
        and weight.name == f"{owner}.weight".removeprefix(".")
    )


def _frozen_layer(flow: Flow, node: fx.Node, arguments: list[Any]) -> Any:
    reason = "its weight is not the stored weight of a convolution or linear module"
    if (owner := owner_of(node)) in flow.layers:
        flow.frozen_layers.setdefault(owner, f"{flow.where}: {reason}")
    flow.freeze(arguments, reason)
    return _result(flow, node, reason)


RULES: dict[str, Rule] = (
    dict.fromkeys(MOVES, _move)
    | dict.fromkeys(RESHAPES, _reshape)
    | dict.fromkeys(PARTS, _part)
    | dict.fromkeys(INDEXED, _index)
    | dict.fromkeys(SAME, _same)
    | dict.fromkeys(POOLS, _pool)
    | dict.fromkeys(REDUCTIONS, _reduce)
    | dict.fromkeys(SOFTMAXES, _softmax)
    | dict.fromkeys(("prelu", "_prelu_kernel"), _prelu)
    | dict.fromkeys(CONVOLUTIONS, _convolution)
    | dict.fromkeys(("constant_pad_nd", "pad"), _pad)
    | dict.fromkeys(NORMS_OVER_CHANNELS, _over_channels)
    | {
        "batch_norm": _batch_norm_of_a_layer,
        "instance_norm": _channel_norm,
        "linear": _linear,
    }
)
