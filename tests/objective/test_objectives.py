"""What can be optimised for: every loss, several inputs and outputs, inputs by name, any precision, any kind of batches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor import apply_plan, compress, score
from compressor.errors import BadInput, WrongUsage
from compressor.model.precision import working_copy
from compressor.objective.calibrate import is_fresh
from compressor.objective.losses import bce, cross_entropy, loss_named, mse
from compressor.objective.objective import Objective, evaluate


class TwoInTwoOut(nn.Module):
    """An image and token ids in, classes and a depth map out."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.norm, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.words, self.mix = nn.Embedding(20, 4), nn.Linear(4, 8)
        self.classes, self.depth = nn.Linear(14, 5), nn.Conv2d(6, 1, 1)

    def forward(self, image, ids):
        maps = torch.relu(self.d(torch.relu(self.norm(self.c(image)))))
        words = torch.relu(self.mix(self.words(ids).mean(1)))
        return {"classes": self.classes(torch.cat([maps.mean((2, 3)), words], 1)), "depth": self.depth(maps)}


def both_losses(outputs, batch):
    classes, depth = batch[1]
    return F.cross_entropy(outputs["classes"], classes) + F.mse_loss(outputs["depth"], depth)


def pairs(named: bool, count: int = 2) -> list:
    made = []
    for seed in range(count):
        g = torch.Generator().manual_seed(seed)
        image, ids = torch.randn(6, 3, 8, 8, generator=g), torch.randint(20, (6, 7), generator=g)
        target = torch.randint(5, (6,), generator=g), torch.randn(6, 1, 8, 8, generator=g)
        made.append(({"image": image, "ids": ids} if named else (image, ids), target))
    return made


@pytest.mark.parametrize("named", [False, True])
def test_two_inputs_and_two_outputs(named: bool) -> None:
    torch.manual_seed(0)
    model = TwoInTwoOut()
    result = compress(model, "snapit", pairs(named), 0.4, loss=both_losses)
    assert all(result.summary.proofs)
    assert result.summary.after.parameters < result.summary.before.parameters
    inputs = pairs(named)[0][0]
    small = result.model.eval()
    outputs = small(**inputs) if named else small(*inputs)
    assert outputs["depth"].shape == (6, 1, 8, 8)
    again = apply_plan(result.plan, model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), result.model.state_dict().values(), strict=True))


def test_by_name_and_by_position_give_the_same_plan() -> None:
    torch.manual_seed(0)
    model = TwoInTwoOut()
    plans = [compress(model, "snapit", pairs(named), 0.4, loss=both_losses).plan for named in (False, True)]
    assert plans[0] == plans[1]


def test_batches_of_another_form_with_a_forward_of_ones_own() -> None:
    torch.manual_seed(0)
    model = TwoInTwoOut()
    data = [{"pixels": x, "ids": ids, "y": y, "z": z} for (x, ids), (y, z) in pairs(named=False)]
    result = compress(
        model, "snapit", data, 0.4, forward=lambda m, b: m(b["pixels"], b["ids"]),
        loss=lambda out, b: both_losses(out, (None, (b["y"], b["z"]))), example_inputs=pairs(named=False)[0][0],
    )  # fmt: skip
    assert result.plan == compress(model, "snapit", pairs(named=False), 0.4, loss=both_losses).plan


@pytest.mark.parametrize("kind", ["list", "iterator", "generator"])
def test_any_iterable_is_data(kind: str) -> None:
    torch.manual_seed(0)
    model, data = TwoInTwoOut(), pairs(named=False)
    given = {"list": data, "iterator": iter(data), "generator": (b for b in data)}[kind]
    assert compress(model, "snapit", given, 0.4, loss=both_losses).plan == compress(
        model, "snapit", data, 0.4, loss=both_losses
    ).plan  # fmt: skip


def net(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, outputs))


def test_multi_label_and_regression() -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    labels = (x[:, :4] > 0).long()
    assert all(compress(net(4), "snapit", [(x, labels)], 0.5, loss="bce").summary.proofs)
    assert all(compress(net(4), "snapit", [(x, x[:, :4].double())], 0.5, loss="mse").summary.proofs)
    assert all(compress(net(1), "snapit", [(x, x[:, 0])], 0.5, loss="mse").summary.proofs)


def test_a_per_pixel_head() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    target = torch.randint(4, (5, 8, 8))
    target[0] = -100  # pixels that do not count
    result = compress(model, "snapit", [(torch.randn(5, 3, 8, 8), target)], 0.5)
    assert result.model(torch.randn(2, 3, 8, 8)).shape == (2, 4, 8, 8)


def test_losses_by_hand() -> None:
    logits, target = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[1, 0], [1, 1]])
    expected = -(torch.sigmoid(logits).log() * target + torch.sigmoid(-logits).log() * (1 - target)).mean()
    assert torch.isclose(bce(logits, (None, target)), expected)
    assert mse(torch.tensor([[1.0], [3.0]]), (None, torch.tensor([0.0, 1.0]))) == 2.5
    assert torch.isclose(cross_entropy((torch.zeros(3, 4),), (None, torch.tensor([0, 1, 3]))), torch.tensor(4.0).log())


@pytest.mark.parametrize(
    ("loss", "target", "words"),
    [
        ("cross-entropy", torch.tensor([0, 1, 2, 12]), "labels run from 0 to 12, the network has 4 outputs"),
        ("cross-entropy", torch.tensor([0, 1, 2, -1]), "labels run from -1 to 2"),
        ("cross-entropy", torch.rand(4, 3), "neither class labels nor probabilities"),
        ("mse", torch.rand(4), r"targets \(4,\) do not fit the network's outputs \(4, 4\)"),
        ("bce", torch.full((4, 4), 2), "in \\[0, 1\\]"),
        (lambda out, batch: out, torch.zeros(4), "must be one number"),
        (lambda out, batch: 1.0, torch.zeros(4), "must be one number"),
        (lambda out, batch: out.nosuch, torch.zeros(4), "does not fit .*nosuch"),
        (lambda out, batch: out.sum() * float("nan"), torch.zeros(4), "the loss is nan"),
        (lambda out, batch: out.sum() * 0, torch.zeros(4), "the loss is 0 on every sample"),
        (lambda out, batch: torch.ones(()), torch.zeros(4), "does not depend on any prunable node"),
    ],
)
def test_losses_that_do_not_fit(loss, target, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        compress(net(4), "snapit", [(torch.randn(4, 6), target)], 0.5, loss=loss)


def test_a_built_in_loss_takes_one_output() -> None:
    with pytest.raises(BadInput, match="has 2 outputs, this loss takes one"):
        compress(TwoInTwoOut(), "snapit", [((torch.randn(4, 3, 8, 8), torch.randint(20, (4, 7))), torch.arange(4))], 0.4)


def test_a_loss_of_the_users_own(tmp_path) -> None:
    (tmp_path / "mine.py").write_text("def doubled(outputs, batch):\n    return 2 * outputs.square().mean()\nnumber = 3\n")
    loss = loss_named(f"{tmp_path}/mine.py:doubled")
    assert loss(torch.ones(2, 2), None) == 2
    for name, words in (("mine.py:number", "not a function"), ("mine.py:doubbled", "doubled"), ("nowhere.py:x", "nowhere")):
        with pytest.raises(WrongUsage, match=words):
            loss_named(f"{tmp_path}/{name}")
    with pytest.raises(WrongUsage, match="no loss 'bec'"):
        loss_named("bec")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_scored_in_float32_and_comes_back(dtype: torch.dtype) -> None:
    model = net(4).to(dtype)
    before = copy.deepcopy(model.state_dict())
    x, y = torch.randn(16, 6), torch.randint(4, (16,))
    result = compress(model, "snapit", [(x, y)], 0.5)
    assert {t.dtype for t in result.model.state_dict().values()} == {dtype}
    assert result.plan == compress(net(4).to(dtype).float(), "snapit", [(x, y)], 0.5).plan
    kept = result.plan.kept["0"]
    assert torch.equal(result.model[0].weight, before["0.weight"][kept])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.summary.before.tensor_bytes == sum(t.nbytes for t in before.values())
    assert any("saved in the precision it came in" in note for note in result.summary.notes)
    half = [(x.to(dtype), y)] if dtype != torch.float64 else [(x, y)]
    assert score(model, half).values.keys() == {"0", "2"}


def test_working_copies_are_made_only_where_needed() -> None:
    model = net(4)
    assert working_copy(model, (torch.randn(2, 6),)) is model
    assert working_copy(model.double(), (torch.randn(2, 6).double(),)) is model
    assert working_copy(model, (torch.randn(2, 6),))[0].weight.dtype == torch.float32


def test_evaluate_by_hand() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    data = [(torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])), (torch.eye(2), torch.tensor([0, 1]))]
    quality = evaluate(model, Objective(data))
    assert (quality.accuracy, quality.samples) == (0.8, 5)
    assert quality.loss == pytest.approx(float(F.cross_entropy(torch.cat([x for x, _ in data]), torch.tensor([0, 1, 1, 0, 1]))))
    assert evaluate(model.half(), Objective(data)).accuracy == 0.8
    assert evaluate(model.float(), Objective([(x, x) for x, _ in data], mse)).accuracy is None


def test_only_dimensions_of_size_one_are_reshaped() -> None:
    values = torch.randn(4, 1, 6, 5)
    assert mse(values, (None, values[:, 0])) == 0
    with pytest.raises(BadInput, match="do not fit the network's outputs"):
        mse(values, (None, torch.randn(4, 5, 6)))
    with pytest.raises(BadInput, match="do not fit the network's outputs"):
        mse(torch.randn(4, 1, 2, 3), (None, torch.randn(6, 4)))


def test_probabilities_are_targets_and_other_floats_are_not() -> None:
    logits = torch.randn(4, 3)
    soft = torch.softmax(torch.randn(4, 3), 1)
    assert torch.allclose(cross_entropy(logits, (None, soft)), F.cross_entropy(logits, soft))
    for target in (torch.randn(4, 3), torch.rand(4, 3), torch.rand(4)):
        with pytest.raises(BadInput, match="neither class labels nor probabilities"):
            cross_entropy(logits, (None, target))


def test_old_statistics_are_statistics() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    assert is_fresh(model)
    norm.running_mean.fill_(0.1)
    assert not is_fresh(model)
    assert not is_fresh(nn.Sequential(nn.Linear(2, 2)))
