"""Label flow: the network's own operators say how channels move.

The network is exported to ATen operators. Every produced channel gets an integer label, and tensors of labels, shaped like
the activations of one sample, go through the same operators: data movement runs the very operator on the labels, sums tie the
labels that meet, layers consume labels and produce fresh ones. Connected components of the ties are the nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.modules.conv import _ConvNd

from compressor.coupling.flow import Constant, Flow, Parameter, flat, named, operator_of, owner_of
from compressor.coupling.grouping import groups_of
from compressor.coupling.label_proof import Comparison, compare
from compressor.coupling.labels import FILLER
from compressor.coupling.layers import CONVOLUTIONS, LAYER_OPERATORS, TRANSPOSED
from compressor.coupling.operators import INDEXED, PARTS, apply
from compressor.coupling.products import PRODUCTS
from compressor.coupling.splits import before_products
from compressor.coupling.writes import seen_writes
from compressor.errors import BadInput, CompressError, first_line
from compressor.model.inputs import Inputs, arguments, each
from compressor.model.observe import observed
from compressor.settings import Attention
from compressor.system.quiet import quiet
from compressor.types.reason import NOT_IN_EVAL, OUTPUT
from compressor.types.structure import Group, Kept, Slice, Structure, Tie, maker_of

PRODUCERS = (_ConvNd, nn.Linear, nn.RNNBase)
"""Modules whose outputs are nodes."""


COUNTING = (
    INDEXED
    | PARTS
    | named(
        """unbind select slice narrow roll flip rot90 tile repeat repeat_interleave unfold diagonal pad constant_pad_nd
    arange linspace index_put scatter slice_scatter select_scatter topk"""
    )
)
"""Operators that may say by a number which channels they take."""


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
            self.program = exported(twin, example_inputs)
            self.modules = dict(twin.named_modules())
            self.layers = {name: m for name, m in self.modules.items() if isinstance(m, PRODUCERS)}
            self.in_training = self._in_training(twin, example_inputs)
        self.attention = attention
        self._followed: tuple[tuple[Tie, ...], Flow, list[Mapping[fx.Node, Any]]] | None = None  # by the last structure

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
        flow, values = self._flow(bound)
        self._followed = tuple(bound), flow, values
        aside = self.layers.keys() - running_in(self.program)
        for axis in list(flow.axes.values()):
            if axis.role in ("produce", "pass") and axis.tensor.rpartition(".")[0] in aside:
                flow.labels.freeze(axis.labels, NOT_IN_EVAL)
        unfollowed = (*_unfollowed(flow, self.program), *_unfollowed_weights(flow, self.program))
        groups = (*groups_of(flow.axes.values(), flow.entries, flow.labels.solve()), *unfollowed)
        outputs = _output_layers(flow, self.program) | aside
        found = Structure(
            groups, flow.shapes, flow.norms, outputs, 0,
            functional=frozenset(flow.functional), attention=self.attention, bound=tuple(bound),
        )  # fmt: skip
        return replace(found, total_nodes=found.nodes)

    def _flow(self, bound: Collection[Tie]) -> tuple[Flow, list[Mapping[fx.Node, Any]]]:
        """What the operators say, and the labels of every value of each program."""
        flow = Flow(self.layers, self.modules, self.attention)
        flow.running = frozenset().union(*map(called_in, self.programs))
        values = []
        for program in self.programs:
            flow.in_products = before_products(program.graph.nodes, PRODUCTS, LAYER_OPERATORS)
            flow.seen_writes = seen_writes(program.graph.nodes)
            values.append(_run(flow, program))
        for pair in bound:
            if not {(pair.one, 1), (pair.other, 1)} <= flow.axes.keys():
                raise BadInput(f"{pair.one} and {pair.other} are not weights of this network: the plan is of another")
            flow.labels.tie(flow.axes[pair.one, 1].labels, flow.axes[pair.other, 1].labels)
        return flow, values

    @property
    def counts(self) -> bool:
        """Whether an operator takes numbers or constants that may be places of channels."""
        called = {operator_of(node) for program in self.programs for node in program.graph.nodes if node.op == "call_function"}
        kinds = {spec.kind for program in self.programs for spec in program.graph_signature.input_specs}
        return bool(called & COUNTING) or InputKind.CONSTANT_TENSOR in kinds

    @property
    def programs(self) -> list[torch.export.ExportedProgram]:
        """That of eval mode; and of train mode, where layers run in that only."""
        return [self.program, *([self.in_training] if self.in_training else [])]

    def compare(self, small: nn.Module, structure: Structure, kept: Kept, example_inputs: Inputs) -> Comparison:
        """Operator by operator, whether a smaller network does in eval mode to what is left what this one does.

        Args:
            small: of this network, what `kept` leaves; with any weights of those shapes.
            structure: of this network.
            kept: group -> sorted indices `(kept,)`.
            example_inputs: of one sample or more.
        """
        try:
            with observed(small) as twin, quiet():
                other = exported(twin, each(example_inputs, lambda x: x[:1]))
        except Untraceable as error:
            return Comparison(0, f"the small network cannot be exported ({error})")
        known, flow, labels = self._followed or ((), None, [])
        if flow is None or known != structure.bound:
            flow, labels = self._flow(structure.bound)
        component = torch.from_numpy(flow.labels.solve().component)
        entries = by_every_name(structure.kept_entries(kept), small)
        lost = torch.zeros(len(component), dtype=torch.bool)
        for place, stay in entries.items():
            if place in flow.axes and flow.axes[place].role != "size":
                there = torch.ones(len(flow.axes[place].labels), dtype=torch.bool)
                there[stay] = False
                lost[component[flow.axes[place].labels[there]]] = True
        lost[component[FILLER]] = False
        found = compare(self.program, other, labels[0], lost[component], entries)
        return found if found else replace(found, groups=_groups_with(structure, found.labels, flow, component))


def exported(twin: nn.Module, example_inputs: Inputs) -> torch.export.ExportedProgram:
    """The program of a network that is observed.

    Raises:
        Untraceable: there is none.
    """
    try:
        program = torch.export.export(twin, *arguments(example_inputs))
    except Exception as error:  # torch.export raises whatever the network's code provokes
        raise Untraceable(f"{type(error).__name__}: {first_line(error)}") from error
    program.graph_module.graph.eliminate_dead_code()  # attention weights that nobody reads, and the like
    return program


def by_every_name(entries: Mapping[tuple[str, int], Tensor], model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """What stays of each dimension of a tensor, under all names that it has in the network."""
    names: dict[int, list[str]] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        names.setdefault(id(tensor), []).append(name)
    known = {name: its for its in names.values() for name in its}
    return {(other, dim): stay for (name, dim), stay in entries.items() for other in known.get(name, (name,))}


def _groups_with(structure: Structure, labels: Collection[int], flow: Flow, component: Tensor) -> frozenset[str]:
    """Names of the groups to which labels belong."""
    parts = torch.unique(component[torch.tensor(sorted(labels), dtype=torch.long)])
    found = set()
    for group in structure.prunable:
        for s in group.slices:
            if (axis := flow.axes.get((s.tensor, s.dim))) is not None and axis.role != "size":
                if bool(torch.isin(component[axis.labels[s.index.flatten()]], parts).any()):
                    found.add(group.name)
                break
    return frozenset(found)


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


CELLS = named("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
WEIGHTED = LAYER_OPERATORS - {"embedding"} | PRODUCTS | CELLS | {"addmm", "addbmm"}
"""Operators that make nodes where one side is a weight."""


def _unfollowed_weights(flow: Flow, program: torch.export.ExportedProgram) -> Iterator[Group]:
    """Weights outside of the layers that the labels could not follow: what they make are nodes all the same."""
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    stored: dict[fx.Node, tuple[str, ...]] = {}  # values that depend on parameters alone, and on which
    known = {axis.tensor for axis in flow.axes.values() if axis.role != "carry"}
    for node in program.graph.nodes:
        spec = kinds.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind is InputKind.PARAMETER:
            stored[node] = (spec.target,)
        sources = node.all_input_nodes
        if node.op != "call_function" or not sources:
            continue
        if all(source in stored for source in sources):
            stored[node] = tuple(dict.fromkeys(name for source in sources for name in stored[source]))
        elif operator_of(node) in WEIGHTED and node not in flow.made_by:
            weights = [s for s in sources if s in stored and len(s.meta["val"].shape) > 1]
            if not weights or owner_of(node) in flow.layers or known & set(stored[weights[0]]):
                continue
            weight, made = stored[weights[0]][0], node.meta["val"]
            made = made[0] if isinstance(made, (tuple, list)) else made
            shape = weights[0].meta["val"].shape
            width = made.shape[1] if operator_of(node) in CONVOLUTIONS | TRANSPOSED else made.shape[-1]
            dims = [d for d in reversed(range(len(shape))) if shape[d] == width]
            tensor = weight if dims else f"{weight.rpartition('.')[0]}.units".removeprefix(".")
            flow.made_by[node] = maker_of(tensor)
            known.add(weight)
            reason = f"{_place(node)}: operator {operator_of(node)} cannot be followed with this weight"
            yield Group(
                maker_of(tensor), (Slice(tensor, dims[0] if dims else 0, torch.arange(width)[:, None], "produce"),), reason
            )


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


def _run(flow: Flow, program: torch.export.ExportedProgram) -> Mapping[fx.Node, Any]:
    """The labels of every value."""
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
            if node in flow.seen_writes:
                others = [values[other] for other in flow.seen_writes[node]]
                flow.freeze([arguments, others, values[node]], "it writes into a value that others see")
    return values


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
