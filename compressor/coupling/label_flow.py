"""Label flow: the network's own operators say how channels move.

The network is exported to ATen operators. Every produced channel gets an integer label, and tensors of labels, shaped like
the activations of one sample, go through the same operators: data movement runs the very operator on the labels, sums tie the
labels that meet, layers consume labels and produce fresh ones. Connected components of the ties are the nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.modules.conv import _ConvNd

from compressor.coupling.flow import Constant, Flow, Parameter, flat, operator_of, owner_of
from compressor.coupling.grouping import groups_of
from compressor.coupling.layers import LAYER_OPERATORS
from compressor.coupling.operators import apply
from compressor.coupling.products import PRODUCTS
from compressor.coupling.splits import before_products
from compressor.errors import BadInput, CompressError, first_line
from compressor.model.inputs import Inputs, arguments, each
from compressor.model.observe import observed
from compressor.settings import Attention
from compressor.system.quiet import quiet
from compressor.types.reason import NOT_IN_EVAL, OUTPUT
from compressor.types.structure import Group, Slice, Structure, Tie

PRODUCERS = (_ConvNd, nn.Linear, nn.RNNBase)
"""Modules whose outputs are nodes."""


class Untraceable(CompressError):
    """`torch.export` cannot trace the network."""


class Traced:
    """A network as `torch.export` sees it, on one sample in eval mode."""

    def __init__(self, model: nn.Module, example_inputs: Inputs, attention: Attention = "heads") -> None:
        """Trace `model`.

        Args:
            attention: what the nodes of an attention are.
        Raises:
            Untraceable: `torch.export` fails; the message is its first line.
        """
        with observed(model) as twin, quiet():
            try:
                self.program = torch.export.export(twin, *arguments(example_inputs))
            except Exception as error:  # torch.export raises whatever the network's code provokes
                raise Untraceable(f"{type(error).__name__}: {first_line(error)}") from error
            self.program.graph_module.graph.eliminate_dead_code()  # attention weights that nobody reads, and the like
            self.modules = dict(twin.named_modules())
            self.layers = {name: m for name, m in self.modules.items() if isinstance(m, PRODUCERS)}
            self.in_training = self._in_training(twin, example_inputs)
        self.attention = attention

    def _in_training(self, twin: nn.Module, example_inputs: Inputs) -> torch.export.ExportedProgram | None:
        """The program of train mode, where some layers run in that only; auxiliary heads read what others make."""
        if self.layers.keys() <= running_in(self.program):
            return None
        try:
            twice = each(example_inputs, lambda x: torch.cat([x, x]))  # a batch norm in training needs more than one value
            return torch.export.export(twin.train(), *arguments(twice))
        except Exception:  # noqa: BLE001 - without it those layers cannot be followed, and keep what they read
            return None

    def structure(self, bound: Collection[Tie] = ()) -> Structure:
        """The groups of the network.

        Args:
            bound: what goes together beside what the operators say.
        """
        flow = Flow(self.layers, self.modules, self.attention)
        programs = [self.program, *([self.in_training] if self.in_training else [])]
        flow.running = frozenset().union(*map(called_in, programs))
        for program in programs:
            flow.in_products = before_products(program.graph.nodes, PRODUCTS, LAYER_OPERATORS)
            _run(flow, program)
        aside = self.layers.keys() - running_in(self.program)
        for axis in list(flow.axes.values()):
            if axis.role in ("produce", "pass") and axis.tensor.rpartition(".")[0] in aside:
                flow.labels.freeze(axis.labels, NOT_IN_EVAL)
        for pair in bound:
            if not {(pair.one, 1), (pair.other, 1)} <= flow.axes.keys():
                raise BadInput(f"{pair.one} and {pair.other} are not weights of this network: the plan is of another")
            flow.labels.tie(flow.axes[pair.one, 1].labels, flow.axes[pair.other, 1].labels)
        groups = (*groups_of(flow.axes.values(), flow.entries, flow.labels.solve()), *_unfollowed(flow, self.program))
        outputs = _output_layers(flow, self.program) | aside
        found = Structure(
            groups, flow.shapes, flow.norms, outputs, 0,
            functional=frozenset(flow.functional), attention=self.attention, bound=tuple(bound),
        )  # fmt: skip
        return replace(found, total_nodes=found.nodes)


def called_in(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Names of the modules that are called, with all that they are in."""
    stacks = [node.meta.get("nn_module_stack") or {} for node in program.graph.nodes]
    return frozenset(place[0] for stack in stacks for place in stack.values())


def running_in(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Names of the modules that are called, and of those whose weights are applied."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    used = {str(spec.target).rpartition(".")[0] for spec in specs if spec.target and placeholders[spec.arg.name].users}
    return called_in(program) | used


def _unfollowed(flow: Flow, program: torch.export.ExportedProgram) -> Iterator[Group]:
    """Layers that the labels could not follow: their outputs are nodes all the same, and stay whole."""
    followed = {axis.tensor.rpartition(".")[0] for axis in flow.axes.values() if axis.role in ("produce", "pass")}
    running = running_in(program)
    for name, module in flow.layers.items():
        if name not in followed:
            why = flow.frozen_layers.get(name, f"{name}: it cannot be followed")
            places = torch.arange(_outputs_of(module))[:, None]
            yield Group(name, (Slice(f"{name}.weight", 0, places, "produce"),), why if name in running else NOT_IN_EVAL)


def _outputs_of(module: nn.Module) -> int:
    if isinstance(module, nn.RNNBase):
        return module.hidden_size * module.num_layers * (2 if module.bidirectional else 1)
    return int(getattr(module, "out_channels", 0) or getattr(module, "out_features", 0))


def _output_layers(flow: Flow, program: torch.export.ExportedProgram) -> frozenset[str]:
    """The layers behind which no other layer comes."""
    before_another: dict[fx.Node, set[str]] = {}
    inner: set[str] = set()
    for node in reversed(program.graph.nodes):
        behind: set[str] = set().union(*(before_another[user] for user in node.users))
        owner = flow.made_by.get(node, owner_of(node))
        if (owner in flow.layers or node in flow.made_by) and node.op == "call_function":
            if behind - {owner}:
                inner.add(owner)
            behind = {owner}
        before_another[node] = behind
    running = {owner_of(node) for node in program.graph.nodes if owner_of(node) in flow.layers} | set(flow.made_by.values())
    return frozenset(running - inner)


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
        is_index = value is not None and not value.is_floating_point()
        return Constant(value.cpu().clone()) if is_index else Parameter(spec.target, shape)
    if spec.kind is InputKind.CONSTANT_TENSOR:
        return Constant(program.constants[spec.target].cpu().clone())
    return flow.stays(shape) if spec.kind is InputKind.USER_INPUT else None


def _place(node: fx.Node) -> str:
    return f"{owner_of(node) or 'the network'} ({operator_of(node)})"
