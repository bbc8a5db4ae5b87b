"""Single weights: exact selection, masks in plans, paths through what is left, dead nodes, and the whole way to a file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor import compress, load, networks, save
from compressor.coupling import structure
from compressor.errors import BadInput, UnreachableSparsity, WrongUsage
from compressor.method import method_named, summaries
from compressor.model.observe import outputs_of
from compressor.model.weights import maskable, masked
from compressor.options import options_of
from compressor.proof.reference import over_channels
from compressor.pruning.replay import apply_plan
from compressor.selection.select import per_part, select_weights
from compressor.surgery.dead_nodes import removable, sync_constant_running_means, without_dead
from compressor.surgery.network import GroupedNetwork
from compressor.surgery.paths import paths
from compressor.types.mask import Mask
from compressor.types.plan import Plan
from compressor.types.scores import Scores
from tests.blocks import BLOCKS
from tests.command import run

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.tensor([0, 1, 2, 0]))]


def weight_methods() -> list[tuple[str, dict]]:
    """Every discovered method that removes weights, with the options that make it do so."""
    found = []
    for name in summaries():
        method = method_named(name)
        units = next((o.choices for o in options_of(method) if o.name == "unit"), ())
        if "weight" in units or method().unit == "weight":
            found.append((name, {"unit": "weight"} if units else {}))
    return found


def random_masks(model: nn.Module, share: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=generator) >= share for name, w in maskable(model).items()}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    target=st.floats(0, 0.95),
    gone=st.floats(0, 0.6),
    few=st.booleans(),
    seed=st.integers(0, 99),
)
def test_selection_of_weights_is_exact(sizes: list[int], target: float, gone: float, few: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = [f"w{n}" for n in range(len(sizes))]
    values = {n: torch.rand(size, generator=generator) for n, size in zip(names, sizes, strict=True)}
    if few:  # many equal scores
        values = {n: (3 * v).round() for n, v in values.items()}
    kept = {n: torch.rand(size, generator=generator) >= gone for n, size in zip(names, sizes, strict=True)}
    total = sum(sizes)
    before = sum(int(k.sum()) for k in kept.values())
    new, tie = select_weights(Scores(values, unit="weight"), kept, total, target)
    left = sum(int(k.sum()) for k in new.values())
    assert left == min(before, total - round(target * total))
    flat_old, flat_new, flat = (torch.cat([d[n] for n in names]) for d in (kept, new, values))
    assert bool((flat_old | ~flat_new).all())
    removed = flat_old & ~flat_new
    if bool(removed.any()) and bool(flat_new.any()):
        cut = float(flat[removed].max())
        assert cut <= float(flat[flat_new].min())
        stay, go = (torch.where(part & (flat == cut))[0] for part in (flat_new, removed))
        assert tie == (len(stay) > 0)
        assert len(stay) == 0 or int(stay.max()) < int(go.min())  # of equal ones, those at the end go


def test_a_sparsity_that_leaves_too_little_names_the_highest() -> None:
    scores = Scores({"a": torch.ones(4)}, unit="weight")
    with pytest.raises(UnreachableSparsity, match=r"4 stay; the highest is 0\.5"):
        select_weights(scores, {"a": torch.ones(4, dtype=torch.bool), "b": torch.ones(4, dtype=torch.bool)}, 8, 0.75)


def test_places_within_a_part_follow_the_scores_and_break_ties_from_the_end() -> None:
    scores = per_part(Scores({"a": torch.tensor([5.0, 1.0, 1.0, 3.0])}))
    assert scores.values["a"].tolist() == [0.875, 0.375, 0.125, 0.625]


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_masks_come_back_from_their_text(shape: list[int], seed: int) -> None:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    mask = Mask.of(kept)
    assert torch.equal(mask.tensor(), kept)
    assert Mask.from_json(json.loads(json.dumps(mask.as_json()))) == mask


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [3, 0]},
        {"shape": [10**6, 10**6]},
        {"shape": [True]},
        {"shape": "x"},
        {"bits": "%%"},
        {"bits": ""},
        {"shape": [99]},
    ],
)
def test_damaged_masks_are_refused(damage: dict) -> None:
    plan = Plan({"a": 2}, "x").with_masks({"a.weight": torch.ones(2, 2, dtype=torch.bool)})
    raw = json.loads(plan.to_json())
    assert Plan.from_json(json.dumps(raw)) == plan
    raw["masks"]["a.weight"] |= damage
    with pytest.raises(BadInput, match="not a plan"):
        Plan.from_json(json.dumps(raw))


@pytest.mark.parametrize("seed", range(8))
def test_paths_are_those_of_the_matrix_product(seed: int) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    kept = random_masks(model, 0.75, seed)
    found = paths(model, structure(model, (torch.randn(2, 5),)), kept, ())
    a, b, c = (kept[f"{n}.weight"].double() for n in (0, 2, 4))
    first, second = a.sum(1) > 0, b @ a.sum(1) > 0
    assert torch.equal(found.reachable["0"], first)
    assert torch.equal(found.reachable["2"], second)
    assert torch.equal(found.observable["2"], c.sum(0) > 0)
    assert torch.equal(found.observable["0"], c.sum(0) @ b > 0)
    on_a_path = [
        a * (c.sum(0) @ b)[:, None],
        b * c.sum(0)[:, None] * a.sum(1)[None],
        c * (b @ a.sum(1))[None],
    ]
    assert found.effective == sum(int((m > 0).sum()) for m in on_a_path)
    assert found.silent == int((c @ b @ a.sum(1) == 0).sum())
    assert found.connected == (found.silent < 3)


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_without_dead_nodes_every_block_computes_the_same(name: str, share: float) -> None:
    torch.manual_seed(0)
    model, x = BLOCKS[name]().double(), X.double()
    found = structure(model, (x,))
    for seed in range(3):
        kept = random_masks(model, share, seed)
        whole, ways = masked(model, kept), paths(model, found, kept, over_channels(model, (x,)))
        network = GroupedNetwork(whole, found, (x,))
        small = without_dead(network, ways, removable(network, ways))
        other = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        for one, two in zip(outputs_of(whole, (other,)), outputs_of(small, (other,)), strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def test_a_dead_nodes_constant_moves_where_it_can() -> None:
    # conv -> relu -> unpadded conv with bias -> relu -> padded conv without: the first constant moves, the second cannot
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.copy_(torch.rand_like(layer.bias) + 0.5)
    found = structure(model, (X,))
    kept = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in maskable(model).items()}
    kept["0.weight"][:2] = False
    kept["2.weight"][1] = False
    kept["4.weight"][:, 4] = False
    whole, ways = masked(model, kept), paths(model, found, kept, ())
    network = GroupedNetwork(whole, found, (X,))
    stay = removable(network, ways)
    assert stay["0"].tolist() == [2, 3, 4, 5]
    assert stay["2"].tolist() == [0, 1, 2, 3]  # 1 says a constant to a padded convolution; nobody hears 4
    small = without_dead(network, ways, stay)
    torch.testing.assert_close(small(X), whole(X))
    assert not torch.equal(small[2].bias, whole[2].bias[:4])


@pytest.mark.parametrize(("name", "options"), weight_methods())
def test_every_weight_method_reaches_the_sparsity_exactly(name: str, options: dict) -> None:
    torch.manual_seed(0)
    model = networks.build("lenet5", data="digits")
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(16, 1, 28, 28), torch.randint(10, (16,))) for _ in range(2)]
    result = compress(model, name, batches, 0.8, **options, allow_disconnect=True)
    weights = result.summary.weights
    assert weights.left == weights.total - round(0.8 * weights.total)
    assert sum(int(mask.tensor().sum()) for mask in result.plan.masks.values()) == weights.left
    assert weights.effective <= weights.left
    assert sum(int((w != 0).sum()) for w in maskable(result.model).values()) <= weights.left
    assert all(result.summary.proofs)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    again = apply_plan(Plan.from_json(result.plan.to_json()), model, batches[0][0])
    assert all(torch.equal(t, result.model.state_dict()[n]) for n, t in again.state_dict().items())


def test_the_blocks_lose_weights_too(block_network: nn.Module) -> None:
    result = compress(block_network, "random", BATCHES, 0.7, unit="weight", scope="global", allow_disconnect=True)
    assert result.summary.weights.reached == pytest.approx(0.7, abs=1e-2)


def test_a_masked_network_is_saved_with_its_masks(tmp_path: Path) -> None:
    model = networks.build("lenet5", data="digits")
    result = compress(model, "magnitude", None, 0.9, unit="weight", example_inputs=torch.randn(4, 1, 28, 28))
    for suffix in (".safetensors", ".pt"):
        save(result.model, tmp_path / f"small{suffix}")
        back = load(tmp_path / f"small{suffix}")
        assert back.origin.plan == result.plan
        assert all(torch.equal(t, result.model.state_dict()[n]) for n, t in back.state_dict().items())


STEPS = {
    "nodes, then weights": (("l1-filters", 0.4), ("magnitude", 0.8)),
    "weights, then nodes": (("magnitude", 0.8), ("l1-filters", 0.4)),
    "weights twice": (("magnitude", 0.8), ("magnitude", 0.95)),
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_plans_with_masks_are_joined(steps: tuple[tuple[str, float], ...]) -> None:
    x = torch.randn(8, 1, 28, 28)
    dense = networks.build("lenet5").eval()
    first, second = None, None
    for name, share in steps:
        unit = {"unit": "weight"} if name == "magnitude" else {}
        first, second = second, compress(second.model if second else dense, name, None, share, example_inputs=x, **unit)
    with pytest.raises(BadInput, match="need the original network's structure"):
        first.plan.then(second.plan)
    joined = first.plan.then(second.plan, structure(dense, (x,)))
    assert len(joined.events) == 2
    again = apply_plan(Plan.from_json(joined.to_json()), dense, x)
    assert torch.allclose(again(x), second.model(x), atol=1e-6)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in second.model.state_dict().items()}
    for one, other in zip(again.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one == 0, other == 0) or one.dim() == 1
    with pytest.raises(BadInput, match="does not start from"):
        second.plan.then(first.plan, structure(dense, (x,)))


def test_layers_that_stay_whole_keep_their_weights() -> None:
    model = networks.build("lenet5", data="digits")
    result = compress(
        model, "magnitude", None, 0.5, unit="weight", example_inputs=torch.randn(4, 1, 28, 28), freeze=["features.*"]
    )
    for name, (dense, left) in result.summary.weights.by_layer.items():
        assert (left == dense) == name.startswith("features")
    assert result.summary.weights.reached == pytest.approx(0.5, abs=1e-5)


def test_what_disconnects_the_output_is_refused_unless_allowed() -> None:
    model = networks.build("lenet5", data="digits")
    example = torch.randn(4, 1, 28, 28)
    with pytest.raises(UnreachableSparsity, match=r"no longer depends on the input.*allow_disconnect=True"):
        compress(model, "magnitude", None, 0.9999, unit="weight", example_inputs=example)
    result = compress(model, "magnitude", None, 0.9999, unit="weight", example_inputs=example, allow_disconnect=True)
    assert result.summary.disconnected
    assert result.summary.weights.silent == 10


def test_less_than_a_weight_for_each_layer_is_refused() -> None:
    model = networks.build("lenet5", data="digits")
    with pytest.raises(UnreachableSparsity, match="leaves 3 weights for 5 layers; ask for less"):
        compress(model, "magnitude", None, 0.99998, unit="weight", example_inputs=torch.randn(4, 1, 28, 28))


def test_a_method_without_need_of_data_says_so() -> None:
    model = networks.build("lenet5", data="digits")
    batches = [(torch.randn(4, 1, 28, 28), torch.randint(10, (4,)))]
    with_data = compress(model, "synflow", batches, 0.5, steps=2)
    without = compress(model, "synflow", None, 0.5, steps=2, example_inputs=batches[0][0])
    assert with_data.plan == without.plan
    assert any("need no data" in note for note in with_data.summary.notes)
    assert not any("need no data" in note for note in without.summary.notes)


def test_weights_know_one_budget_only() -> None:
    model = networks.build("lenet5", data="digits")
    with pytest.raises(WrongUsage, match="is for methods that remove whole nodes, this one removes weights"):
        compress(model, "magnitude", None, 0.5, unit="weight", example_inputs=torch.randn(4, 1, 28, 28), round_to=8)


@pytest.mark.parametrize(("method", "unit"), [("snap", "node"), ("snip", "weight")])
def test_controls_keep_the_numbers_and_change_the_choice(method: str, unit: str) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(16, 1, 28, 28), torch.randint(10, (16,)))]
    model = networks.build("lenet5", data="digits")

    def run(ablation):
        return compress(model, method, batches, 0.6, ablation=ablation, seed=3, allow_disconnect=unit == "weight")

    plain, shuffled, inverted, fresh = (run(a) for a in (None, "shuffle", "invert", "reinit"))
    if unit == "weight":
        left = [{n: int(m.tensor().sum()) for n, m in r.plan.masks.items()} for r in (plain, shuffled, inverted, fresh)]
        chosen = [r.plan.masks for r in (plain, shuffled, inverted, fresh)]
    else:
        left = [{n: len(k) for n, k in r.plan.kept.items()} for r in (plain, shuffled, inverted, fresh)]
        chosen = [r.plan.events[-1].kept for r in (plain, shuffled, inverted, fresh)]
    assert left[0] == left[1] == left[3]
    assert sum(left[2].values()) == sum(left[0].values())
    assert chosen[0] == chosen[3]
    assert chosen[0] not in (chosen[1], chosen[2])
    assert run("shuffle").plan == shuffled.plan
    one, other = plain.model.state_dict(), fresh.model.state_dict()
    assert one.keys() == other.keys()
    assert all(one[n].shape == other[n].shape for n in one)
    assert not torch.equal(one["features.4.weight"], other["features.4.weight"])
    if unit == "weight":
        assert torch.equal(one["features.4.weight"] == 0, other["features.4.weight"] == 0)
    assert fresh.summary.ablation == "reinit"


OWN = '''"""Last: keep the weights that come last."""

from dataclasses import dataclass

import torch

from compressor import Method
from compressor.types import Scores
from compressor.model.weights import maskable


@dataclass(frozen=True, kw_only=True)
class Last(Method):
    """Score a weight by its position."""

    unit = "weight"
    uses_data = False

    def score(self, model, structure, objective):
        values = {n: torch.arange(w.numel()).reshape(w.shape) / w.numel() for n, w in maskable(model).items()}
        return Scores(values, unit="weight")
'''


def test_a_users_own_weight_method_runs_from_the_command_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "last.py").write_text(OWN)
    monkeypatch.setenv("COMPRESSOR_METHODS", str(tmp_path / "methods"))
    save(networks.build("lenet5", data="digits"), tmp_path / "net.pt")
    outputs = ("-o", "small.onnx", "-o", "small.safetensors", "--plots", "pictures", "--json")
    done = run("last", "net.pt", "--sparsity", "0.5", *outputs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["masks"]["left"] == told["masks"]["total"] - round(0.5 * told["masks"]["total"])
    assert all(proof["equivalent"] for proof in told["equivalence"])
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["first_layer.svg", "remaining.svg", "scores.svg"]
    assert all("<svg" in p.read_text() for p in (tmp_path / "pictures").iterdir())
    small = load(tmp_path / "small.safetensors")
    rows = torch.arange(150).reshape(6, 25) >= 75
    assert torch.equal(small.origin.plan.masks["features.0.weight"].tensor().reshape(6, 25), rows)


@pytest.mark.parametrize("network", ["lenet5", pytest.param("mlp5", marks=pytest.mark.slow)])
def test_synflow_keeps_its_weights_on_paths_where_snip_collapses(network: str) -> None:
    model = networks.build(network, data="digits")
    x = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    batches = [(x, torch.arange(8))]
    flow, snip = (compress(model, name, batches, 0.9998, allow_disconnect=True).summary.weights for name in ("synflow", "snip"))
    assert flow.left == snip.left
    assert flow.effective >= 0.98 * flow.left  # sums of floats decide between near ties, so a few paths end: three of 239 seen
    assert all(left for _, left in flow.by_layer.values())
    assert snip.effective == 0
    assert snip.silent == snip.outputs == 10
    assert not all(left for _, left in snip.by_layer.values())


class FedFromElsewhere(nn.Module):
    """x + c(x): what c gives is not all that arrives there; nodes of m are silent on ordinary samples, and only on those."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.m, self.h, self.k = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(3, 5)
        with torch.no_grad():
            self.m.bias[:4] = -20

    def forward(self, x):
        z = x + self.c(x)
        return self.h(self.m(z).relu().mean((2, 3))) + self.k(x.mean((2, 3)))


class OwnNorm(nn.Module):
    """A norm over channels that is no module of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class Tied(nn.Module):
    """A head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.f, self.h = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 20, bias=False)
        self.h.weight = self.e.weight

    def forward(self, x):
        return self.h(self.f(self.e(x)).relu().mean(1))


def test_a_node_that_nothing_arrives_at_says_the_same_in_eval_mode_as_in_training() -> None:
    """Its norm's shift: with Adam's L2 its bias moves, and a running mean that lags behind is divided by sqrt(1e-5)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5), nn.BatchNorm1d(5),
        nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[4]):
            layer.bias.add_(1)
    found = structure(model, (X,))
    kept = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in maskable(model).items()}
    kept["0.weight"][1] = False
    kept["4.weight"][3] = False
    whole = masked(model, kept).train()
    optimizer = torch.optim.Adam(whole.parameters(), 0.01, weight_decay=1e-4)
    for _ in range(150):
        x, y = torch.randn(16, 3, 8, 8), torch.randint(2, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(whole(x), y).backward()
        for name, mask in kept.items():
            whole.get_parameter(name).grad.mul_(mask)
        optimizer.step()

    def strays() -> list[float]:
        """How far from their shifts the dead nodes are."""
        with torch.no_grad():
            first = whole[1](whole[0](X))[:, 1] - whole[1].bias[1]
            second = whole[5](whole[4](whole[3](whole[2](whole[1](whole[0](X))))))[:, 3] - whole[5].bias[3]
        return [first.abs().max().item(), second.abs().max().item()]

    assert max(strays()) < 1e-3
    means = [whole[i].running_mean.clone() for i in (1, 5)]
    whole.eval()
    assert min(strays()) > 0.01
    ways = paths(whole, found, kept, ())
    sync_constant_running_means(GroupedNetwork(whole, found, (X,)), ways.reachable)
    assert max(strays()) < 1e-6
    for before, i, others in ((means[0], 1, [0, 2, 3]), (means[1], 5, [0, 1, 2, 4])):
        assert torch.equal(whole[i].running_mean[others], before[others])


def test_what_is_fed_from_elsewhere_is_not_dead() -> None:
    torch.manual_seed(0)
    model = FedFromElsewhere()
    found = structure(model, (X,))
    kept = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in maskable(model).items()}
    kept["c.weight"][:] = False
    whole = masked(model, kept)
    ways = paths(model, found, kept, over_channels(model, (X,)))
    assert bool(ways.reachable["m"].all())
    assert ways.silent == 0
    network = GroupedNetwork(whole, found, (X,))
    small = without_dead(network, ways, removable(network, ways))
    torch.testing.assert_close(small(20 * X), whole(20 * X))


def test_a_norm_over_channels_is_known_by_what_it_calls() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), OwnNorm(10), nn.Linear(10, 4))
    mixed = over_channels(model, (X,))
    assert mixed == {"2.weight", "2.bias"}
    kept = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in maskable(model).items()}
    kept["3.weight"][:, :5] = False
    ways = paths(model, structure(model, (X,)), kept, mixed)
    assert not bool(ways.dead("1").any())


def test_shared_weights_get_through() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randint(0, 20, (6, 4))
    batches = [(x, torch.randint(0, 20, (6,)))]
    result = compress(model, "snip", batches, 0.5)
    assert result.summary.weights.silent == 0
    assert torch.equal(result.model.h.weight, result.model.e.weight)


def test_what_was_zero_before_counts_as_removed() -> None:
    model = networks.build("lenet5", data="digits")
    example = torch.randn(4, 1, 28, 28)
    first = compress(model, "magnitude", None, 0.6, unit="weight", example_inputs=example)
    again = compress(first.model, "magnitude", None, 0.8, unit="weight", example_inputs=example)
    weights = again.summary.weights
    assert sum(int((w != 0).sum()) for w in maskable(again.model).values()) <= weights.left
    assert weights.left == weights.total - round(0.8 * weights.total)
    assert any("were zero before" in note for note in again.summary.notes)
    with pytest.raises(BadInput, match="not more than what is zero already"):
        compress(first.model, "magnitude", None, 0.3, unit="weight", example_inputs=example)


def test_a_plan_replays_on_weights_whose_constants_cannot_move() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)
    )
    with torch.no_grad():
        model[0].weight[:2] = 1e-6
        model[0].bias.zero_()
    result = compress(model, "magnitude", None, 0.2, unit="weight", example_inputs=X, freeze=["4"])
    assert len(result.plan.kept["0"]) < 8  # nothing arrives at some, and they say nothing
    with torch.no_grad():
        model[0].bias.fill_(0.1)
    assert apply_plan(result.plan, model, X)[0].out_channels == 8


def test_the_output_layer_is_held_and_the_floor_is_kept() -> None:
    model = networks.build("mlp5", data="digits")
    example = torch.randn(4, 1, 28, 28)
    result = compress(
        model, "random", None, 0.99, unit="weight", scope="global", example_inputs=example, freeze=["17"], floor=500
    )
    assert result.summary.weights.by_layer["17.weight"] == (5120, 5120)
    assert all(len(kept) >= 500 for kept in result.plan.kept.values())
    only = compress(model, "magnitude", None, 0.1, unit="weight", example_inputs=example, only=["1"])
    assert [left < dense for dense, left in only.summary.weights.by_layer.values()] == [True, False, False, False, False]


@pytest.mark.parametrize(("method", "option"), [("obd", "probes"), ("synflow", "steps"), ("snipit", "steps")])
def test_options_have_a_least_value(method: str, option: str) -> None:
    with pytest.raises(WrongUsage, match=f"{option}=-1.*at least"):
        compress(networks.build("lenet5"), method, None, 0.5, example_inputs=torch.randn(4, 1, 28, 28), **{option: -1})
