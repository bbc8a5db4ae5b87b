"""Products of activations with each other: matmul, einsum, attention. No weight stands between, so both sides shrink alike."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor, fx

from compressor.coupling.flow import NOT_A_CHANNEL, Constant, Flow, Parameter, flat, meet, named
from compressor.coupling.labels import FILLER, Unfit, collapsed, constant_along

PRODUCTS = named("matmul bmm mm mv baddbmm einsum scaled_dot_product_attention")


Term = tuple[Tensor, str]
"""Labels, and a letter for each of their dimensions, as in an einsum."""


def contract(flow: Flow, terms: list[Term], out: str, shape: tuple[int, ...]) -> Tensor:
    """Labels of a sum of products over every letter that is not in `out`: sides that meet along such a letter are tied."""
    inner = dict.fromkeys("".join(letters for _, letters in terms))
    for letter in inner:
        if letter in out:
            continue
        holders = [
            n for n, (labels, letters) in enumerate(terms) if letter in letters and labels.shape[letters.index(letter)] > 1
        ]
        varying = [n for n in holders if not constant_along(terms[n][0], terms[n][1].index(letter))]
        if varying:
            _tie_along(flow, [terms[n] for n in varying], fixed=len(varying) < max(2, len(holders)))
        for n, (labels, letters) in enumerate(terms):
            if letter in letters:
                dim = letters.index(letter)
                gone = torch.full((1,) * labels.dim(), FILLER).expand(labels.shape) if n in varying else labels
                terms[n] = collapsed(gone, dim).squeeze(dim), letters.replace(letter, "")
    return meet(flow, [_aligned(term, out) for term in terms], shape)


def _tie_along(flow: Flow, terms: list[Term], fixed: bool) -> None:
    """Tie what differs along a letter that is summed over; where only one side has channels there, it stays whole."""
    if fixed:
        flow.freeze([labels for labels, _ in terms], "it is multiplied with something of a fixed size")
        return
    common = "".join(c for c in terms[0][1] if all(c in letters for _, letters in terms))
    reduced = []
    for labels, letters in terms:
        for other in [c for c in letters if c not in common]:
            dim = letters.index(other)
            if not constant_along(labels, dim):
                flow.freeze([labels for labels, _ in terms], NOT_A_CHANNEL)
                return
            labels, letters = collapsed(labels, dim).squeeze(dim), letters.replace(other, "")
        reduced.append(_aligned((labels, letters), common))
    for labels in reduced[1:]:
        flow.labels.tie(*torch.broadcast_tensors(reduced[0], labels))
    for labels in reduced:
        flow.labels.multiply(labels)


def _aligned(term: Term, letters: str) -> Tensor:
    """The labels with their dimensions in the order of `letters`, of size 1 where they have none."""
    labels, own = term
    labels = labels.permute([own.index(c) for c in letters if c in own])
    for place, letter in enumerate(letters):
        if letter not in own:
            labels = labels.unsqueeze(place)
    return labels


def matrices(dims: int, last: str) -> str:
    """Letters of a stack of matrices: those of the stack are counted from the right, so that they broadcast."""
    stack = string.ascii_uppercase[: max(0, dims - 2)][::-1]
    return stack + last[-min(dims, 2) :]


def _labels(flow: Flow, value: Any) -> Tensor:
    if isinstance(value, Constant):
        return flow.stays(tuple(value.value.shape))
    if isinstance(value, Parameter):
        return flow.entry_labels(value)
    labels: Tensor = value
    return labels


def _matmul(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    one, other = (_labels(flow, v) for v in arguments[:2])
    if one.dim() < 2 or other.dim() < 2:
        raise Unfit("a vector, not a matrix")
    letters = [matrices(one.dim(), "mk"), matrices(other.dim(), "kn")]
    shape = tuple(node.meta["val"].shape)
    return contract(flow, [(one, letters[0]), (other, letters[1])], matrices(len(shape), "mn"), shape)


def _baddbmm(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    product = _matmul(flow, node, arguments[1:], {})
    return meet(flow, [product, _labels(flow, arguments[0])], tuple(node.meta["val"].shape))


def _einsum(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    equation, tensors = arguments[0].replace(" ", ""), flat(arguments[1])
    inputs, arrow, out = equation.partition("->")
    letters = inputs.split(",")
    if "." in equation or not arrow or any(len(set(term)) < len(term) for term in letters):
        raise Unfit("an equation with dots, without an arrow, or with a letter twice in a term")
    terms = [(_labels(flow, value), term) for value, term in zip(tensors, letters, strict=True)]
    return contract(flow, terms, out, tuple(node.meta["val"].shape))


def _attention(flow: Flow, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
    """softmax(q k^T scale + mask) v; the default scale is 1 / sqrt(dimensions of a head)."""
    query, key, value = (_labels(flow, v) for v in arguments[:3])
    mask = options.get("attn_mask", arguments[3] if len(arguments) > 3 else None)
    if options.get("enable_gqa"):
        raise Unfit("several queries share a key")
    if options.get("scale") is None and not constant_along(query, query.dim() - 1):
        flow.freeze([query, key], "its scale depends on how many dimensions a head has")
    if options.get("is_causal", len(arguments) > 5 and arguments[5]):
        for side in (query, key):
            if not constant_along(side, side.dim() - 2):
                flow.freeze(side, "its mask counts positions, and these are channels")
    tokens = (*query.shape[:-1], key.shape[-2])
    dims = query.dim()
    scores = contract(flow, [(query, matrices(dims, "qd")), (key, matrices(dims, "kd"))], matrices(dims, "qk"), tokens)
    if mask is not None:
        scores = meet(flow, [scores, _labels(flow, mask)], tokens)
    terms = [(scores, matrices(dims, "qk")), (value, matrices(dims, "kd"))]
    return contract(flow, terms, matrices(dims, "qd"), tuple(node.meta["val"].shape))


PRODUCT_RULES = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "baddbmm": _baddbmm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
