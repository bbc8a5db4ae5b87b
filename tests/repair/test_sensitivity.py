"""What a network loses as nodes of one group go: against cutting them out for real, and where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.coupling.label_flow import by_every_name
from compressor.coupling.validate import feasible
from compressor.model.observe import outputs_of
from compressor.objective.distance import distance
from compressor.proof.prove import randomised
from compressor.repair import repaired
from compressor.repair.sensitivity import FITTED, JUDGED, sensitivity
from compressor.surgery.network import GroupedNetwork
from compressor.types.scores import Scores
from tests.blocks import BLOCKS

X = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def network_of(model: nn.Module) -> GroupedNetwork:
    model = randomised(model).eval()
    return GroupedNetwork(model, feasible(model, X, "heads"), X)


def plain() -> GroupedNetwork:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width in ((3, 12), (12, 10), (10, 8)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return network_of(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))


def drawn(network: GroupedNetwork) -> Scores:
    torch.manual_seed(1)
    return Scores({g.name: torch.rand(g.width) for g in network.structure.prunable})


@pytest.mark.parametrize("refits", [True, False])
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_coupling_has_a_curve(name: str, refits: bool) -> None:
    """From 0, where all nodes stay; the network itself is left as it was. What is silenced gives what is cut gives."""
    torch.manual_seed(0)
    network = network_of(BLOCKS[name]())
    x = (torch.randn(FITTED + JUDGED, 3, 8, 8),)
    before = {n: t.clone() for n, t in network.model.state_dict().items()}
    scores = drawn(network)
    curves = sensitivity(network, scores, [x], refits=refits)
    assert list(curves) == [g.name for g in network.structure.prunable]
    assert all(torch.equal(t, network.model.state_dict()[n]) for n, t in before.items())
    for group in network.structure.prunable:
        curve = curves[group.name]
        assert (curve.widths[-1], curve.losses[-1]) == (group.width, 0)
        assert all(loss >= 0 for loss in curve.losses)
        kinds = {type(network.model.get_submodule(s.layer)).__name__ for s in group.slices}
        if refits or kinds & {"LayerNorm", "GroupNorm", "RMSNorm"}:  # a norm over channels takes the zeros in
            continue
        for width, loss in zip(curve.widths, curve.losses, strict=True):
            kept = scores.values[group.name].argsort(descending=True, stable=True)[:width].sort().values
            small = network.shrink(network.structure.keep_all() | {group.name: kept}).model
            cut = distance([outputs_of(small, x)], [outputs_of(network.model, x)])
            assert loss == pytest.approx(cut, rel=1e-3, abs=1e-6)


def test_the_loss_is_what_a_repair_leaves() -> None:
    """Of a network that was cut, and repaired on as many samples: nearly, for a repair chooses between several ways."""
    network, scores = plain(), drawn(plain())
    x = (torch.randn(32 * (FITTED + JUDGED), 3, 8, 8, generator=torch.Generator().manual_seed(2)),)
    curves = sensitivity(network, scores, [x])
    for group in network.structure.prunable:
        width = group.width - round(group.width * 3 / 8)
        kept = network.structure.keep_all()
        kept[group.name] = scores.values[group.name].argsort(descending=True)[:width].sort().values
        small = network.shrink(kept).model
        stay = by_every_name(network.structure.kept_entries(kept), small)
        _, record = repaired(network.model, small, stay, [x], "least-squares", len(x[0]))
        loss, as_cut = curves[group.name].at([width])[0], record.distance["as pruned"]
        assert loss == pytest.approx(record.distance["least squares"], rel=0.5)
        assert loss < as_cut / 2


def test_a_copy_costs_nothing() -> None:
    """The case with a known answer: a node that another one stands in for is not missed once its readers are refitted."""
    network = plain()
    norm = network.model[1]
    with torch.no_grad():
        for tensor in (network.model[0].weight, network.model[0].bias, norm.weight, norm.bias):
            tensor[6:] = tensor[:6]
        for tensor in (norm.running_mean, norm.running_var):
            tensor[6:] = tensor[:6]
    scores = Scores({g.name: -torch.arange(float(g.width)) for g in network.structure.prunable})
    batches = [(torch.randn(64, 3, 8, 8),) for _ in range(6)]
    refitted, as_cut = (sensitivity(network, scores, batches, refits=refits) for refits in (True, False))
    [copies, others, _] = [refitted[g.name] for g in network.structure.prunable]
    assert copies.at([8])[0] < 1e-4 < others.at([8])[0]
    assert as_cut[next(iter(as_cut))].at([8])[0] > 1e-3


def test_few_samples_and_what_cannot_be_exported() -> None:
    """Nothing is refitted then: curves of what is cut."""

    class Branches(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 if float(x.sum()) > -1e9 else 2.0)

    network, few = plain(), (torch.randn(FITTED + JUDGED - 1, 3, 8, 8),)
    assert sensitivity(network, drawn(network), [few]) == sensitivity(network, drawn(network), [few], refits=False)
    unseen = network.with_weights(Branches(*network.model))
    enough = (torch.randn(48, 3, 8, 8),)
    assert sensitivity(unseen, drawn(network), [enough]) == sensitivity(network, drawn(network), [enough], refits=False)
