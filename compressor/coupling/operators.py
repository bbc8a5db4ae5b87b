"""What each family of ATen operators does to channels: one table, operator name -> rule.

A rule takes the flow, the node and its arguments, with tensors replaced by their labels, and returns the labels of what the
operator gives. An operator that is in no family freezes what goes in, and says its name; so does one of a form that its rule
cannot follow, for which the rule raises `Unfit`. Any other exception is a bug of the rule. It is not caught, for it would
freeze layers in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compressor.coupling.flow import (
    NOT_A_CHANNEL,
    Constant,
    Flow,
    Parameter,
    flat,
    meet,
    named,
    operator_of,
    owner_of,
    run_on_labels,
)
from compressor.coupling.labels import FILLER, Unfit, collapsed, constant_along
from compressor.coupling.layers import LAYER_RULES
from compressor.coupling.products import PRODUCT_RULES
from compressor.coupling.splits import divide

Rule = Callable[[Flow, fx.Node, list[Any], dict[str, Any]], Any]


RESHAPES = named("view reshape reshape_as _unsafe_view view_as unflatten")
PARTS = named("split split_with_sizes tensor_split chunk")
MOVES = named(
    """flatten permute transpose t numpy_T mT swapaxes swapdims movedim moveaxis
    cat concat concatenate stack hstack vstack unbind select slice narrow
    roll flip rot90 unsqueeze squeeze expand expand_as repeat tile repeat_interleave pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle broadcast_to unfold diagonal"""
)
INDEXED = named("index index_select gather")
SIZED = RESHAPES | PARTS | named("expand repeat layer_norm group_norm conv2d pixel_shuffle")
"""Operators whose sizes a module may remember."""
HEADS = re.compile(r"heads?$|n_?head$|num_head")
SAME = named(
    """contiguous clone alias detach lift_fresh_copy _to_copy to type_as dropout feature_dropout alpha_dropout
    feature_alpha_dropout native_dropout celu selu elu gelu silu mish hardtanh hardswish hardsigmoid relu6 leaky_relu softplus
    logsigmoid threshold rrelu zero fill zeros_like ones_like full_like rand_like randn_like"""
)
POOLS = named(
    """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d
    upsample_trilinear3d upsample_nearest_exact2d _upsample_nearest_exact2d reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d replication_pad3d"""
)
REDUCTIONS = named("mean sum amax amin max min prod var std logsumexp argmax argmin all any norm linalg_vector_norm")
SOFTMAXES = named("softmax _softmax log_softmax _log_softmax")
IGNORED = named("new_zeros new_ones new_full sym_size _assert_scalar _assert_tensor_metadata sym_constrain_range_for_size")


def apply(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Labels of what the operator at `node` gives, when `arguments` carry theirs."""
    target: Any = node.target
    name = operator_of(node)
    values = flat(arguments) + flat(options)
    constant = name == "arange" or (values and all(isinstance(v, Constant) for v in values))
    if not constant and (not values or name in IGNORED):
        return _result(flow, node, None)
    pointwise = torch.Tag.pointwise in getattr(target, "tags", ())
    if name in LAYER_RULES and name != "embedding" and isinstance(arguments[0], (Constant, Parameter)):
        arguments = [_entries(flow, arguments[0]), *arguments[1:]]
    rule = _elementwise if pointwise and (name not in RULES or name in REDUCTIONS) else RULES.get(name, _unknown)
    try:
        if constant:
            return _evaluated(node, arguments, options)
        outcome = rule(flow, node, arguments, options)
        _note_sizes(flow, node, name, outcome)
        return outcome
    except Unfit as form:
        return _unknown(flow, node, arguments, options, f" ({form})")


def _evaluated(node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """What an operator gives on constants, such as the indices of a table of relative positions."""

    def value(argument: Any) -> Any:
        if isinstance(argument, Constant):
            return argument.value
        return [value(a) for a in argument] if isinstance(argument, (list, tuple)) else argument

    def wrapped(outcome: Any) -> Any:
        if isinstance(outcome, (list, tuple)):
            return [wrapped(o) for o in outcome]
        return Constant(outcome) if isinstance(outcome, Tensor) else outcome

    elsewhere = {k: v for k, v in options.items() if k not in ("device", "pin_memory")}
    return wrapped(run_on_labels(node, [value(a) for a in arguments], {k: value(v) for k, v in elsewhere.items()}))


def _note_sizes(flow: Flow, node: fx.Node, name: str, outcome: Any) -> None:
    """Numbers that the module at hand remembers, and that are how many channels it makes along a dimension."""
    owner = owner_of(node)
    if owner in flow.layers or name not in SIZED:
        return
    remembered = flow.remembered(owner)
    if isinstance(outcome, list) and outcome and remembered:
        _note_parts(flow, outcome, remembered)
    elif isinstance(outcome, Tensor):
        for dim in range(outcome.dim()) if remembered else ():
            _note_size(flow, outcome, dim, [place for place, value in remembered.items() if value == outcome.shape[dim]])
            shapes = {place: value for place, value in remembered.items() if isinstance(value, tuple)}
            for place, value in shapes.items():
                first = outcome.dim() - len(value)
                if dim >= first >= 0 and value == tuple(outcome.shape[first:]):
                    _note_size(flow, outcome, dim, [f"{place}.{dim - first}"])


def _note_parts(flow: Flow, parts: list[Tensor], remembered: Mapping[str, int | tuple[int, ...]]) -> None:
    """The size of equal parts, or the list of sizes of unequal ones."""
    for dim in range(parts[0].dim()):
        sizes = tuple(part.shape[dim] for part in parts)
        for place, value in remembered.items():
            if value == sizes:
                for number, part in enumerate(parts):
                    _note_size(flow, part, dim, [f"{place}.{number}"])
            elif value == sizes[0]:
                _note_size(flow, parts[0], dim, [place])


def _note_size(flow: Flow, labels: Tensor, dim: int, places: list[str]) -> None:
    counts = [place for place in places if HEADS.search(place)]
    places = counts or places  # 16 heads of 16 dimensions: the name tells
    if places and dim == labels.dim() - 1 and flow.is_stored(labels):  # a table of positions and heads
        labels = labels[(slice(0, 1),) * dim]
    if places and not constant_along(labels, dim) and (channels := _along(labels, dim)) is not None:
        for place in places:
            flow.size(place, channels)


def _along(labels: Tensor, dim: int) -> Tensor | None:
    """The labels `(size,)` along a dimension, where they are the same all along the others."""
    for other in range(labels.dim()):
        if other != dim:
            if not constant_along(labels, other):
                return None
            labels = collapsed(labels, other)
    return labels.flatten()


def _unknown(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any], form: str = "") -> Any:
    reason = f"operator {getattr(node.target, '_opname', node.target)} cannot be followed{form}"
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
        return flow.stays(tuple(value.shape))

    value = node.meta.get("val")
    return type(value)(one(v) for v in value) if isinstance(value, (tuple, list)) else one(value)


def _entries(flow: Flow, value: Any) -> Any:
    """Parameters and constants replaced by labels of their entries, in nested arguments."""
    if isinstance(value, Parameter):
        return flow.entry_labels(value)
    if isinstance(value, Constant):
        return flow.stays(tuple(value.value.shape))
    return type(value)(_entries(flow, v) for v in value) if isinstance(value, (list, tuple)) else value


def _move(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    outcome = run_on_labels(node, [_entries(flow, a) for a in arguments], options)
    there, expected = ([tuple(v.shape) for v in flat(value)] for value in (outcome, node.meta.get("val")))
    known = all(type(size) is int for shape in expected for size in shape)  # else it depends on values
    if known and there != expected:
        raise Unfit("it does something else with labels than with activations")
    return list(outcome) if isinstance(outcome, tuple) else outcome


def _reshape(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    try:
        outcome = _move(flow, node, [x, *arguments[1:]], options)
    except Unfit:  # what is a view of activations may be none of their labels
        outcome = _move(flow, node, [x.contiguous(), *arguments[1:]], options)
    return divide(flow, node, tuple(x.shape), outcome)


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
    if isinstance(slope, Parameter) and not slope.shape:
        raise Unfit("its slope is one number")
    if isinstance(slope, Parameter) and slope.shape[0] > 1:
        flow.carry(slope, flow.channels(x, 1, NOT_A_CHANNEL))
    return x


def _index(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    if any(isinstance(v, (Tensor, Parameter)) for v in flat(arguments[1:])):
        raise Unfit("its places depend on the input")
    x, *places = arguments
    places = [[p and p.value for p in q] if isinstance(q, list) else q.value if isinstance(q, Constant) else q for q in places]
    return run_on_labels(node, [_entries(flow, x), *places], options)


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
    if not isinstance(node.meta["val"], Tensor):
        raise Unfit("it gives several tensors")
    return meet(flow, [_entries(flow, v) for v in flat(arguments) + flat(options)], tuple(node.meta["val"].shape))


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
    return [labels, labels] if isinstance(values, (tuple, list)) else labels  # where each was found belongs to its channel


def _reduce(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    if not x.dim():
        raise Unfit("a number, which has no dimensions")
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
    labels = labels.expand(shape)
    return [labels, labels] if isinstance(value, (tuple, list)) else labels


def _softmax(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = _entries(flow, arguments[0])
    if not constant_along(x, arguments[1]):
        flow.freeze(x, "it normalises over channels")
    return x


RULES: Mapping[str, Rule] = (
    dict.fromkeys(MOVES, _move)
    | dict.fromkeys(RESHAPES, _reshape)
    | dict.fromkeys(PARTS, _part)
    | dict.fromkeys(INDEXED, _index)
    | dict.fromkeys(SAME, _same)
    | dict.fromkeys(POOLS, _pool)
    | dict.fromkeys(REDUCTIONS, _reduce)
    | dict.fromkeys(SOFTMAXES, _softmax)
    | dict.fromkeys(("prelu", "_prelu_kernel"), _prelu)
    | dict.fromkeys(("constant_pad_nd", "pad"), _pad)
    | LAYER_RULES
    | PRODUCT_RULES
)
