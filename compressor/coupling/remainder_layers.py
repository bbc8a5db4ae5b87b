"""Layers with stored weights, and norms: whether the smaller one does to what is left what the dense one does."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.coupling.remainder import Differs, Held, Known, Step, alike, all_whole, argument, through


def _bias(step: Step, made: Tensor) -> None:
    if (bias := argument(step, "bias")) is not None:
        alike(bias.places[0], made, "its bias is of other channels")


def convolution(step: Step) -> None:
    """Output o of group g reads the inputs g (I / G) + c of the weight's columns c."""
    _by_groups(step, step.result(), step.held("input"))


def transposed(step: Step) -> None:
    """Input i of group g makes the outputs g (O / G) + c of the weight's columns c."""
    _by_groups(step, step.held("input"), step.result())


def _by_groups(step: Step, rows: Held, columns: Held) -> None:
    """A weight `(rows, columns / groups, ...)`: each row meets the columns of its group.

    Args:
        rows: what the rows of the weight read or make, `(batch, rows, ...)`.
        columns: what its columns do, `(batch, columns, ...)`.
    """
    step.same_options("groups")
    weight = step.held("weight")
    if step.dense_args.get("transposed") or len(rows.shape) != len(weight.shape):
        raise Differs("an unusual form of a convolution")
    _rest_whole(rows, columns, weight)
    alike(rows.places[1], weight.places[0], "its weight is of other channels")
    _bias(step, step.result().places[1])
    dense, small = (arguments.get("groups") or 1 for arguments in (step.dense_args, step.small_args))
    there, left = weight.places[1], columns.places[1]
    if len(left) != small * len(there):
        raise Differs("its groups are of another size")
    was = rows.places[1] // (rows.shape[1] // dense)
    now = torch.arange(len(was)) // (len(was) // small)
    groups, groups_now = torch.unique(torch.stack([was, now]), dim=1)
    each = columns.shape[1] // dense
    alike(left.reshape(small, -1)[groups_now], groups[:, None] * each + there, "its groups are other channels")
    held = torch.bincount(left // each, minlength=dense)[groups]
    alike(held, torch.full_like(held, len(there)), "its groups leave out channels")


def _rest_whole(*values: Held) -> None:
    for value in values:
        for dim, (size, places) in enumerate(zip(value.shape, value.places, strict=True)):
            if dim != 1 and not (dim == 0 and value is values[-1]) and len(places) != size:
                raise Differs("more than channels is removed")


def linear(step: Step) -> None:
    x, weight, out = step.held("input"), step.held("weight"), step.result()
    alike(x.places[-1], weight.places[1], "its weight reads other channels")
    alike(out.places[-1], weight.places[0], "its weight makes other channels")
    _bias(step, out.places[-1])
    for one, other in zip(x.places[:-1], out.places[:-1], strict=True):
        alike(one, other)


def embedding(step: Step) -> None:
    step.same_options()
    weight, indices, out = step.held("weight"), step.held("indices"), step.result()
    alike(weight.places[1], out.places[-1])
    for one, other in zip((*indices.places, weight.places[0]), (*out.places[:-1], torch.arange(weight.shape[0])), strict=True):
        alike(one, other)


def recurrent(step: Step) -> None:
    """Every gate of every layer and direction keeps the same units."""
    step.same_options()
    arguments = step.dense_args
    stored, states = arguments.get("params"), arguments.get("hx")
    if not isinstance(stored, list) or not all(isinstance(p, Held) for p in stored):
        raise Differs("its weights are computed")
    x, outs = step.held("input"), step.out
    size = stored[1].shape[1]
    units = stored[1].places[1]
    read, number = x.places[-1], 4 if arguments["has_biases"] else 2
    directions = 2 if arguments["bidirectional"] else 1

    def gates(places: Tensor, rows: int) -> None:
        alike(places, torch.cat([units + size * g for g in range(rows // size)]), "its gates keep other units")

    for layer in range(arguments["num_layers"]):
        for direction in range(directions):
            start = number * (directions * layer + direction)
            rows, inner, *biases = stored[start : start + number]
            alike(rows.places[1], read, "its weight reads other channels")
            alike(inner.places[1], units, "its gates keep other units")
            for parameter in (rows, inner, *biases):
                gates(parameter.places[0], parameter.shape[0])
        read = torch.cat([units + size * d for d in range(directions)])
    alike(outs[0].places[-1], read)
    for state in (*(states if isinstance(states, list) else [states]), *outs[1:]):
        if isinstance(state, Known):
            if not (state.dense.eq(state.dense.flatten()[0]).all() and state.small.eq(state.dense.flatten()[0]).all()):
                raise Differs("its first state is of other values")
        else:
            alike(state.places[-1], units, "its state is of other units")


def channel_norm(step: Step) -> None:
    step.same_options()
    x, out = step.held("input"), step.result()
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (stored := argument(step, name)) is not None:
            alike(stored.places[0], x.places[1], f"its {name} is of other channels")
    through(x, out)


def layer_norm(step: Step) -> None:
    """Over what is left, where its weight says which channels those are."""
    step.same_options("normalized_shape")
    x, weight = step.held("input"), argument(step, "weight")
    shape = list(x.small_shape[len(x.shape) - len(step.dense_args["normalized_shape"]) :])
    if list(step.small_args["normalized_shape"]) != shape:
        raise Differs("it norms over another number of channels")
    named = len(shape) == 1 and weight is not None
    if not named and not all_whole(x, range(len(x.shape) - len(shape), len(x.shape))):
        raise Differs("it norms over what is removed")
    for stored in (weight, argument(step, "bias")):
        if stored is not None:
            for one, other in zip(stored.places, x.places[-len(stored.places) :], strict=True):
                alike(one, other, "its weight is of other channels")
    through(x, step.result())


def group_norm(step: Step) -> None:
    step.same_options()
    x, weight = step.held("input"), argument(step, "weight")
    groups = step.dense_args.get("num_groups") or step.dense_args.get("group")
    places = x.places[1]
    if weight is None or not groups or len(places) % groups:
        raise Differs("its groups are other channels")
    size = x.shape[1] // groups
    now = torch.arange(len(places)) // (len(places) // groups)
    alike(places // size, now, "its groups are other channels")
    for stored in (weight, argument(step, "bias")):
        if stored is not None:
            alike(stored.places[0], places, "its weight is of other channels")
    through(x, step.result())
