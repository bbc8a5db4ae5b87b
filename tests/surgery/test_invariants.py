"""The invariants of the design, as properties over every network: masked = shrunk, keep-all = identity, and so on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compressor import networks
from compressor.coupling import structure as traced
from compressor.coupling.validate import feasible, prove_else_freeze
from compressor.model.cost import macs
from compressor.model.observe import outputs_of
from compressor.proof.equivalence import Equivalence
from compressor.proof.prove import prove, prove_randomised, randomised
from compressor.proof.reference import norms_over_kept, reference_outputs
from compressor.selection.select import highest_reachable, select
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.shrink import shrink
from compressor.types.scores import Scores
from compressor.types.structure import Structure
from tests.blocks import BLOCKS, Stubborn

INPUT = (3, 8, 8)
PAPERS = (
    "mlp5", "lenet5", "lenet5caffe", "lenet300100", "conv6", "resnet18", "gru_s", "lstm_s", "squeezenet_bypass",
    pytest.param("resnet32", marks=pytest.mark.slow),
)  # fmt: skip
"""Small enough for every run; the others are proven whenever they are pruned."""


def structure(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Structure:
    """What the pipeline works on: the traced groups, without those that a size in the code forbids."""
    return feasible(model, inputs)


def random_kept(found: Structure, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in found.prunable:
        count = int(torch.randint(1, group.width + 1, (), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[:count].sort().values
    return kept


def random_scores(found: Structure, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores({g.name: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in found.prunable})


def agree_in_double(dense: nn.Module, small: nn.Module, found: Structure, kept, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            small(x), reference_outputs(GroupedNetwork(dense, found, (x,)), kept)[0], rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("seed", range(4))
def test_masked_network_equals_the_shrunk_one_on_blocks(block_network: nn.Module, seed: int) -> None:
    dense, x = block_network.double(), torch.randn(4, *INPUT, dtype=torch.float64)
    found = structure(dense, (x,))
    kept = random_kept(found, seed)
    agree_in_double(dense, shrink(dense, found, kept), found, kept, x)


@pytest.mark.parametrize("name", PAPERS)
def test_masked_network_equals_the_shrunk_one_on_the_papers_networks(name: str) -> None:
    model = networks.build(name)
    dense = randomised(model).double().eval()
    x = torch.randn(3, *model.origin.input_shape, dtype=torch.float64)
    found = structure(dense, (x,))
    kept = random_kept(found, 1)
    agree_in_double(dense, shrink(dense, found, kept), found, kept, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_masked_network_equals_the_shrunk_one_on_the_wide_networks(name: str) -> None:
    model = networks.build(name)
    x = torch.randn(8, *model.origin.input_shape)
    found = structure(model, (x,))
    proof = prove_randomised(GroupedNetwork(model, found, (x,)), random_kept(found, 1))
    assert proof
    assert proof.conclusive


def test_zeroing_producers_and_norms_equals_zeroing_the_reads(block_network: nn.Module) -> None:
    """The graph's own test, without surgery: a third of the groups' nodes, silenced where made or where read."""
    if isinstance(block_network, BLOCKS["Mixer"]):
        pytest.skip("a layer over positions adds its bias to every channel, silent ones too")
    x = torch.randn(4, *INPUT)
    found = structure(block_network, (x,))
    kept = {n: i if k % 3 else i[: max(1, len(i) // 2)] for k, (n, i) in enumerate(found.keep_all().items())}
    silenced = {k: v.detach().clone() for k, v in block_network.state_dict().items()}
    for group in found.prunable:
        gone = [n for n in range(group.width) if n not in set(kept[group.name].tolist())]
        for s in group.slices:
            if s.role not in ("read", "size") and s.tensor in silenced and not s.tensor.endswith("running_var"):
                silenced[s.tensor].index_fill_(s.dim, s.index[gone].flatten(), 0.0)
    muted = copy.deepcopy(block_network)
    muted.load_state_dict(silenced)
    with torch.no_grad():
        (at_reads,) = reference_outputs(GroupedNetwork(block_network, found, (x,)), kept)
        with norms_over_kept(muted, found, kept):
            at_source = muted(x)
        unharmed = block_network(x)
    torch.testing.assert_close(at_source, at_reads, rtol=1e-5, atol=1e-6)
    assert float((unharmed - at_reads).abs().max()) > 1e-3


def test_keeping_everything_changes_nothing(block_network: nn.Module) -> None:
    x = torch.randn(4, *INPUT)
    found = structure(block_network, (x,))
    same = shrink(block_network, found, found.keep_all())
    assert torch.equal(same(x), block_network(x))
    assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in block_network.state_dict().items()}


def test_macs_never_grow_and_more_sparsity_keeps_a_subset(block_network: nn.Module) -> None:
    x = torch.randn(1, *INPUT)
    found = structure(block_network, (x,))
    scores = random_scores(found, 3)
    before = macs(block_network, (x,))
    last = {n: set(i.tolist()) for n, i in found.keep_all().items()}
    for sparsity in (share * highest_reachable(found) for share in (0.2, 0.5, 1.0)):
        kept = select(scores, found, sparsity).kept
        now = {n: set(i.tolist()) for n, i in kept.items()}
        assert all(now[n] <= last[n] for n in now)
        after = macs(shrink(block_network, found, kept), (x,))
        assert after <= before
        before, last = after, now


def test_surgery_in_two_steps_equals_one(block_network: nn.Module) -> None:
    x = torch.randn(2, *INPUT)
    found = structure(block_network, (x,))
    first = select(random_scores(found, 5), found, 0.2).kept
    middle, left = shrink(block_network, found, first), found.shrink(first)
    second = select(random_scores(left, 6), left, 0.4).kept
    twice = shrink(middle, left, second)
    once = shrink(block_network, found, {n: first[n][second[n]] for n in first})
    for (name, a), (_, b) in zip(twice.state_dict().items(), once.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_renumbered_structure_is_that_of_the_small_network(block_network: nn.Module) -> None:
    """What follows from renumbering is what a fresh trace of the small network finds."""
    x = torch.randn(2, *INPUT)
    found = structure(block_network, (x,))
    kept = {n: i[1:] if len(i) > 2 else i for n, i in found.keep_all().items()}
    small = shrink(block_network, found, kept)

    def places(s: Structure) -> set:
        return {
            frozenset((p.tensor, p.dim, int(i)) for p in g.slices for i in p.index[n])
            for g in s.prunable
            for n in range(g.width)
        }

    assert places(found.shrink(kept)) == places(structure(small, (x,)))


def test_training_state_survives(block_network: nn.Module) -> None:
    x = torch.randn(4, *INPUT)
    block_network.train()
    frozen = next(iter(block_network.parameters()))
    frozen.requires_grad_(False)
    found = structure(block_network, (x,))
    small = shrink(block_network, found, random_kept(found, 2))
    assert small.training
    assert not next(iter(small.parameters())).requires_grad
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


def test_shared_weights_stay_shared() -> None:
    model = BLOCKS["Scaled"]().eval()
    found = structure(model, (torch.randn(1, *INPUT),))
    assert found.prunable[0].multiplicity == 2  # the stem, and the convolution that is used twice
    small = shrink(model, found, random_kept(found, 0))
    assert small.twice.out_channels == small.stem[0].out_channels == small.act.num_parameters == small.scale.shape[1]


def test_a_size_in_the_code_freezes_only_its_group() -> None:
    model = Stubborn().eval()
    x = torch.randn(4, *INPUT)
    found = traced(model, (x,))
    assert {g.name for g in found.prunable} == {"first.0", "second.0"}
    proven = prove_else_freeze(GroupedNetwork(model, found, (x,)))
    assert [g.name for g in proven.prunable] == ["first.0"]
    assert "does not run" in next(g.frozen for g in proven.frozen if g.name == "second.0")


def test_a_wrong_network_is_caught() -> None:
    model = randomised(BLOCKS["Residual"]()).eval()
    x = torch.randn(4, *INPUT)
    found = structure(model, (x,))
    kept = random_kept(found, 4)
    small = shrink(model, found, kept)
    assert prove(GroupedNetwork(model, found, (x,)), small, kept)
    with torch.no_grad():
        small.stem[0].weight[0] *= 1.01
    proof = prove(GroupedNetwork(model, found, (x,)), small, kept)
    assert not proof
    assert proof.needed_tolerance > proof.tolerance


def test_a_proof_without_variation_is_inconclusive() -> None:
    constant = torch.ones(5, 3) * torch.arange(3)
    assert not Equivalence.of("constant", [constant], [constant], 1e-5).conclusive
    assert Equivalence.of("varying", [torch.randn(5, 3)], [torch.randn(5, 3)], 1e-5).conclusive


def test_permuting_channels_permutes_the_selection() -> None:
    """A network whose hidden channels are renumbered loses the same channels under their new numbers."""
    model = randomised(BLOCKS["Plain"]()).eval()
    x = torch.randn(2, *INPUT)
    order = torch.randperm(6)
    renamed = randomised(BLOCKS["Plain"]()).eval()
    renamed.load_state_dict(model.state_dict())
    first, norm = renamed.net[0]
    with torch.no_grad():
        for tensor in (first.weight, first.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(tensor[order].clone())
        reader = renamed.net[3][0].weight
        reader.copy_(reader[:, order].clone())
    torch.testing.assert_close(outputs_of(renamed, (x,)), outputs_of(model, (x,)))
    found = structure(model, (x,))
    scores = random_scores(found, 0)
    moved = Scores({**scores.values, "net.0.0": scores.values["net.0.0"][order]})
    kept, kept_moved = select(scores, found, 0.4).kept, select(moved, found, 0.4).kept
    assert set(order[kept_moved["net.0.0"]].tolist()) == set(kept["net.0.0"].tolist())
