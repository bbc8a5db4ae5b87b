"""Node elasticity: how much the loss changes, relatively, when a node's gate closes (SNIP-it, eq. 3-4).

No gate is inserted. For a tensor y gated by c = 1 along its channels, dL/dc_j is the sum over samples and positions of
y_j dL/dy_j, which a hook on y reads off the ordinary backward pass. The parameters are frozen, so no weight gradient is
computed, and the backward pass ends at the first gate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.criteria.variables import GateArguments, finite, gradient, input_channels, variables
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.model.observe import observed
from compressor.model.speed import best_layouts, fold_norms
from compressor.objective.batches import size_of
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.settings import Aggregate, GatePlace, Unit
from compressor.types.scores import Scores
from compressor.types.structure import Slice, Structure

LEAST_LOSS = 1e-30
"""A loss of exactly 0 would make every elasticity infinite; the ranking does not depend on it."""


def node_elasticity(
    model: nn.Module,
    structure: Structure,
    objective: Objective,
    *,
    gate: GatePlace = "read",
    aggregate: Aggregate = "signed",
) -> Scores:
    """|dL/dc_j| / |L| for every node j of every prunable group.

    Args:
        gate: `read` puts the gate on every read of the node by the layers that use it, which is what removing it does;
            `post-norm` on the layer's output after its batch norm (the paper's formula; equal to `read` for (Leaky)ReLU);
            `pre-norm` before the batch norm, where the authors' code has it.
        aggregate: `signed` sums over all samples before the absolute value (the paper), `batch` takes the absolute value of
            each batch's sum, `sample` of each sample's.
    Returns:
        Scores `(width,)` in float64 per group. Reads and parallel branches of a group add up before the absolute value.
    Raises:
        BadInput: the loss is not finite, or every score is 0.
        UnsupportedNetwork: a gated tensor is changed in place between its use and the backward pass.
    """
    prunable = {g.name: g for g in structure.prunable}
    totals = {name: torch.zeros(g.width, dtype=torch.float64) for name, g in prunable.items()}
    loss_sum, samples = 0.0, 0
    with observed(model) as twin, torch.enable_grad():
        if gate == "read":  # the other gates sit where a folded norm no longer is
            fold_norms(twin, structure.norms)
        best_layouts(twin, objective.example_inputs())
        gates = _Gates(per_sample=aggregate == "sample")
        for name, group in prunable.items():
            unread = not any(s.role == "read" for s in group.slices)  # queries and keys: what reads them is no layer
            for s in group.slices:
                gates.place(twin, structure, name, s, "post-norm" if unread else gate)
        for batch in objective.batches():
            size = gates.batch = size_of(batch)
            loss = finite(objective.loss_of(twin, batch))
            if not loss.requires_grad:
                raise BadInput("the loss does not depend on any prunable node")
            loss.backward()
            for name, sums in gates.collect().items():  # (1 or batch, width), of the batch's mean loss
                totals[name] += size * _AGGREGATES[aggregate](sums.to("cpu", torch.float64))
            loss_sum, samples = loss_sum + loss.item() * size, samples + size
    return _elastic(totals, loss_sum, samples)


def sensitivity(model: nn.Module, structure: Structure, objective: Objective, unit: Unit) -> Scores:
    """|theta dL/dtheta|, in float32 for weights (gradient magnitude of Blalock et al.)."""
    with variables(model, structure, unit) as (twin, by):
        g, loss, samples = gradient(twin, by, objective)
        values = {name: g[name].mul_(by[name].detach()).abs_().cpu() for name in by}
    if not any(bool(value.any()) for value in values.values()):
        raise BadInput("every score is 0: the loss does not depend on the network (constant outputs, or dead nodes)")
    return Scores({n: v.double() if unit == "node" else v for n, v in values.items()}, loss, samples, unit)


def weight_elasticity(model: nn.Module, structure: Structure, objective: Objective) -> Scores:
    """|w dL/dw| / |L| for every entry of every convolution's, linear layer's and recurrent cell's weight (SNIP-it, eq. 3).

    Returns:
        Scores of unit `weight`, shaped like the tensors, in float32, by state-dict name; a masked weight (0) scores 0.
    Raises:
        BadInput: the loss is not finite or 0, or every score is 0.
    """
    found = sensitivity(model, structure, objective, "weight")
    loss = _check_loss(found.loss or 0.0)
    for value in found.values.values():
        value.div_(loss)
    return found


def _elastic(sums: Mapping[str, Tensor], loss_sum: float, samples: int) -> Scores:
    """Sums over samples of dL/dc as elasticities |dL/dc| / |L|."""
    loss = loss_sum / samples
    divisor = _check_loss(loss)
    if not any(bool(total.any()) for total in sums.values()):
        raise BadInput("every score is 0: the loss does not depend on the network (constant outputs, or dead nodes)")
    return Scores({name: s.abs() / samples / divisor for name, s in sums.items()}, loss, samples)


def _check_loss(loss: float) -> float:
    """What elasticities are divided by.

    Raises:
        BadInput: the loss is 0 on every sample.
    """
    if loss == 0:
        raise BadInput("the loss is 0 on every sample: there is nothing to score; check the loss and the targets")
    return max(abs(loss), LEAST_LOSS)


_AGGREGATES: dict[Aggregate, Callable[[Tensor], Tensor]] = {
    "signed": lambda sums: sums.sum(0),
    "batch": lambda sums: sums.sum(0).abs(),
    "sample": lambda sums: sums.abs().sum(0),
}


class _Gates:
    """Hooks that add up y dL/dy per channel for one batch, and hand the sums out per group."""

    def __init__(self, per_sample: bool) -> None:
        self.per_sample, self.batch = per_sample, 0
        self._sums: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._stored: list[tuple[str, Tensor, int, Tensor]] = []

    def collect(self) -> dict[str, Tensor]:
        """Sums `(1 or batch, width)` per group since the last call."""
        found: dict[str, Tensor] = {}
        for name, weight, dim, index in self._stored:
            if weight.grad is not None:
                self._sums[name].append(((weight.detach() * weight.grad).movedim(dim, 0).flatten(1).sum(1)[None], index))
        for weight in {weight for _, weight, _, _ in self._stored}:
            weight.grad = None
        for name, parts in self._sums.items():
            for sums, index in parts:  # sums (1 or batch, channels); index (width, k)
                part = sums.double()[:, index.to(sums.device)].sum(-1)
                found[name] = found[name] + part if name in found else part
        self._sums.clear()
        return found

    def place(self, model: nn.Module, structure: Structure, group: str, s: Slice, gate: GatePlace) -> None:
        """Register the hook of one slice, if the gate belongs there.

        A weight that a function applies has no module whose input could be gated: there the sum over what it reads is
        <W[:, j], dL/dW[:, j]>, and over what it makes <W[j], dL/dW[j]> + b[j] dL/db[j], which are the same numbers.
        """
        if s.role == "size":
            return
        if s.tensor in structure.functional or s.tensor.rpartition(".")[2].startswith("units_"):
            if s.role == ("read" if gate == "read" else "produce"):
                self._place_on_weights(model, group, s)
            return
        module = model.get_submodule(s.layer)
        if gate == "read" and s.role == "read":
            index = input_channels(module, s)

            def gate_input(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> GateArguments:
                x = args[0] if args else options["input"]
                y = self._gated(x, group, index, s.layer, module)
                return ((y, *args[1:]), options) if args else ((), {**options, "input": y})

            module.register_forward_pre_hook(gate_input, with_kwargs=True)
        elif gate != "read" and s.role == "produce":
            follower = structure.norms.get(s.layer) if gate == "post-norm" else None
            place = model.get_submodule(follower) if follower else module
            place.register_forward_hook(lambda _, args, out: self._gated(out, group, s.index, s.layer, module, output=True))

    def _place_on_weights(self, model: nn.Module, group: str, s: Slice) -> None:
        if self.per_sample:
            raise UnsupportedNetwork(
                f"{s.tensor}: a function applies it, not a layer; use {spelled('aggregate')} signed or batch"
            )
        names = [s.tensor] if s.role == "read" else [s.tensor, s.tensor.removesuffix("weight") + "bias"]
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in names:
            if name in parameters:
                self._stored.append((group, parameters[name].requires_grad_(), s.dim, s.index))

    def _gated(self, x: Tensor, group: str, index: Tensor, layer: str, module: nn.Module, output: bool = False) -> Tensor:
        y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        held = y.detach()  # the hook must not hold y itself: that cycle would keep every activation alive
        version = held._version
        dim = y.dim() - 1 if isinstance(module, nn.Linear) else 1

        def add(gradient: Tensor) -> None:
            if held._version != version:
                raise UnsupportedNetwork(f"{layer}: its input is changed in place later; use inplace=False there")
            self._sums[group].append((self._by_sample(channel_sums(held, gradient, dim), layer), index))

        y.register_hook(add)
        return y.clone() if output else y  # what follows an output may work in place

    def _by_sample(self, sums: Tensor, layer: str) -> Tensor:
        """Sums `(rows, channels)` as `(1 or batch, channels)`: a layer may see several rows of one sample."""
        if not self.per_sample:
            return sums.sum(0, keepdim=True)
        if len(sums) % self.batch:
            raise UnsupportedNetwork(f"{layer}: its rows are not samples; use {spelled('aggregate')} signed or batch")
        return sums.reshape(self.batch, -1, sums.shape[1]).sum(1)


def channel_sums(y: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """Sum of y * gradient over all dimensions but the samples and `dim`: `(batch, channels)`."""
    product = (y * gradient).movedim(dim, 1)
    return product.flatten(2).sum(2) if product.dim() > 2 else product
