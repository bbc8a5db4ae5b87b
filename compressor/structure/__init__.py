"""A network's groups of coupled nodes: what must be removed together so that every shape still fits."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compressor.errors import BadInput, UnsupportedNetwork, first_line
from compressor.inputs import Inputs, as_inputs, each
from compressor.state import outputs_of
from compressor.structure.label_flow import Untraceable, by_label_flow
from compressor.types import Structure

__all__ = ["structure"]


def structure(model: nn.Module, example_inputs: Inputs, *, prunable: bool = True) -> Structure:
    """Find the groups of `model` by label flow, or by torch-pruning's graph where `torch.export` cannot trace it.

    Args:
        model: any network; it is not changed.
        prunable: refuse a network in which nothing can be pruned.
        example_inputs: positional inputs, or a dict of named ones, with a batch dimension; one sample is enough.
    Raises:
        BadInput: the network does not run on the inputs.
        UnsupportedNetwork: neither graph can be made, or nothing can be pruned; the message says why.
    """
    one = each(as_inputs(example_inputs), lambda x: x[:1])
    try:
        outputs_of(model, one)
    except Exception as error:  # whatever the network's own code raises
        raise BadInput(f"the network does not run in eval mode on its inputs: {first_line(error)}") from error
    try:
        found = by_label_flow(model, one)
    except Untraceable as reason:
        from compressor.structure.torch_pruning_graph import by_torch_pruning

        found = by_torch_pruning(model, one)
        found = replace(found, found_by=f"torch-pruning's graph, for torch.export cannot trace the network ({reason})")
    if prunable and not found.prunable:
        reasons = sorted({g.frozen for g in found.frozen if g.frozen}) or ["it has no layer with nodes"]
        raise UnsupportedNetwork(f"nothing can be pruned: {'; '.join(reasons)}")
    return found
