"""Label flow: the network's own operators say how channels move.

The network is exported to ATen operators. Every produced channel gets an integer label, and tensors of labels, shaped like
the activations of one sample, go through the same operators: data movement runs the very operator on the labels, sums tie the
labels that meet, layers consume labels and produce fresh ones. Connected components of the ties are the nodes.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from compressor.errors import CompressError, first_line
from compressor.quiet import quiet
from compressor.state import observed
from compressor.structure.flow import Constant, Flow, Parameter, flat
from compressor.structure.grouping import groups_of
from compressor.structure.operators import apply
from compressor.types import OUTPUT, Structure, total_by_layer


class Untraceable(CompressError):
    """`torch.export` cannot trace the network."""


def by_label_flow(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Structure:
    """The groups of `model`, found on one sample in eval mode.

    Raises:
        Untraceable: `torch.export` fails; the message is its first line.
    """
    with observed(model) as twin, quiet():
        try:
            program = torch.export.export(twin, example_inputs)
        except Exception as error:  # torch.export raises whatever the network's code provokes
            raise Untraceable(f"{type(error).__name__}: {first_line(error)}") from error
    flow = Flow()
    _run(flow, program)
    component, reasons = flow.labels.solve()
    groups = groups_of(flow.axes.values(), flow.entries, component, reasons)
    found = Structure(groups, flow.shapes, flow.norms, 0)
    return replace(found, total_nodes=sum(total_by_layer(found).values()))


def _run(flow: Flow, program: torch.export.ExportedProgram) -> None:
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        flow.where = _place(node)
        if node.op == "placeholder":
            values[node] = _placeholder(flow, program, node, kinds[node.name])
        elif node.op == "get_attr":
            values[node] = None
        elif node.op == "output":
            for value in flat(fx.map_arg(list(node.args), values.__getitem__)):
                flow.labels.freeze(value, OUTPUT) if isinstance(value, Tensor) else None
        else:
            arguments = fx.map_arg(list(node.args), values.__getitem__)
            options = fx.map_arg(dict(node.kwargs), values.__getitem__)
            if node.target is operator.getitem:
                values[node] = arguments[0][arguments[1]] if isinstance(arguments[0], (tuple, list)) else arguments[0]
            else:
                values[node] = apply(flow, node, arguments, options)


def _placeholder(flow: Flow, program: torch.export.ExportedProgram, node: fx.Node, spec: Any) -> Any:
    shape = tuple(getattr(node.meta.get("val"), "shape", ()))
    if spec.kind is InputKind.PARAMETER:
        return Parameter(spec.target, shape)
    if spec.kind is InputKind.BUFFER:
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        return Constant(value) if value is not None and not value.is_floating_point() else Parameter(spec.target, shape)
    if spec.kind is InputKind.CONSTANT_TENSOR:
        value = program.constants[spec.target]
        return Constant(value) if not value.is_floating_point() else flow.stays(shape, "a constant in the network's code")
    return flow.stays(shape, "the network's input") if spec.kind is InputKind.USER_INPUT else None


def _place(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = stack[-1][0] if stack else ""
    return f"{inside or 'the network'} ({getattr(node.target, '_opname', node.name)})"
