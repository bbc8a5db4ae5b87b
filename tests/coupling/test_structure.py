"""The groups that label flow finds: by hand, against torch-pruning, and where a network stands in the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor import networks
from compressor.coupling import structure
from compressor.coupling.label_flow import Traced
from compressor.coupling.torch_pruning_graph import by_torch_pruning
from compressor.errors import UnsupportedNetwork
from compressor.networks._initialise import initialise
from compressor.types.reason import OUTPUT
from compressor.types.structure import Structure
from tests.blocks import BLOCKS

X = (torch.randn(1, 3, 8, 8),)


def places(found: Structure) -> set:
    """Every node as the set of its places, and whether it may go."""
    return {
        (frozenset((s.tensor, s.dim, int(i)) for s in g.slices for i in s.index[n]), g.frozen is None)
        for g in found.groups
        for n in range(g.width)
    }


BOTH = (
    "mlp5", "lenet5", "lenet5caffe", "lenet300100", "conv6", "alexnet", "vgg16", "resnet18", "alexnet_s", "vgg_like", "wrn16_8",
    "squeezenet", "squeezenet_bypass", "googlenet", "vgg19",
)  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_both_graphs_agree_on_the_papers_networks(name: str) -> None:
    with torch.random.fork_rng():
        model, origin = networks.skeleton(name)
        model = model.to_empty(device="cpu")
        initialise(model, "glorot")
    x = (torch.randn(1, *origin.input_shape),)
    ours, theirs = Traced(model, x).structure(), by_torch_pruning(model, x)
    assert places(ours) == places(theirs)
    assert ours.norms == theirs.norms
    assert ours.total_nodes == theirs.total_nodes


@pytest.mark.parametrize("name", ["Plain", "Swish", "Residual", "SharedInput", "Dense"])
def test_both_graphs_agree_on_blocks(name: str) -> None:
    model = BLOCKS[name]()
    assert places(Traced(model, X).structure()) == places(by_torch_pruning(model, X))


def test_torch_prunings_attention_loses_the_same_rows_of_its_three_projections() -> None:
    model = BLOCKS["TorchAttention"]()
    ours, theirs = (by(model, X) for by in (lambda m, x: Traced(m, x).structure(), by_torch_pruning))
    packed = [s for g in theirs.groups for s in g.slices if s.tensor.endswith("in_proj_weight") and s.dim == 0]
    assert sum(s.index.numel() for s in packed) == 36
    for s in packed:
        for rows in s.index.reshape(-1, 3).sort().values.tolist():
            assert rows == [rows[0], rows[0] + 12, rows[0] + 24]
    assert {node for node, may_go in places(theirs) if may_go} <= {node for node, may_go in places(ours) if may_go}


def test_residual_sums_tie_their_layers() -> None:
    found = structure(BLOCKS["Residual"](), X)
    stream = found.groups[0]
    assert (stream.name, stream.width, stream.multiplicity) == ("stem.0", 6, 3)
    assert stream.layers("produce") == ("stem.0", "branches.0.1.0", "branches.1.1.0")
    assert stream.layers("read") == ("branches.0.0.0", "branches.1.0.0", "head.fc")
    assert found.total_nodes == 3 * 6 + 2 * 4


def test_a_flattened_map_repeats_each_channel() -> None:
    found = structure(BLOCKS["Plain"](), X)
    read = next(s for s in found.groups[1].slices if s.tensor.endswith("fc.weight"))
    assert read.index.shape == (8, 4)
    assert read.index[2].tolist() == [8, 9, 10, 11]


def test_depthwise_passes_on_and_the_gate_is_tied() -> None:
    found = structure(BLOCKS["Depthwise"](), X)
    group = next(g for g in found.prunable if g.name == "expand.0")
    assert group.width == 6
    assert group.multiplicity == 1 + 2 + 2  # expand, two depthwise outputs, and the two excitations tied to them
    assert group.layers("pass") == ("depth.0",)
    assert "excite" in group.layers("produce")


def test_grouped_convolutions_tie_equal_positions() -> None:
    found = structure(BLOCKS["Grouped"](), X)
    into, out = found.groups[0], found.groups[1]
    assert (into.width, into.multiplicity) == (2, 4)
    assert (out.width, out.multiplicity) == (3, 4)


def test_channel_shuffle_and_flip_are_followed() -> None:
    shuffled = structure(BLOCKS["Shuffle"](), X)
    read = next(s for s in shuffled.prunable[0].slices if s.tensor == "head.fc.weight").index
    assert {g.frozen for g in shuffled.frozen} == {OUTPUT}
    assert shuffled.prunable[0].width == 4  # the halves' equal places go together, or the code's view would mix them
    assert read[1].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]  # interleaved: left channel 1, then right channel 1
    split = structure(BLOCKS["Split"](), X)
    last = next(g for g in split.groups if g.name == "left.0")
    columns = next(s for s in last.slices if s.tensor == "head.fc.weight").index[:, 0]
    assert columns.tolist() == [12, 8, 4, 0]  # flipped to the front, in reverse


def test_the_output_layer_is_frozen_and_not_counted() -> None:
    found = structure(BLOCKS["Plain"](), X)
    assert found.groups[-1].frozen == OUTPUT
    assert found.total_nodes == 6 + 8


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.second(self.norm(self.first(x)))).mean((2, 3)))


def test_an_operator_in_the_way_freezes_what_it_touches_and_is_named() -> None:
    found = structure(Normalised(), X)
    assert [g.name for g in found.prunable] == ["second"]
    frozen = next(g for g in found.frozen if g.name == "first")
    assert frozen.frozen == "norm (avg_pool3d): it pools over channels"


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.fft.fft(self.conv(x)).abs().mean((1, 2, 3))


def test_nothing_prunable_is_refused_with_layer_and_operator() -> None:
    with pytest.raises(UnsupportedNetwork, match=r"nothing can be pruned: .*fft"):
        structure(Unknown(), X)


class Branching(nn.Module):
    """Control flow that depends on the data: torch.export gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        if x.sum() > 1e9:
            x = x * 2
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def test_torch_pruning_is_the_way_in_where_export_cannot_trace() -> None:
    found = structure(Branching(), X)
    assert found.found_by.startswith("torch-pruning's graph, for torch.export cannot trace")
    assert [g.name for g in found.prunable] == ["first", "second"]


def test_integer_indices_are_followed_by_value() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
            self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

        def forward(self, x):
            return self.fc(self.first(x).mean((2, 3))[:, self.order])

    read = next(s for s in structure(Indexed(), X).groups[0].slices if s.role == "read")
    assert read.index[:, 0].tolist() == [1, 3, 0, 2]
