"""torch-pruning's dependency graph as a `Structure`: the second opinion, and the way in where `torch.export` cannot trace.

Only its graph is used; selection, rounding and surgery are ours. The only importer of torch_pruning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compressor.coupling.flow import Flow, Parameter
from compressor.coupling.grouping import groups_of
from compressor.errors import UnsupportedNetwork, first_line
from compressor.model.inputs import Inputs
from compressor.model.observe import observed
from compressor.system.quiet import quiet
from compressor.types.reason import OUTPUT
from compressor.types.structure import Role, Structure


def by_torch_pruning(model: nn.Module, example_inputs: Inputs) -> Structure:
    """The groups of `model` as torch-pruning couples them.

    Raises:
        UnsupportedNetwork: torch-pruning cannot make its graph; the message is its own first line.
    """
    import torch_pruning

    flow, outputs = Flow({}), set[str]()
    with observed(model) as twin, quiet(), torch.enable_grad():
        names = {module: name for name, module in twin.named_modules()}
        try:
            for parameter in twin.parameters():
                parameter.requires_grad_(True)  # it follows grad_fn
            graph = torch_pruning.DependencyGraph().build_dependency(twin, example_inputs)
            order = list(names)
            for group in sorted(graph.get_all_groups(), key=lambda group: order.index(group[0].dep.target.module)):
                outputs |= _tie(flow, graph, group, names)
        except Exception as error:  # torch-pruning raises whatever its tracing provokes
            raise UnsupportedNetwork(f"nor can torch-pruning ({type(error).__name__}: {first_line(error)})") from error
        for module, node in graph.module2node.items():
            after = [output.module for output in node.outputs]
            followed = isinstance(module, (_ConvNd, nn.Linear)) and len(after) == 1 and isinstance(after[0], _NormBase)
            if followed and len(graph.module2node[after[0]].inputs) == 1:  # a norm after several layers is none of theirs
                flow.norms[names[module]] = names[after[0]]
    groups = groups_of(flow.axes.values(), {}, flow.labels.solve())
    found = Structure(groups, flow.shapes, flow.norms, frozenset(outputs), 0, "torch-pruning's graph")
    return replace(found, total_nodes=found.nodes)


def _tie(flow: Flow, graph: Any, group: Any, names: dict[nn.Module, str]) -> set[str]:
    """Translate one of torch-pruning's groups, and name its layers if nothing reads them.

    Its items' indices are tied to those of its root layer.
    """
    root_module = group[0].dep.target.module
    root = flow.axis(Parameter(f"{names[root_module]}.weight", tuple(root_module.weight.shape)), 0, _out_role(root_module))
    has_reader, makers = False, {names[root_module]}
    for item in group.items:
        module, outputs = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if module not in names:
            if isinstance(module, nn.Parameter):
                flow.labels.freeze(root, f"{names[root_module]}: coupled with a parameter outside of a layer")
            continue
        has_reader |= not outputs
        if outputs and isinstance(module, (_ConvNd, nn.Linear)):
            makers.add(names[module])
        for parameter, dim, role in _places(names[module], module, outputs):
            labels = flow.axis(parameter, dim, role)
            grouped = isinstance(module, _ConvNd) and 1 < module.groups < module.in_channels
            places = torch.tensor(item.idxs)
            if grouped and role == "read":
                places = places % len(labels)  # every part reads with the same columns
            parts = module.groups if grouped and role == "produce" else _projections(module, parameter)
            if parts > 1:
                equal = labels.reshape(parts, -1)  # equal positions of all parts go together
                flow.labels.tie(equal, equal[:1].expand_as(equal))
            flow.labels.tie(labels[places], root[list(item.root_idxs)])
    if has_reader:
        return set()
    flow.labels.freeze(root, OUTPUT)
    return makers


def _out_role(module: nn.Module) -> Role:
    return "pass" if isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels else "produce"


def _projections(module: nn.Module, parameter: Parameter) -> int:
    """Of how many layers one tensor holds the rows: attention has those of q, k and v one after the other."""
    packed = isinstance(module, nn.MultiheadAttention) and parameter.name.rpartition(".")[2].startswith("in_proj")
    return 3 if packed else 1


def _places(name: str, module: nn.Module, outputs: bool) -> Iterator[tuple[Parameter, int, Role]]:
    """The dimensions of a module's tensors that lose an entry with one of its outputs (or inputs)."""
    if isinstance(module, (_ConvNd, nn.Linear)) and not outputs:
        if _out_role(module) == "produce":
            yield Parameter(f"{name}.weight", tuple(module.weight.shape)), 1, "read"
        return
    for attribute, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.dim():
            is_weight = tensor.dim() > 1
            yield Parameter(f"{name}.{attribute}", tuple(tensor.shape)), 0, _out_role(module) if is_weight else "carry"
