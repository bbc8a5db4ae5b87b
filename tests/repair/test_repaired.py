"""What a repair gives back: all of it where that is possible, and never less than was there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.coupling.validate import feasible
from compressor.errors import UnsupportedNetwork
from compressor.model.observe import outputs_of
from compressor.proof.prove import randomised
from compressor.repair import Repair, repaired
from compressor.surgery.shrink import shrink, tensors_of
from compressor.types.structure import Group
from tests.blocks import BLOCKS, same_state

OVER_CHANNELS = {
    ("Attention", "stem"), ("OneHead", "stem"), ("Mixer", "stem"), ("GroupNormed", "stem"), ("GroupNormed", "up"),
    ("TorchAttention", "stem"), ("SizesFromInput", "stem"),
}  # fmt: skip
"""A norm over channels sees how many there are: what it then gives is no linear function of what it gave."""

NOTHING_TO_TRY = ("GroupNormed", "Mixer", "OneHead", "Recurrent", "Split")


def cut(model: nn.Module, gone: dict[str, list[int]] | None = None) -> tuple[nn.Module, dict[tuple[str, int], Tensor]]:
    """The network without some nodes, and what stays of its tensors."""
    found = feasible(model, (torch.randn(2, 3, 8, 8),))
    kept = found.keep_all()
    for name, nodes in (gone or {}).items():
        kept[name] = torch.tensor([n for n in kept[name].tolist() if n not in nodes])
    return shrink(model, found, kept), found.kept_entries(kept)


def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    pairs = zip(outputs_of(one, (x,)), outputs_of(other, (x,)), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def doubled(model: nn.Module, group: Group) -> nn.Module:
    """The network in which node 1 of a group is a copy of node 0: whatever makes them, shifts and scales them is the same."""
    twin = copy.deepcopy(model)
    there = tensors_of(twin)
    with torch.no_grad():
        for s in group.slices:
            if s.role in ("produce", "pass", "carry"):
                rows = there[s.tensor].movedim(s.dim, 0)
                rows[s.index[1]] = rows[s.index[0]].clone()
    return twin


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_a_doubled_node_that_went_is_made_up_for(name: str) -> None:
    """The case with a known answer, on every kind of coupling: who read the copy reads the original instead."""
    torch.manual_seed(0)
    model, x, seen = randomised(BLOCKS[name]()).eval(), torch.randn(160, 3, 8, 8), 0
    found = feasible(model, (x[:2],))
    for group in found.prunable:
        recurrent = any(".units_" in s.tensor or "lstm" in s.tensor or "gru" in s.tensor for s in group.slices)
        if group.width < 2 or group.multiplied or recurrent or (name, group.name) in OVER_CHANNELS:
            continue
        twin = doubled(model, group)
        small, stay = cut(twin, {group.name: [1]})
        fixed, record = repaired(twin, small, stay, [(x,)], "least-squares", 160)
        assert distance(fixed, twin, x) < 1e-4 < distance(small, twin, x), (group.name, record)
        assert record.kept.startswith("least squares")
        seen += 1
    assert seen or name in NOTHING_TO_TRY


def test_nothing_removed_changes_nothing(block_network) -> None:
    small, stay = cut(block_network)
    x = torch.randn(64, 3, 8, 8)
    for how in ("norms", "least-squares"):
        fixed, _ = repaired(block_network, small, stay, [(x,)], how, 64)
        assert distance(fixed, block_network, x) < 1e-5


class Net(nn.Module):
    """Two convolutions with norms, and a classifier; channels that say much of each other, as those of trained networks do."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.two, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)
        for layer in (self.one, self.two):
            few = torch.randn(width, 3) @ torch.randn(3, layer.weight[0].numel()) / 10
            layer.weight.data = (few + 0.1 * layer.weight.flatten(1)).reshape(layer.weight.shape)

    def forward(self, x):
        x = torch.relu(self.norm1(self.one(x)))
        return self.head(torch.relu(self.norm2(self.two(x))).mean((2, 3)))


def seen(model: nn.Module, x: Tensor) -> nn.Module:
    """The network whose norms know these images."""
    model.train()
    with torch.no_grad():
        for _ in range(100):
            model(x)
    return model.eval()


def halves() -> tuple[nn.Module, nn.Module, dict[tuple[str, int], Tensor], Tensor]:
    x = torch.randn(256, 3, 8, 8)
    model = seen(Net(), x)
    return (model, *cut(model, {"one": [*range(5)], "two": [*range(5)]}), x)


def test_refitted_is_nearer_than_norms_and_norms_than_nothing() -> None:
    model, small, stay, x = halves()
    before = copy.deepcopy(small)
    norms, of_norms = repaired(model, small, stay, [(x,)], "norms", 256)
    fixed, record = repaired(model, small, stay, [(x,)], "least-squares", 256)
    assert same_state(small, before), "the network that is given stays as it is"
    assert of_norms.kept == "norms"
    assert record.distance["as pruned"] > record.distance["norms"] > record.distance[record.kept]
    assert record.distance[record.kept] == min(record.distance.values())
    fresh = torch.randn(512, 3, 8, 8)
    apart = [float((m(fresh) - model(fresh)).detach().square().mean()) for m in (small, norms, fixed)]
    assert apart[0] > apart[1] > apart[2], "on images that it never saw, too"
    assert [layer.weight for layer in record.layers] == ["one.weight", "two.weight", "head.weight"]
    assert (record.samples, record.aside) == (256, 32)


def test_the_same_seed_gives_the_same_weights() -> None:
    model, small, stay, x = halves()
    one, other = (repaired(model, small, stay, [(x,)], "least-squares", 256, seed=3)[0] for _ in range(2))
    assert same_state(one, other)


def test_norms_are_those_of_the_smaller_network() -> None:
    """Norms corrected on the very images that the dense ones know give what re-estimating them gives."""
    model, small, stay, x = halves()
    fixed, _ = repaired(model, small, stay, [(x,)], "norms", 256)
    shown = x[:224]  # the rest is kept aside
    again = copy.deepcopy(small).train()
    for norm in (again.norm1, again.norm2):
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        again(shown)
    for name in ("norm1", "norm2"):
        was, now = getattr(again, name), getattr(fixed, name)
        assert torch.allclose(was.running_mean, now.running_mean, atol=0.05)
        assert torch.allclose(was.running_var, now.running_var, rtol=0.2)


class Shared(nn.Module):
    """One convolution that runs twice, and a layer with a bias that no norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.head(x.mean((2, 3)))


def test_a_layer_that_runs_twice_is_refitted_to_both() -> None:
    model, x = Shared().eval(), torch.randn(160, 3, 8, 8)
    found = feasible(model, (x[:2],))
    [group] = [g for g in found.prunable if "stem" in g.layers("produce")]
    twin = doubled(model, group)
    small, stay = cut(twin, {group.name: [1]})
    fixed, record = repaired(twin, small, stay, [(x,)], "least-squares", 160)
    assert distance(fixed, twin, x) < 1e-4
    assert {layer.weight for layer in record.layers} == {"stem.weight", "twice.weight", "head.weight"}


class TwoNames(nn.Module):
    """A linear layer whose weight an embedding has, too, and a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.table, self.out = nn.Conv2d(3, 12, 8), nn.Embedding(5, 12), nn.Linear(12, 5, bias=False)
        self.out.weight = self.table.weight
        self.again = self.stem

    def forward(self, x):
        shifted = self.table(torch.zeros(len(x), dtype=torch.long, device=x.device))
        return self.out(torch.relu(self.again(x)).flatten(1) + shifted)


def test_a_weight_of_two_names_is_one() -> None:
    model, x = TwoNames().eval(), torch.randn(640, 3, 8, 8)
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.stem.weight[:4] = 0  # as if something were missing in front of it
    fixed, record = repaired(model, small, {}, [(x,)], "least-squares", 640)
    assert fixed.out.weight is fixed.table.weight
    assert torch.equal(fixed.table.weight, small.table.weight), "what an embedding reads stays"
    assert [layer.weight for layer in record.layers] == ["stem.weight"]
    assert distance(fixed, model, x) < 1e-4


class Several(nn.Module):
    """Two outputs, one of them a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x):
        y = self.net(x)
        return y, y.square().mean()


def test_outputs_without_samples_and_a_single_sample_left_over_do_no_harm() -> None:
    model, small, stay, x = halves()
    one, other = Several().eval(), Several().eval()
    one.net, other.net = model, small
    named = {(f"net.{name}", dim): indices for (name, dim), indices in stay.items()}
    fixed, record = repaired(one, other, named, [(x,), (x[:37],)], "least-squares", 293)
    assert record.samples == 293
    assert record.kept.startswith("least squares")
    assert distance(fixed.net, model, x) < distance(small, model, x)


class Upwards(nn.Module):
    """A grouped transposed convolution between layers that lose nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ConvTranspose2d(8, 8, 2, 2, groups=2),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x):
        return self.head(torch.relu(self.up(torch.relu(self.stem(x))))).mean((2, 3))


def test_grouped_transposed_convolutions_lose_inputs_and_outputs() -> None:
    model, x = Upwards().eval(), torch.randn(96, 3, 8, 8)
    found = feasible(model, (x[:2],))
    for group in found.prunable:
        twin = doubled(model, group)
        small, stay = cut(twin, {group.name: [1]})
        fixed, record = repaired(twin, small, stay, [(x,)], "least-squares", 96)
        assert distance(fixed, twin, x) < 1e-4, (group.name, record)


class Noisy(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_a_random_forward_pass_is_refused() -> None:
    model = Noisy().eval()
    with pytest.raises(UnsupportedNetwork, match="forward pass is random"):
        repaired(model, model, {}, [(torch.randn(32, 3, 8, 8),)], "norms", 32)


def test_too_few_samples_correct_norms_only_and_say_so() -> None:
    model, small, stay, x = halves()
    _, record = repaired(model, small, stay, [(x[:4],)], "least-squares", 256)
    assert "too few to refit" in record.why
    assert record.kept in ("norms", "as pruned")
    assert not record.layers


def test_samples_of_another_shape_are_left_out_and_no_more_seen_than_asked_for() -> None:
    model, small, stay, x = halves()
    _, record = repaired(model, small, stay, [(x[:100],), (torch.randn(50, 3, 9, 9),), (x[100:],)], "least-squares", 150)
    assert record.samples == 150


class Choosing(nn.Module):
    """A network that torch.export cannot trace: it asks a value which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x if float(x.sum()) > -1e9 else -x)


def test_what_cannot_be_exported_gets_its_norms_and_the_reason() -> None:
    x = torch.randn(64, 3, 8, 8)
    inner = seen(Net(), x)
    model = Choosing().eval()
    model.net = inner
    small = Choosing().eval()
    small.net, stay = cut(inner, {"one": [*range(5)]})
    stay = {(f"net.{name}", dim): indices for (name, dim), indices in stay.items()}
    _, record = repaired(model, small, stay, [(x,)], "least-squares", 64)
    assert "cannot be refitted" in record.why
    assert set(record.distance) == {"as pruned", "norms"}


def test_a_record_is_plain_data() -> None:
    model, small, stay, x = halves()
    record = repaired(model, small, stay, [(x,)], "least-squares", 64)[1]
    assert isinstance(record, Repair)
    assert record.as_dict()["layers"][0]["weight"] == "one.weight"
