"""Couplings beyond convolutions: attention, norms over channels, recurrent layers, sizes in the code, auxiliary heads."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import apply_plan, compress, load, save, score
from compressor.coupling import structure
from compressor.coupling.validate import feasible
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.proof.prove import prove_randomised, randomised
from compressor.surgery.network import GroupedNetwork
from compressor.types.origin import Origin
from compressor.types.plan import Plan
from compressor.types.reason import NOT_IN_EVAL
from compressor.types.structure import Structure
from tests.blocks import BLOCKS, Auxiliary

X = (torch.randn(2, 3, 8, 8),)
BATCHES = [(torch.randn(6, 3, 8, 8), torch.randint(5, (6,)))]


def group_of(found: Structure, layer: str):
    return next(g for g in found.groups if layer in g.layers("produce", "pass"))


def some(found: Structure) -> dict[str, torch.Tensor]:
    return {name: kept[: max(1, len(kept) // 2)] for name, kept in found.keep_all().items()}


def test_heads_are_the_nodes_of_an_attention() -> None:
    found = feasible(BLOCKS["Attention"](), X)
    assert {g.name: g.width for g in found.prunable} == {"stem": 12, "first.qkv": 3, "second.qkv": 3, "mlp.1": 10}
    heads = group_of(found, "first.qkv")
    assert heads.multiplicity == 3 * 4  # a head's queries, keys and values, four of each
    assert heads.slices[0].index[1].tolist() == [*range(4, 8), *range(16, 20), *range(28, 32)]
    assert [s.tensor for s in heads.slices if s.role == "size"] == ["first.num_heads"]
    assert next(s for s in heads.slices if s.tensor == "first.bias").dim == 1
    small = compress(BLOCKS["Attention"](), "random", None, 0.5, example_inputs=X).model
    assert small.first.num_heads * 4 == small.first.proj.in_features < 12


def test_dimensions_inside_all_heads_are_the_nodes_where_asked() -> None:
    found = feasible(BLOCKS["Attention"](), X, "dims")
    dims = group_of(found, "first.qkv")
    assert (dims.width, dims.multiplicity) == (4, 3 * 3)
    assert dims.multiplied
    assert [s.tensor for s in dims.slices if s.role == "size"] == ["first.head_dim"]
    small = compress(BLOCKS["Attention"](), "random", None, 0.5, example_inputs=X, attention="dims").model
    assert small.first.num_heads == 3
    assert small.first.head_dim * 3 == small.first.proj.in_features < 12


def test_a_size_taken_from_the_input_ties_the_heads_to_the_stream() -> None:
    found = feasible(BLOCKS["SizesFromInput"](), X)
    pairs = [frozenset((b.one, b.other)) for b in found.bound]
    both = [{"first.qkv.weight", "first.proj.weight"}, {"second.qkv.weight", "second.proj.weight"}]
    assert pairs == [*map(frozenset, both)]  # what one module needs, all of its kind need
    assert {g.name: g.width for g in found.prunable} == {"stem": 3, "mlp.1": 10}
    assert found.open_share == 1.0


def test_a_plan_remembers_what_was_bound() -> None:
    model = BLOCKS["SizesFromInput"]()
    made = compress(model, "random", None, 0.5, example_inputs=X)
    plan = Plan.from_json(made.plan.to_json())
    assert plan.bound
    again = apply_plan(plan, BLOCKS["SizesFromInput"](), X)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in made.model.state_dict().items()}
    foreign = plan.to_json().replace("first.qkv.weight", "third.qkv.weight")
    with pytest.raises(BadInput, match=r"third\.qkv\.weight .* not weights of this network"):
        apply_plan(Plan.from_json(foreign), model, X)


def test_queries_and_keys_go_together_and_are_silenced_where_they_are_made() -> None:
    model = BLOCKS["OneHead"]()
    found = feasible(model, X)
    meeting = group_of(found, "query")
    assert meeting.layers("produce") == ("query", "key")
    assert meeting.multiplied
    assert not meeting.layers("read")
    assert not group_of(found, "value").multiplied
    scores = score(randomised(model), BATCHES, example_inputs=X)
    assert float(scores.values["query"].min()) > 0  # no layer reads them: gated where they are made


def test_norms_see_only_the_channels_that_stay() -> None:
    """The mean of a LayerNorm changes with every channel: with weights as they are, the masked norm is what is left."""
    model = randomised(BLOCKS["Attention"]())
    found = feasible(model, X)
    proof = prove_randomised(GroupedNetwork(model, found, X), some(found))
    assert proof
    assert proof.conclusive
    groups = feasible(BLOCKS["GroupNormed"](), X)
    assert group_of(groups, "stem").width == 4  # equal places of the two groups of the norm
    assert group_of(groups, "up").layers("pass") == ("depth",)


def test_units_of_a_recurrent_layer_are_the_same_in_all_of_its_layers() -> None:
    found = feasible(BLOCKS["Recurrent"](), X)
    units = group_of(found, "lstm")
    assert (units.width, units.multiplicity) == (6, 4)  # two layers, two directions
    gates = next(s for s in units.slices if s.tensor == "lstm.weight_hh_l0" and s.dim == 0)
    assert gates.index[1].tolist() == [1, 7, 13, 19]
    small = compress(BLOCKS["Recurrent"](), "snapit", BATCHES, 0.4).model
    assert small.lstm.hidden_size == small.lstm.weight_hh_l1_reverse.shape[1] < 6
    small(X[0]).sum().backward()


@pytest.mark.parametrize("name", ["TorchAttention", "Recurrent"])
def test_weights_that_a_function_applies_are_scored_in_closed_form(name: str) -> None:
    """|sum over what reads a node of <W[:, j], dL/dW[:, j]>| / L, computed apart from the tool."""
    model = randomised(BLOCKS[name]()).eval()
    found = structure(model, X)
    scores = score(model, BATCHES)
    loss = nn.functional.cross_entropy(model(BATCHES[0][0]), BATCHES[0][1])
    loss.backward()
    parameters = dict(model.named_parameters())
    for group in found.prunable:
        expected = torch.zeros(group.width, dtype=torch.float64)
        for s in group.slices:
            if s.role == "read":
                w = parameters[s.tensor]
                columns = (w * w.grad).double().movedim(s.dim, 0).flatten(1).sum(1)
                expected += columns[s.index].sum(1)
        torch.testing.assert_close(scores.values[group.name], expected.abs() / loss.item(), rtol=1e-4, atol=1e-7)


def test_scores_per_sample_are_refused_where_a_function_applies_the_weights() -> None:
    with pytest.raises(UnsupportedNetwork, match="a function applies it"):
        score(randomised(BLOCKS["TorchAttention"]()), BATCHES, aggregate="sample")


def test_a_head_that_runs_only_in_training_reads_less_and_works() -> None:
    model = Auxiliary()
    found = feasible(model, X)
    stem = group_of(found, "stem.0")
    assert "aux.fc" in stem.layers("read")
    assert group_of(found, "aux.fc").frozen is not None
    assert "aux.fc" in found.outputs
    small = compress(model, "snapit", BATCHES, 0.5).model
    assert small.aux.fc.in_features < model.aux.fc.in_features
    y, aux = small.train()(X[0])
    (y.sum() + aux.sum()).backward()
    assert small.eval()(X[0]).shape == (2, 5)


def test_a_layer_that_never_runs_is_named() -> None:
    model = BLOCKS["Plain"]()
    model.spare = nn.Linear(3, 4)
    found = feasible(model, X)
    assert group_of(found, "spare").frozen == NOT_IN_EVAL
    assert found.total_nodes == 6 + 8


def test_positions_stay_and_channels_go_through_a_layer_over_positions() -> None:
    found = feasible(BLOCKS["Mixer"](), X)
    assert "positions, not channels" in (group_of(found, "tokens").frozen or "")
    assert group_of(found, "stem").frozen is None


FACTORY = """
from tests.blocks import BLOCKS

def make():
    return BLOCKS["Attention"]()
"""


def test_a_saved_network_remembers_its_heads(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(FACTORY)
    model = randomised(BLOCKS["Attention"]()).eval()
    model.origin = Origin(f"{file}:make", {})
    small = compress(model, "random", None, 0.5, example_inputs=X).model
    assert small.origin.sizes["first.num_heads"] == small.first.num_heads < 3
    for suffix in (".pt", ".safetensors"):
        save(small, tmp_path / f"small{suffix}")
        back = load(tmp_path / f"small{suffix}", network=f"{file}:make").eval()
        assert back.first.num_heads == small.first.num_heads
        torch.testing.assert_close(back(X[0]), small(X[0]))
    raw = torch.load(tmp_path / "small.pt", weights_only=False)
    header = next(name for name, value in raw.items() if isinstance(value, str))
    for wrong in ('"first.num_heads": 99', '"first.no_such": 1', '"first.num_heads": "2"'):
        damaged = {**raw, header: re.sub(r'"first.num_heads": \d', wrong, raw[header])}
        torch.save(damaged, tmp_path / "damaged.pt")
        with pytest.raises(BadInput, match="header is damaged"):
            load(tmp_path / "damaged.pt", network=f"{file}:make")


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm, self.mix = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 8)
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids):
            x = self.table(ids)
            return self.out(self.norm(x + torch.relu(self.mix(x)))).mean(1)

    model, ids = randomised(Tied()), (torch.randint(20, (3, 6)),)
    small = compress(model, "random", None, 0.5, example_inputs=ids).model
    assert small.out.weight is small.table.weight
    assert small.table.embedding_dim == small.norm.normalized_shape[0] == small.mix.in_features == 4


def test_frozen_parameters_stay_frozen() -> None:
    model = BLOCKS["TorchAttention"]()
    for parameter in model.attention.parameters():
        parameter.requires_grad_(False)
    small = compress(copy.deepcopy(model), "random", None, 0.5, example_inputs=X).model
    assert not any(p.requires_grad for p in small.attention.parameters())
    assert all(p.requires_grad for p in small.mlp.parameters())


class Nested(nn.Module):
    """Something of its own, in training only."""

    def forward(self, x):
        return x.flip(1) if self.training else x


def test_a_branch_of_train_mode_that_mixes_channels_otherwise_stays_whole() -> None:
    model = BLOCKS["Plain"]()
    model.net.insert(3, Nested())
    found = feasible(model, X)
    assert "changes the result" in (group_of(found, "net.0.0").frozen or "")
    assert group_of(found, "net.4.0").frozen is None


def test_noise_of_train_mode_is_no_branch() -> None:
    class Noisy(nn.Module):
        def forward(self, x):
            x = nn.functional.dropout(x, 0.5, self.training)
            return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5) if self.training else x

    model = BLOCKS["Plain"]()
    model.net.insert(3, Noisy())
    assert feasible(model, X).open_share == 1.0


def test_a_buffer_that_no_file_keeps_freezes_its_nodes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.register_buffer("gain", torch.rand(6, 1, 1), persistent=False)

        def forward(self, x):
            return self.conv(x) * self.gain

    whole = nn.Sequential(Scaled(), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten())
    found = feasible(whole, X)
    assert "no file keeps" in (group_of(found, "0.conv").frozen or "")
    assert group_of(found, "2").frozen is None


def test_weights_of_an_attention_that_nobody_reads_freeze_nothing() -> None:
    class Averaged(BLOCKS["TorchAttention"]):  # type: ignore[misc,name-defined]
        def mixed(self, x):
            return x + self.attention(x, x, x)[0]

    assert feasible(Averaged(), X).open_share > 0.7


def test_a_list_of_sizes_is_kept_right_and_scored() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes, self.conv = [4, 4, 2], nn.Conv2d(3, 10, 3, padding=1)
            self.a, self.b, self.fc = nn.Conv2d(4, 6, 1), nn.Conv2d(2, 6, 1), nn.Linear(6, 5)

        def forward(self, x):
            x, y, z = self.conv(x).split(self.sizes, 1)
            return self.fc((self.a(x + y) + self.b(z)).relu().mean((2, 3)))

    small = compress(Sized(), "snapit", BATCHES, 0.4).model
    assert sum(small.sizes) == small.conv.out_channels < 10
    assert small.sizes[0] == small.sizes[1] == small.a.in_channels


def test_a_state_of_a_remembered_size_goes_with_the_units() -> None:
    class Stated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.units, self.cell, self.fc = 8, nn.GRU(24, 8, batch_first=True), nn.Linear(8, 5)

        def forward(self, x):
            x = x.transpose(1, 2).flatten(2)
            return self.fc(self.cell(x, torch.zeros(1, len(x), self.units))[0].mean(1))

    small = compress(Stated(), "random", None, 0.5, example_inputs=X).model
    assert small.units == small.cell.hidden_size == 4


def test_errors_of_any_kind_freeze_what_they_forbid() -> None:
    class Picky(nn.Module):
        def forward(self, x):
            return x * {6: 1.0}[x.shape[1]]

    model = BLOCKS["Plain"]()
    model.net.insert(3, Picky())
    found = feasible(model, X)
    assert "does not run" in (group_of(found, "net.0.0").frozen or "")
    assert group_of(found, "net.4.0").frozen is None


def test_a_part_that_is_used_without_being_called_remembers_its_shape() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.shape = nn.Parameter(torch.randn(9, 3)), (16, 16, 3)
            self.register_buffer("places", torch.randint(9, (256,)))

        def bias(self):
            return self.table[self.places].view(self.shape).permute(2, 0, 1)

    class Biased(type(BLOCKS["Attention"]().first)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.relative = Table()
            del self.bias

        @property
        def bias(self):
            return self.relative.bias()

    class Model(BLOCKS["Attention"]):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Biased(), Biased()

    small = compress(Model(), "random", None, 0.5, example_inputs=X).model
    assert small.first.relative.shape == (16, 16, small.first.num_heads)
    assert small.first.relative.table.shape == (9, small.first.num_heads)


def test_a_branch_that_needs_its_norms_in_train_mode_is_no_traceback() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x):
            if self.training and not self.norm.training:
                raise RuntimeError("the norm must learn, too")
            return self.norm(x)

    model = BLOCKS["Plain"]()
    model.net.insert(3, Both())
    assert feasible(model, X).open_share == 1.0
