"""Whether an operator of the smaller network does to what is left what the dense one does: one table, operator name -> rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compressor.coupling.flow import named, operator_of
from compressor.coupling.layers import CONVOLUTIONS, RECURRENT, TRANSPOSED
from compressor.coupling.operators import INDEXED, MOVES, PARTS, POOLS, REDUCTIONS, RESHAPES, SAME, SOFTMAXES
from compressor.coupling.products import matrices
from compressor.coupling.remainder import (
    ELSEWHERE,
    Differs,
    Held,
    Known,
    Rule,
    Step,
    alike,
    all_whole,
    equal,
    leaves,
    mapped,
    meets,
    tensors_of_value,
    through,
    widened,
)
from compressor.coupling.remainder_layers import (
    channel_norm,
    convolution,
    embedding,
    group_norm,
    layer_norm,
    linear,
    recurrent,
    transposed,
)

TYPES = named("to type_as")
"""Operators that take no more than the type of a second value."""
SHAPED = named("new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like")
"""Operators that take no more than the shape or type of a value."""


FACTORIES = named("arange zeros ones full empty eye linspace logspace scalar_tensor tril_indices triu_indices hann_window")


PADS = named("constant_pad_nd pad")


EXPANDS = named("expand expand_as broadcast_to")


def spread(step: Step) -> Held | None:
    """What an operator gives, of the small network's sizes where it only repeats; None where that cannot be said."""
    name, sizes = operator_of(step.dense), step.small.meta.get("val")
    if not isinstance(step.out, Held) or not isinstance(sizes, Tensor):
        return None
    values = step.values()
    if name in EXPANDS or name in SAME:
        values = values[:1]
    elif torch.Tag.pointwise not in getattr(step.dense.target, "tags", ()):
        return None
    return widened(step.out, tuple(sizes.shape), values)


def check(step: Step) -> None:
    """Show that the small operator gives what the dense one does, without what is removed.

    Raises:
        Differs: it cannot be shown.
    """
    values = step.values()
    outs = [o for o in (step.out if isinstance(step.out, list) else [step.out]) if isinstance(o, Held)]
    for place, (held, value) in enumerate(zip(outs, tensors_of_value(step.small.meta.get("val")), strict=False)):
        if held.small_shape != tuple(value.shape):
            raise Differs(
                f"it gives {tuple(value.shape)} where {held.small_shape} is left{f' (part {place})' if place else ''}"
            )
    name = operator_of(step.dense)
    if name in EXPANDS and name == operator_of(step.small):
        meets(values[:1], step.result())
        return
    if name != operator_of(step.small):
        moves(step)
        return
    if all(v.whole if isinstance(v, Held) else equal(v.dense, v.small) for v in values) and all(o.whole for o in outs):
        try:
            step.same_options()
            return
        except Differs:
            if name not in MOVING:  # places tell whether it does the same
                raise
    pointwise = torch.Tag.pointwise in getattr(step.dense.target, "tags", ())
    rule = RULES.get(name) if name in RULES and not (pointwise and name in REDUCTIONS) else None
    if rule is None and pointwise:
        rule = _pointwise
    if rule is None:
        raise Differs("an operator without a rule meets what is removed")
    rule(step)


def evaluated(step: Step) -> Any:
    """A constant's value in both networks, where an operator makes it from constants alone, or from a shape; else None."""
    name, values = operator_of(step.dense), step.values()
    constant = name in FACTORIES or name in SHAPED or (values and all(isinstance(v, Known) for v in values))
    if not constant or torch.Tag.nondeterministic_seeded in getattr(step.dense.target, "tags", ()):
        return None
    kind = next((n.meta["val"].dtype for n in step.dense.all_input_nodes if isinstance(n.meta.get("val"), Tensor)), None)
    found = []
    for node, arguments, which in ((step.dense, step.dense_args, 0), (step.small, step.small_args, 1)):

        def value(v: Any, which: int = which) -> Any:
            if isinstance(v, Known):
                return v.small if which else v.dense
            return torch.empty(v.small_shape if which else v.shape, dtype=kind) if isinstance(v, Held) else v

        target: Any = node.target
        found.append(target(**{k: mapped(v, value) for k, v in arguments.items() if k not in ELSEWHERE}))
    if not all(isinstance(f, (Tensor, tuple, list)) for f in found):
        return None
    one, other = ([f] if isinstance(f, Tensor) else list(f) for f in found)
    known = [Known(a, b) for a, b in zip(one, other, strict=True)]
    return known[0] if isinstance(found[0], Tensor) else known


def _pointwise(step: Step) -> None:
    step.same_options()
    meets(step.values(), step.result())


def moves(step: Step) -> None:
    """Run on the numbers of places: what goes where."""
    start, dense_in, small_in = 0, {}, {}
    for value in step.values():
        if id(value) in dense_in:
            continue
        if isinstance(value, Held):
            size = 1
            for n in value.shape:
                size *= n
            places = torch.arange(start, start + size).reshape(value.shape)
            dense_in[id(value)], small_in[id(value)] = places, value.of(places).contiguous()
            start += size
        else:
            both = torch.cat([value.dense.flatten(), value.small.flatten()])
            numbers = -2 - torch.unique(both, return_inverse=True)[1]
            dense_in[id(value)] = numbers[: value.dense.numel()].reshape(value.dense.shape)
            small_in[id(value)] = numbers[value.dense.numel() :].reshape(value.small.shape)

    def run(node: fx.Node, arguments: Mapping[str, Any], which: Mapping[int, Tensor], small: bool) -> list[Tensor]:
        first, name = next(iter(arguments)), operator_of(node)

        def places(v: Any) -> Any:
            return which[id(v)] if isinstance(v, (Held, Known)) else v

        def index(v: Any) -> Any:
            if isinstance(v, Held):
                raise Differs("its places depend on the input")
            return (v.small if small else v.dense) if isinstance(v, Known) else v

        given = {
            k: mapped(v, index if name in INDEXED and k != first else places)
            for k, v in arguments.items()
            if k not in ELSEWHERE
        }
        target: Any = node.target
        return list(tensors_of_value(_padded(given) if name in PADS else target(**given)))

    try:
        there, here = run(step.dense, step.dense_args, dense_in, False), run(step.small, step.small_args, small_in, True)
    except (RuntimeError, IndexError) as error:
        raise Differs("its places cannot be followed") from error
    outs = step.out if isinstance(step.out, list) else [step.out]
    if not len(there) == len(here) == len(outs):
        raise Differs("it gives another number of parts")
    for dense, small, out in zip(there, here, outs, strict=True):
        if tuple(dense.shape) != out.shape or not torch.equal(out.of(dense), small):
            raise Differs("it takes other channels")


def _padded(given: Mapping[str, Any]) -> Tensor:
    x, mode = given["self"], given.get("mode") or "constant"
    if mode == "constant":
        return F.pad(x, given["pad"], value=-1)
    return F.pad(x.double(), given["pad"], mode=mode).long()


def pads(step: Step) -> None:
    step.same_options("pad")
    moves(step)


def _same(step: Step) -> None:
    """One value goes through, entry by entry."""
    step.same_options()
    first = next(iter(step.dense_args))
    through(step.held(first), step.result())
    others = leaves([v for name, v in step.dense_args.items() if name != first])
    if operator_of(step.dense) not in TYPES:
        meets(others, step.result())


def _pool(step: Step) -> None:
    step.same_options()
    x = step.held(next(iter(step.dense_args)))
    spatial = next(int(digit) for digit in "321" if f"{digit}d" in operator_of(step.dense))
    first = len(x.shape) - spatial
    for out in step.out if isinstance(step.out, list) else [step.out]:
        if not all_whole(x, range(first, len(x.shape))) or not all_whole(out, range(first, len(x.shape))):
            raise Differs("it pools over what is removed")
        for one, other in zip(x.places[:first], out.places[:first], strict=True):
            alike(one, other)


def _reduce(step: Step) -> None:
    step.same_options()
    x = step.held(next(iter(step.dense_args)))
    dims = step.dense_args.get("dim")
    dims = list(range(len(x.shape))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = {d % len(x.shape) for d in dims}
    if not all_whole(x, dims):
        raise Differs("it reduces over what is removed")
    for out in step.out if isinstance(step.out, list) else [step.out]:
        left = [p for d, p in enumerate(x.places) if d not in dims or len(out.shape) == len(x.shape)]
        for dim, (one, other) in enumerate(zip(left, out.places, strict=True)):
            if len(out.shape) < len(x.shape) or dim not in dims:
                alike(one, other)


def _softmax(step: Step) -> None:
    step.same_options()
    x = step.held(next(iter(step.dense_args)))
    if not all_whole(x, [step.dense_args["dim"]]):
        raise Differs("it normalises over what is removed")
    through(x, step.result())


def _prelu(step: Step) -> None:
    x, weight = (step.held(name) for name in list(step.dense_args)[:2])
    if weight.shape and weight.shape[0] > 1:
        alike(weight.places[0], x.places[1])
    through(x, step.result())


Term = tuple[Held, str]


def _contracted(terms: list[Term], out: Held, letters: str) -> None:
    """A sum of products: along every letter the same is left of all, and of none that is summed over on one side only."""
    found: dict[str, Tensor] = {}
    everything = [*terms, (out, letters)]
    for letter in dict.fromkeys("".join(its for _, its in everything)):
        sides = [(v.places[own.index(letter)], v.shape[own.index(letter)]) for v, own in everything if letter in own]
        wide = [places for places, size in sides if size > 1] or [sides[0][0]]
        for places in wide:
            alike(places, found.setdefault(letter, places))
        for places, size in sides:
            if size == 1 and not len(places):
                raise Differs("nothing is left of it")
        holders = [size for v, own in terms if letter in own and (size := v.shape[own.index(letter)]) > 1]
        if letter not in letters and len(holders) == 1 and len(wide[0]) < holders[0]:
            raise Differs("it sums over what is removed")


def _matmul(step: Step) -> None:
    names = list(step.dense_args)
    one, other, out = step.held(names[-2]), step.held(names[-1]), step.result()
    if len(one.shape) < 2 or len(other.shape) < 2:
        raise Differs("a vector, not a matrix")
    terms = [(one, matrices(len(one.shape), "mk")), (other, matrices(len(other.shape), "kn"))]
    _contracted(terms, out, matrices(len(out.shape), "mn"))


def _baddbmm(step: Step) -> None:
    step.same_options()
    one, other, out = step.held("batch1"), step.held("batch2"), step.result()
    terms = [(one, matrices(3, "mk")), (other, matrices(3, "kn"))]
    _contracted(terms, out, matrices(3, "mn"))
    meets(leaves([step.dense_args["self"]]), out)


def _einsum(step: Step) -> None:
    step.same_options()
    inputs, _, letters = step.dense_args["equation"].replace(" ", "").partition("->")
    values = [v.held() if isinstance(v, Known) else v for v in step.dense_args["tensors"]]
    _contracted(list(zip(values, inputs.split(","), strict=True)), step.result(), letters)


def _attention(step: Step) -> None:
    step.same_options()
    query, key, value, out = step.held("query"), step.held("key"), step.held("value"), step.result()
    if step.dense_args.get("enable_gqa"):
        raise Differs("several queries share a key")
    if step.dense_args.get("scale") is None and not all_whole(query, [len(query.shape) - 1]):
        raise Differs("its scale depends on how many dimensions a head has")
    dims = len(query.shape)
    scores = Held((*query.shape[:-1], key.shape[-2]), (*query.places[:-1], key.places[-2]))
    _contracted([(query, matrices(dims, "qd")), (key, matrices(dims, "kd"))], scores, matrices(dims, "qk"))
    if step.dense_args.get("attn_mask") is not None:
        meets(leaves([step.dense_args["attn_mask"]]), scores)
    if step.dense_args.get("is_causal") and not all_whole(scores, [dims - 2]):
        raise Differs("its mask counts positions")
    if not all_whole(scores, [dims - 1]):
        raise Differs("it normalises over what is removed")
    _contracted([(scores, matrices(dims, "qk")), (value, matrices(dims, "kd"))], out, matrices(dims, "qd"))


MOVING = MOVES | RESHAPES | PARTS | INDEXED | PADS | named("alias contiguous clone detach lift_fresh_copy")
"""Operators that only move entries."""


RULES: Mapping[str, Rule] = (
    dict.fromkeys(SAME, _same)
    | dict.fromkeys(MOVING, moves)
    | dict.fromkeys(PADS, pads)
    | dict.fromkeys(POOLS, _pool)
    | dict.fromkeys(REDUCTIONS, _reduce)
    | dict.fromkeys(SOFTMAXES, _softmax)
    | dict.fromkeys(("prelu", "_prelu_kernel"), _prelu)
    | dict.fromkeys(CONVOLUTIONS, convolution)
    | dict.fromkeys(TRANSPOSED, transposed)
    | dict.fromkeys(RECURRENT, recurrent)
    | dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), layer_norm)
    | dict.fromkeys(("group_norm", "native_group_norm"), group_norm)
    | dict.fromkeys(("batch_norm", "instance_norm"), channel_norm)
    | {"linear": linear, "embedding": embedding, "baddbmm": _baddbmm, "einsum": _einsum}
    | dict.fromkeys(("matmul", "bmm", "mm"), _matmul)
    | {"scaled_dot_product_attention": _attention}
)
