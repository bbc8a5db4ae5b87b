"""A network's groups of coupled nodes: what must be removed together so that every shape still fits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import nn

from compressor.coupling.label_flow import Traced, Untraceable
from compressor.coupling.label_proof import Comparison
from compressor.errors import BadInput, UnsupportedNetwork, first_line
from compressor.model.inputs import Inputs, as_inputs, each
from compressor.model.observe import outputs_of
from compressor.settings import Attention
from compressor.types.reason import summed_up
from compressor.types.structure import Kept, Structure, Tie

__all__ = ["Traced", "Untraced", "check_prunable", "structure", "trace"]


def structure(model: nn.Module, example_inputs: Inputs, *, prunable: bool = True, attention: Attention = "heads") -> Structure:
    """Find the groups of `model` by label flow, or by torch-pruning's graph where `torch.export` cannot trace it.

    Args:
        model: any network; it is not changed.
        example_inputs: positional inputs, or a dict of named ones, with a batch dimension; one sample is enough.
        prunable: refuse a network in which nothing can be pruned.
        attention: what the nodes of an attention are: `heads`, or `dims`, the dimensions inside all heads.
    Raises:
        BadInput: the network does not run on the inputs.
        UnsupportedNetwork: neither graph can be made, or nothing can be pruned; the message says why.
    """
    found = trace(model, example_inputs, attention).structure()
    if prunable:
        check_prunable(found)
    return found


def check_prunable(found: Structure) -> None:
    """Refuse a network in which nothing can be pruned.

    Raises:
        UnsupportedNetwork: with the reasons.
    """
    if not found.prunable:
        reasons = summed_up([g.frozen for g in found.frozen if g.frozen]) or ["it has no layer with nodes"]
        if found.untraceable is not None:
            reasons.append(f"torch.export cannot trace it: {found.untraceable}")
        raise UnsupportedNetwork(f"nothing can be pruned: {'; '.join(reasons)}")


def trace(model: nn.Module, example_inputs: Inputs, attention: Attention = "heads") -> Traced | Untraced:
    """What label flow needs of `model`, or the groups that torch-pruning finds. Errors as in `structure`."""
    one = each(as_inputs(example_inputs), lambda x: x[:1])
    try:
        outputs_of(model, one)
    except Exception as error:  # whatever the network's own code raises
        raise BadInput(f"the network does not run in eval mode on its inputs: {first_line(error)}") from error
    try:
        return Traced(model, one, attention)
    except Untraceable as reason:
        from compressor.coupling.torch_pruning_graph import by_torch_pruning

        try:
            found = by_torch_pruning(model, one)
        except UnsupportedNetwork as error:
            raise UnsupportedNetwork(f"torch.export cannot trace it ({reason}); {error}") from reason
        return Untraced(replace(found, untraceable=str(reason)))


@dataclass(frozen=True)
class Untraced:
    """A network that torch.export cannot trace: its groups cannot be bound further, nor its operators compared."""

    found: Structure

    def structure(self, bound: Collection[Tie] = ()) -> Structure:
        return self.found

    @property
    def counts(self) -> bool:
        """Nothing is known of its operators."""
        return False

    def compare(self, small: nn.Module, structure: Structure, kept: Kept, example_inputs: Inputs) -> Comparison:
        """Why nothing can be compared."""
        return Comparison(0, f"torch.export cannot trace the network ({self.found.untraceable})")
