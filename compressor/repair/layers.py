"""The layers that a refit can change: operators of the exported program that apply a stored weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from compressor.coupling.flow import operator_of
from compressor.model.affine import Affine, geometry
from compressor.repair.walk import Program

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


@dataclass(frozen=True, kw_only=True)
class Layer(Affine):
    """An operator `y = W x + b` with a stored weight.

    Attributes:
        node: where it runs.
        x: what goes in.
        weight: name of its weight, `(outputs, inputs / groups, ...)`, transposed `(inputs, outputs / groups, ...)`.
        bias: name of its bias.
        norm: the batch norm in eval mode that alone reads it.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    bias: str | None
    norm: fx.Node | None


def layers_of(program: Program) -> list[Layer]:
    """The layers of a program that have stored weights, in the order in which they run."""
    return [layer for node in program.nodes if (layer := _layer(node, program.stored)) is not None]


def arguments(node: fx.Node) -> dict[str, Any]:
    """What an operator is called with, by the names of its schema."""
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return {a.name: a.default_value for a in schema.arguments if a.has_default_value()} | given | dict(node.kwargs)


def _layer(node: fx.Node, stored: Mapping[fx.Node, str]) -> Layer | None:
    if node.op != "call_function":
        return None
    name, given = operator_of(node), arguments(node)
    x, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
    if (
        not isinstance(weight, fx.Node)
        or weight not in stored
        or not isinstance(x, fx.Node)
        or (bias is not None and bias not in stored)
    ):
        return None
    found: dict[str, Any] = {"node": node, "x": x, "weight": stored[weight], "bias": None if bias is None else stored[bias],
             "norm": norm_behind(node, stored)}  # fmt: skip
    if name == "linear":
        return Layer(**found) if weight.meta["val"].dim() == 2 else None
    dims = CONVOLUTIONS.get(name) or TRANSPOSED.get(name)
    if dims is None or x.meta["val"].dim() != dims + 2:
        return None
    kernel = tuple(weight.meta["val"].shape[2:])
    more = given["output_padding"] if name in TRANSPOSED else None
    return Layer(**found, **geometry(kernel, given["stride"], given["padding"], given["dilation"], given["groups"], more))


def norm_behind(node: fx.Node, stored: Mapping[fx.Node, str]) -> fx.Node | None:
    """The batch norm with stored statistics that is all that reads a value."""
    if len(node.users) != 1:
        return None
    [norm] = node.users
    given = arguments(norm) if operator_of(norm) == "batch_norm" else {}
    fixed = given.get("input") is node and not given["training"] and given["running_mean"] in stored
    return norm if fixed else None
