"""Layers with stored weights: what they read, what they make, and the norms and embeddings between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from compressor.coupling.flow import NOT_A_CHANNEL, Flow, Parameter, named, operator_of, owner_of
from compressor.coupling.labels import FILLER, Unfit, collapsed, constant_along
from compressor.types.structure import maker_of

CONVOLUTIONS = named("conv1d conv2d conv3d convolution")
TRANSPOSED = named("conv_transpose1d conv_transpose2d conv_transpose3d")
RECURRENT = named("lstm gru rnn_tanh rnn_relu")
LAYER_OPERATORS = CONVOLUTIONS | TRANSPOSED | RECURRENT | {"linear", "embedding"}


def _linear(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    if not _stored(flow, node, x, weight) or len(weight.shape) != 2:
        return _frozen_layer(flow, node, arguments)
    if not x.numel():
        raise Unfit("a tensor without entries")
    lone = x.shape[-1] == 1 and bool((x == x.flatten()[0]).all())  # a layer of width 1 before it, not a single position
    if constant_along(x, x.dim() - 1) and bool((x != FILLER).any()) and not lone:
        return _along_positions(flow, node, arguments)
    channels = flow.channels(x, x.dim() - 1, NOT_A_CHANNEL)
    flow.read(weight, 1, channels)
    owner = owner_of(node)
    if isinstance(flow.modules.get(owner), nn.MultiheadAttention) and weight.name.endswith("in_proj_weight"):
        flow.size(f"{owner}.embed_dim".removeprefix("."), channels)  # its code takes the heads' sizes from its input's
    made = flow.axis(weight, 0, "produce")
    flow.carry(bias, made)
    return made.expand(node.meta["val"].shape)


def _along_positions(flow: Flow, node: fx.Node, arguments: list[Any]) -> Any:
    """A linear layer over positions, as in a mixer: each channel goes through it alone, and stays what it is.

    What it makes are positions, which other channels share; they stay whole.
    """
    x, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    made = flow.axis(weight, 0, "produce")
    flow.carry(bias, made)
    flow.labels.freeze(made, f"{flow.where}: its outputs are positions, not channels")
    return collapsed(x, x.dim() - 1).expand(node.meta["val"].shape)


def _convolution(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    groups = _argument(arguments, options, "groups", 6)
    if operator_of(node) == "convolution":
        if arguments[6]:
            return _frozen_layer(flow, node, arguments)
        groups = arguments[8]
    if not _stored(flow, node, x, weight) or x.dim() != len(weight.shape):
        return _frozen_layer(flow, node, arguments)
    channels = flow.channels(x, 1, NOT_A_CHANNEL)
    outputs, inputs = weight.shape[:2]
    if groups > 1 and inputs == 1:  # depthwise: each output belongs to the channel it reads
        of_a_layer = weight.name.rpartition(".")[0] in flow.layers
        made = flow.axis(weight, 0, "pass" if of_a_layer else "carry")
        read = channels.repeat_interleave(outputs // groups)
        flow.labels.tie(made, read)
        made = torch.where(read == FILLER, made, read)
    else:
        made = flow.axis(weight, 0, "produce")
        for group in channels.reshape(groups, inputs):
            flow.read(weight, 1, group)
        for group in made.reshape(groups, outputs // groups)[1:]:
            flow.labels.tie(made[: outputs // groups], group)
    flow.carry(bias, made)
    return _map_of(made, node)


def _transposed(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """The weight is `(inputs, outputs / groups, ...)`."""
    x, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    groups = _argument(arguments, options, "groups", 6)
    if not _stored(flow, node, x, weight) or x.dim() != len(weight.shape):
        return _frozen_layer(flow, node, arguments)
    channels = flow.channels(x, 1, NOT_A_CHANNEL)
    inputs, outputs = weight.shape[:2]
    if groups == inputs > 1:  # depthwise
        flow.labels.tie(flow.axis(weight, 0, "pass"), channels)
        made = flow.axis(weight, 0, "pass").repeat_interleave(outputs)
    else:
        flow.read(weight, 0, channels)
        for group in channels.reshape(groups, inputs // groups)[1:]:
            flow.labels.tie(channels[: inputs // groups], group)
        made = flow.axis(weight, 1, "produce").repeat(groups)
    flow.carry(bias, made)
    return _map_of(made, node)


def _map_of(made: Tensor, node: fx.Node) -> Tensor:
    shape = node.meta["val"].shape
    return made.reshape(1, -1, *(1 for _ in shape[2:])).expand(shape)


def _argument(arguments: list[Any], options: dict[str, Any], name: str, place: int) -> int:
    return int(options.get(name, arguments[place] if len(arguments) > place else 1))


def _stored(flow: Flow, node: fx.Node, x: Any, weight: Any) -> bool:
    """Whether the layer reads activations through a stored weight; note whose it is, and if a function applies it."""
    if not isinstance(x, Tensor) or not isinstance(weight, Parameter):
        return False
    owner = weight.name.rpartition(".")[0]
    flow.made_by[node] = maker_of(weight.name)
    if owner != owner_of(node) or owner not in flow.layers or weight.name.rpartition(".")[2] != "weight":
        flow.functional.add(weight.name)
    return True


def _frozen_layer(flow: Flow, node: fx.Node, arguments: list[Any]) -> Any:
    reason = "its weight is computed, not stored"
    if is_parametrized(flow.modules.get(owner_of(node)) or nn.Identity(), "weight"):
        reason += "; torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') stores it"
    elif hasattr(flow.modules.get(owner_of(node)), "weight_orig"):
        reason += "; torch.nn.utils.remove_spectral_norm(layer), or torch.nn.utils.prune.remove(layer, 'weight'), stores it"
    if (owner := owner_of(node)) in flow.layers:
        flow.frozen_layers.setdefault(owner, f"{flow.where}: {reason}")
    flow.freeze(arguments, reason)
    return flow.stays(tuple(node.meta["val"].shape))


def _channel_norm(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    x = arguments[0]
    channels = flow.channels(x, 1, NOT_A_CHANNEL)
    for parameter in arguments[1:5]:
        flow.carry(parameter, channels)
    return x


def _batch_norm_of_a_layer(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """As any norm of channels; beside it, note the layer that feeds nothing else, where both are used once."""
    source, stored = node.args[0], [a for a in node.args[1:5] if isinstance(a, fx.Node)]
    if stored and isinstance(source, fx.Node) and operator_of(source) in CONVOLUTIONS | {"linear"}:
        weight = source.args[1]
        own = (source, weight, *stored)
        layer = owner_of(source)
        its_own = flow.made_by.get(source) == layer and f"{layer}.weight" not in flow.functional
        if its_own and all(isinstance(n, fx.Node) and len(n.users) == 1 for n in own):
            flow.norms[layer] = owner_of(node)
    return _channel_norm(flow, node, arguments, options)


def _layer_norm(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """A norm over the last dimensions. After removal it norms over what is left (see `compressor.proof.reference`)."""
    x, shape = arguments[0], arguments[1]
    stored = [a for a in arguments[2:4] if isinstance(a, Parameter)]
    dims = range(x.dim() - len(shape), x.dim())
    if all(constant_along(x, d) for d in dims):
        return x
    if len(shape) > 1 or not stored or stored[0] is not arguments[2]:
        flow.freeze(x, "it normalises over channels, with no weight that says which")
        return x
    channels = flow.channels(x, x.dim() - 1, NOT_A_CHANNEL)
    for parameter in stored:
        flow.carry(parameter, channels)
    return x


def _group_norm(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """A norm over groups of channels: equal positions of each group go together, as in a grouped convolution."""
    x, groups = arguments[0], arguments[1]
    if not isinstance(groups, int):
        raise Unfit("its arguments are in another order")
    stored = [a for a in arguments[2:4] if isinstance(a, Parameter)]
    channels = flow.channels(x, 1, NOT_A_CHANNEL)
    if not stored or stored[0] is not arguments[2] or groups == len(channels):
        flow.freeze(x, "it normalises over channels, with no weight that says which")
        return x
    for group in channels.reshape(groups, -1)[1:]:
        flow.labels.tie(channels[: len(group)], group)
    for parameter in stored:
        flow.carry(parameter, channels)
    return x


def _embedding(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    weight = arguments[0]
    if not isinstance(weight, Parameter):
        flow.freeze(arguments, "its table is computed, not stored")
        return flow.stays(tuple(node.meta["val"].shape))
    return flow.axis(weight, 1, "carry").expand(node.meta["val"].shape)


def _recurrent(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """A unit is the same in every layer and direction, for they share one hidden size: each has its row in every gate."""
    x, parameters, biased, layers, bidirectional = arguments[0], arguments[2], arguments[3], arguments[4], arguments[7]
    states = arguments[1] if isinstance(arguments[1], (list, tuple)) else [arguments[1]]
    each = 4 if biased else 2
    directions = 2 if bidirectional else 1
    owner = owner_of(node)
    if not isinstance(parameters, (list, tuple)):
        raise Unfit("it reads sequences of several lengths")
    if not all(isinstance(p, Parameter) for p in parameters) or len(parameters) != each * layers * directions:
        return _frozen_layer_of_states(flow, node, arguments)
    flow.made_by[node] = owner
    flow.functional.update(p.name for p in parameters)
    channels, units = flow.channels(x, x.dim() - 1, NOT_A_CHANNEL), flow.labels.fresh(parameters[1].shape[1])
    for layer in range(layers):
        for direction in range(directions):
            start = each * (directions * layer + direction)
            rows, inner, *biases = parameters[start : start + each]
            gates = units.repeat(rows.shape[0] // len(units))
            flow.read(rows, 1, channels)
            flow.read(inner, 1, units)
            for parameter in (rows, inner):
                flow.labels.tie(flow.axis(parameter, 0, "carry"), gates)
            for parameter in biases:
                flow.carry(parameter, gates)
            made = Parameter(rows.name.replace("weight_ih", "units"), (len(units),))
            flow.labels.tie(flow.axis(made, 0, "produce"), units)
        channels = units.repeat(directions)
    for source in node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]:
        home = owner_of(source) if isinstance(source, fx.Node) else owner
        made_in = flow.remembered(home) if home != owner else {}
        for place, value in made_in.items():  # torch.zeros(layers, batch, self.hidden)
            if value == len(units):
                flow.size(place, units)
    for state in states:
        if isinstance(state, Tensor) and not bool((state == FILLER).all()):
            flow.labels.tie(flow.channels(state, state.dim() - 1, NOT_A_CHANNEL), units)
    values = node.meta["val"]
    return [channels.expand(values[0].shape), *(units.expand(value.shape) for value in values[1:])]


def _frozen_layer_of_states(flow: Flow, node: fx.Node, arguments: list[Any]) -> Any:
    reason = "its weights are computed, or it has a projection"
    flow.frozen_layers.setdefault(owner_of(node), f"{flow.where}: {reason}")
    flow.freeze(arguments, reason)
    return [torch.full(tuple(value.shape), FILLER) for value in node.meta["val"]]


LAYER_RULES = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED, _transposed),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    "batch_norm": _batch_norm_of_a_layer,
    "instance_norm": _channel_norm,
    "linear": _linear,
    "embedding": _embedding,
}
