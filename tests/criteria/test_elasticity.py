"""Node elasticity against hand-computed values, inserted gates and the three closed forms, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.coupling import structure
from compressor.criteria.elasticity import node_elasticity, weight_elasticity
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.objective.objective import Objective
from compressor.proof.prove import randomised
from compressor.types.structure import Structure
from tests.blocks import BLOCKS


class TwoByTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
            self.last.weight.copy_(torch.tensor([[3.0, -1.0]]))

    def forward(self, x):
        return self.last(self.first(x))


def mean_output(outputs, batch):
    return outputs.mean()


def test_four_numbers_by_hand() -> None:
    # x = (1, 2): hidden = (1, 4), output = 3 - 4 = -1. dL/dc = (3, -4), |L| = 1.
    # x = (2, 1): hidden = (2, 2), output = 6 - 2 = 4. Mean loss 1.5, mean dL/dc = ((3 + 6) / 2, (-4 - 2) / 2) = (4.5, -3).
    model, x = TwoByTwo(), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    found = structure(model, (x,))
    data = [(x[:1], None), (x[1:], None)]
    signed = node_elasticity(model, found, Objective(data, mean_output))
    assert signed.values["first"].tolist() == pytest.approx([4.5 / 1.5, 3 / 1.5])
    assert signed.loss == pytest.approx(1.5)
    one = node_elasticity(model, found, Objective([(x[:1], None)], mean_output))
    assert one.values["first"].tolist() == pytest.approx([3, 4])


def test_aggregates_by_hand() -> None:
    # dL/dc of node 0 is 3 for (1, 2) and -6 for (-2, 1); outputs -1 and -8. Signed mean -1.5, absolute mean 4.5, |L| 4.5.
    model, x = TwoByTwo(), torch.tensor([[1.0, 2.0], [-2.0, 1.0]])
    found, batches = structure(model, (x,)), [(x, None)]
    scores = {
        aggregate: node_elasticity(model, found, Objective(batches, mean_output), aggregate=aggregate).values["first"][0]
        for aggregate in ("signed", "batch", "sample")
    }
    assert scores["signed"] == scores["batch"] == pytest.approx(1.5 / 4.5)
    assert scores["sample"] == pytest.approx(4.5 / 4.5)
    split = Objective([(x[:1], None), (x[1:], None)], mean_output)
    assert node_elasticity(model, found, split, aggregate="batch").values["first"][0] == pytest.approx(1.0)


@contextmanager
def inserted_gates(model: nn.Module, found: Structure) -> Iterator[dict[str, torch.Tensor]]:
    """Gates c = 1 multiplied, by hand, into every read of every group's nodes."""
    read = [g for g in found.prunable if g.layers("read")]
    gates = {g.name: torch.ones(g.width, dtype=torch.float64, requires_grad=True) for g in read}
    handles = []
    for group in read:
        for s in (s for s in group.slices if s.role == "read"):
            layer = model.get_submodule(s.layer)
            copies = 1 if getattr(layer, "transposed", False) else getattr(layer, "groups", 1)

            def multiply(module, inputs, s=s, name=group.name, copies=copies):
                x, size = inputs[0], module.weight.shape[s.dim]
                factor = torch.ones(copies * size, dtype=torch.float64)
                for n in range(copies):
                    factor = factor.index_put((s.index.flatten() + n * size,), gates[name].repeat_interleave(s.index.shape[1]))
                of_a_map = () if isinstance(module, nn.Linear) else x.shape[2:]
                return (x * factor.reshape(-1, *(1 for _ in of_a_map)),)

            handles.append(layer.register_forward_pre_hook(multiply))
    yield gates
    for handle in handles:
        handle.remove()


def prepared(name: str) -> tuple[nn.Module, Structure, Objective, list]:
    torch.manual_seed(0)
    model = randomised(BLOCKS[name](), seed=3).double().eval()
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64), torch.randint(5, (5,), generator=generator))
        for _ in range(2)
    ]
    return model, structure(model, (batches[0][0],)), Objective(batches), batches


def mean_loss(model: nn.Module, batches: list) -> torch.Tensor:
    return sum(F.cross_entropy(model(x), y) for x, y in batches) / len(batches)


GATED = sorted(BLOCKS.keys() - {"TorchAttention", "Recurrent"})
"""Functions apply the weights of the others, which have no input to gate: `tests/coupling/test_any_network.py`."""


@pytest.mark.parametrize("name", GATED)
def test_hooks_equal_gates_inserted_by_hand(name: str) -> None:
    model, found, objective, batches = prepared(name)
    with inserted_gates(model, found) as gates:
        loss = mean_loss(model, batches)
        gradients = torch.autograd.grad(loss, list(gates.values()))
    scores = node_elasticity(model, found, objective)
    for group, gradient in zip(gates, gradients, strict=True):
        torch.testing.assert_close(scores.values[group], gradient.abs() / loss.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["Plain", "Swish", "Residual", "Depthwise"])
def test_closed_form_at_the_reads(name: str) -> None:
    """Sum over consumers of <W_c[:, j], dL/dW_c[:, j]>."""
    model, found, objective, batches = prepared(name)
    loss = mean_loss(model, batches)
    loss.backward()
    parameters = dict(model.named_parameters())
    scores = node_elasticity(model, found, objective)
    for group in found.prunable:
        total = torch.zeros(group.width, dtype=torch.float64)
        for s in (s for s in group.slices if s.role == "read"):
            weight = parameters[s.tensor]
            product = (weight * weight.grad).detach().movedim(s.dim, 0).flatten(1).sum(1)
            total += product[s.index].sum(1)
        torch.testing.assert_close(scores.values[group.name], total.abs() / loss.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["Plain", "Swish", "Residual", "Depthwise"])
@pytest.mark.parametrize("gate", ["post-norm", "pre-norm"])
def test_closed_forms_around_the_norm(name: str, gate: str) -> None:
    """gamma dL/dgamma + beta dL/dbeta after the norm; <W_j, dL/dW_j> + b_j dL/db_j before it; parallel layers add up."""
    model, found, objective, batches = prepared(name)
    loss = mean_loss(model, batches)
    loss.backward()
    scores = node_elasticity(model, found, objective, gate=gate)
    for group in found.prunable:
        total = torch.zeros(group.width, dtype=torch.float64)
        for s in (s for s in group.slices if s.role == "produce"):
            place = found.norms.get(s.layer, s.layer) if gate == "post-norm" else s.layer
            module = model.get_submodule(place)
            products = [(p * p.grad).detach().reshape(len(p), -1).sum(1) for p in module.parameters()]
            total += sum(products)[s.index].sum(1)
        torch.testing.assert_close(scores.values[group.name], total.abs() / loss.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["Plain", "Residual", "SharedInput"])
def test_reads_and_post_norm_agree_for_leaky_relu(name: str) -> None:
    model, found, objective, _ = prepared(name)
    reads = node_elasticity(model, found, objective)
    norms = node_elasticity(model, found, objective, gate="post-norm")
    for group in reads.values:
        torch.testing.assert_close(reads.values[group], norms.values[group], rtol=1e-8, atol=1e-12)


def test_reads_and_post_norm_differ_for_silu() -> None:
    model, found, objective, _ = prepared("Swish")
    reads = node_elasticity(model, found, objective).values["net.0.0"]
    norms = node_elasticity(model, found, objective, gate="post-norm").values["net.0.0"]
    assert not torch.allclose(reads, norms, rtol=1e-2)


def test_micro_batches_do_not_change_signed_scores() -> None:
    model, found, _, batches = prepared("Residual")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = node_elasticity(model, found, Objective([(x, y)]))
    pieces = node_elasticity(model, found, Objective(list(zip(x.split(3), y.split(3), strict=True))))
    assert whole.samples == pieces.samples == 10
    for group in whole.values:
        torch.testing.assert_close(whole.values[group], pieces.values[group], rtol=1e-8, atol=1e-12)


def test_weight_elasticity_is_weight_times_gradient() -> None:
    model, found, objective, batches = prepared("Residual")
    loss = mean_loss(model, batches)
    loss.backward()
    scores = weight_elasticity(model, found, objective)
    for name, value in scores.values.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(value, (weight * weight.grad).detach().abs() / loss.detach(), rtol=1e-8, atol=1e-12)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model, found, _, batches = prepared("Plain")
    with pytest.raises(BadInput, match="the loss is nan"):
        node_elasticity(model, found, Objective(batches, lambda outputs, batch: outputs.sum() * float("nan")))


def test_scores_that_are_all_zero_are_refused() -> None:
    model, found, _, batches = prepared("Plain")
    with pytest.raises(BadInput, match="every score is 0"):
        node_elasticity(model, found, Objective(batches, lambda outputs, batch: outputs.sum() * 0 + 1))
    with pytest.raises(BadInput, match="the loss is 0 on every sample"):
        node_elasticity(model, found, Objective(batches, lambda outputs, batch: outputs.sum() * 0))
    with pytest.raises(BadInput, match="neither class labels nor probabilities"):
        node_elasticity(model, found, Objective([(batches[0][0], torch.zeros(3))]))


def test_a_read_that_is_overwritten_later_is_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            y = self.second(x)
            x.mul_(2)
            return self.third(x + y)

    model, x = Overwrites(), torch.randn(3, 4)
    with pytest.raises(UnsupportedNetwork, match="second: its input is changed in place"):
        node_elasticity(model, structure(model, (x,)), Objective([(x, torch.tensor([0, 1, 0]))]))
