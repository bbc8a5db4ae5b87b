"""The Python API on real digits and on networks nobody here wrote."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor import Plan, apply_plan, compress, networks, score
from compressor.errors import BadInput, NotEquivalent, UnreachableSparsity, UnsupportedNetwork, WrongUsage
from compressor.model.origin import origin_of
from compressor.objective.calibrate import is_fresh
from tests.blocks import BLOCKS, Stubborn


def widths(model: nn.Module) -> list[int]:
    return [m.weight.shape[0] for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_the_main_job_in_python(lenet5, digits) -> None:
    before = {k: v.clone() for k, v in lenet5.state_dict().items()}
    result = compress(lenet5, "snapit", digits, 0.93)
    assert abs(result.summary.reached - 0.93) * 226 < 1
    assert sum(widths(result.model)[:-1]) == 16
    assert result.summary.events == 7
    assert result.summary.weight_sparsity > 0.97
    assert all(result.summary.proofs)
    assert result.summary.after.macs < result.summary.before.macs
    assert all(torch.equal(before[k], v) for k, v in lenet5.state_dict().items())
    assert origin_of(result.model).plan == result.plan
    assert any("never saw data" in note for note in result.summary.notes)


def test_same_seed_same_plan(lenet5) -> None:
    from compressor.data import Samples, open_data

    split = open_data("digits").train
    plans = [compress(lenet5, "snapit", Samples(split, (1, 28, 28), 96, 32, seed), 0.7).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_a_plan_is_replayed_on_other_weights(lenet5, digits) -> None:
    plan = Plan.from_json(compress(lenet5, "snap", digits, 0.6).plan.to_json())
    other = networks.build("lenet5", seed=5)
    x = (next(iter(digits))[0],)
    small = apply_plan(plan, other, x)
    kept = plan.kept["features.0"]
    assert torch.equal(small.features[0].weight, other.features[0].weight[kept])
    with pytest.raises(BadInput, match="another architecture"):
        apply_plan(plan, networks.build("lenet5", in_channels=3), x)


def test_in_place(digits) -> None:
    model = networks.build("lenet5")
    result = compress(model, "random", digits, 0.5, inplace=True)
    assert result.model is model
    assert sum(widths(model)[:-1]) == 113


def test_iterators_are_cached_and_any_loss_will_do(image_batches) -> None:
    model = BLOCKS["Residual"]()

    def squared(outputs, batch):
        return (outputs - nn.functional.one_hot(batch[1], 5)).square().mean()

    result = compress(model, "snapit", iter(image_batches), 0.5, loss=squared)
    assert result.summary.events > 1
    assert result.summary.samples == 18


def test_a_forward_of_ones_own(image_batches) -> None:
    data = [{"pixels": x, "label": y} for x, y in image_batches]
    result = compress(
        BLOCKS["Plain"](),
        "snap",
        data,
        0.5,
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch["label"]),
        forward=lambda model, batch: model(batch["pixels"]),
        example_inputs=(data[0]["pixels"],),
    )
    assert result.summary.reached == 0.5


def test_what_cannot_be_removed_is_frozen_and_listed(image_batches) -> None:
    result = compress(Stubborn(), "snap", image_batches, 0.3)
    assert list(result.summary.frozen) == ["second.0"]
    assert widths(result.model)[1] == 8
    with pytest.raises(UnreachableSparsity, match=r"8 nodes are frozen \(second\.0: .*; the highest is 0\.357142"):
        compress(Stubborn(), "snap", image_batches, 0.9)


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        if x.sum() > 1e9:
            x = x * 2
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def test_a_network_that_export_cannot_trace_is_pruned_all_the_same(image_batches) -> None:
    summary = compress(Branching(), "snapit", image_batches, 0.5).summary
    assert summary.reached == 0.5
    assert all(summary.proofs)
    assert any("torch-pruning's graph" in note for note in summary.notes)


def test_calibration_gives_statistics_without_touching_the_network(lenet5, digits) -> None:
    result = compress(lenet5, "snap", digits, 0.5, calibrate_bn=True)
    assert is_fresh(lenet5)
    assert not is_fresh(result.model)
    assert not any("never saw data" in note for note in result.summary.notes)


def test_layers_near_collapse_are_named(lenet5, digits) -> None:
    summary = compress(lenet5, "snapit", digits, 0.95).summary
    assert summary.near_collapse
    assert all(left < 4 for left in summary.near_collapse.values())
    held = compress(lenet5, "snapit", digits, 0.9, floor=4).summary
    assert not held.near_collapse


def test_scores_without_pruning(lenet5, digits) -> None:
    scores = score(lenet5, digits, "snapit")
    assert {name: len(value) for name, value in scores.values.items()} == {
        "features.0": 6, "features.4": 16, "features.8": 120, "classifier.0": 84,
    }  # fmt: skip
    assert scores.samples == 160


def test_half_of_the_batch_norms_seen_is_not_fresh(lenet5) -> None:
    assert is_fresh(lenet5)
    lenet5.features[1].num_batches_tracked += 1
    assert not is_fresh(lenet5)
    assert not is_fresh(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sparsity": 93}, WrongUsage, "did you mean 0.93"),
        ({"sparsity": 0.999}, UnreachableSparsity, "the highest is 0.98"),
        ({"sparsity": 0.0001}, BadInput, "less than one node"),
        ({"data": []}, BadInput, "no batch"),
        ({"data": None}, BadInput, "no data"),
        ({"method": "nosuch"}, WrongUsage, "no method"),
        ({"stepps": 5}, WrongUsage, "no option 'stepps'"),
        ({"loss": "hinge"}, WrongUsage, "no loss 'hinge'"),
    ],
)
def test_mistakes_are_named(lenet5, digits, change: dict, error: type, message: str) -> None:
    arguments = {"method": "snapit", "data": digits, "sparsity": 0.5} | change
    with pytest.raises(error, match=message):
        compress(lenet5, **arguments)


def test_weights_that_are_not_finite_are_named(lenet5, digits) -> None:
    with torch.no_grad():
        lenet5.features[4].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"features\.4\.weight has NaN"):
        compress(lenet5, "snap", digits, 0.5)


def test_a_dead_network_is_not_called_proven(image_batches) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)) * 1e-12)

    with pytest.raises(NotEquivalent, match="the proof says nothing"):
        compress(Constant(), "random", image_batches, 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_main_job_on_a_gpu(digits) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on_cpu = compress(networks.build("lenet5"), "snap", list(digits), 0.5)
    on_gpu = compress(networks.build("lenet5").cuda(), "snap", list(digits), 0.5)
    assert all(on_gpu.summary.proofs)
    assert next(on_gpu.model.parameters()).is_cuda
    same = sum(len(set(a.tolist()) & set(on_cpu.plan.kept[n].tolist())) for n, a in on_gpu.plan.kept.items())
    assert same >= 110


class Magnifies(nn.Module):
    """Its output turns the last digits of float32 into visible ones."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.c, self.d, self.wrong = nn.Conv2d(3, 96, 3), nn.Conv2d(96, 5, 3), wrong

    def forward(self, x):
        maps = torch.relu(self.c(x))
        if self.wrong and maps.shape[1] < 96:
            maps = maps * 1.0001
        return torch.sin(3000 * self.d(maps).sum((2, 3)))


def test_rounding_is_told_from_a_wrong_network() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(5, (16,)))]
    result = compress(Magnifies(), "snap", batches, 0.5)
    assert any(proof.what.endswith("in float64") for proof in result.summary.proofs)
    assert result.model.c.out_channels == 48
    with pytest.raises(UnsupportedNetwork, match="removal changes the result"):
        compress(Magnifies(wrong=True), "snap", batches, 0.5)


def test_layers_are_frozen_or_allowed_by_name() -> None:
    model = networks.build("lenet5")
    batches = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,)))]
    result = compress(model, "snap", batches, 0.05, freeze=("features.8", "classifier.*"))
    assert {layer for layer, (dense, small) in result.summary.widths.items() if small < dense} <= {"features.0", "features.4"}
    with pytest.raises(UnreachableSparsity):
        compress(model, "snap", batches, 0.5, freeze=("features.8",))  # 120 of 226 nodes
    result = compress(model, "snap", batches, 0.3, only=("features.8",))
    assert result.summary.frozen["features.0"] == "asked for: only features.8"
    assert result.model.features[0].out_channels == 6
    assert apply_plan(result.plan, model, batches[0][0]).features[8].out_channels == result.model.features[8].out_channels
    with pytest.raises(WrongUsage, match="no layer is called feature"):
        compress(model, "snap", batches, 0.3, freeze=("feature.*",))
    with pytest.raises(WrongUsage, match="nothing is left to prune"):
        compress(model, "snap", batches, 0.3, freeze=("*",))
