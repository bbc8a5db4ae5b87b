"""Learning from a teacher: the loss against its formula, and a student that comes nearer to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from compressor import Columns, train
from compressor.errors import BadInput, WrongUsage
from compressor.objective.batches import call
from compressor.objective.losses import cross_entropy, mse
from compressor.objective.objective import Objective
from compressor.training.recipe import Recipe, fine_tuning
from compressor.training.teacher import Teacher


def test_the_loss_is_the_divergence_at_that_temperature() -> None:
    teacher, student, x = nn.Linear(5, 4), nn.Linear(5, 4), torch.randn(7, 5)
    t = 3.0
    p, q = (torch.softmax(net(x).detach().double() / t, 1) for net in (teacher, student))
    wanted = t * t * float((p * (p.log() - q.log())).sum(1).mean())
    got = Teacher(teacher, t, 0.5, call).loss(student(x).detach(), (x, None), Objective((), cross_entropy))
    assert float(got) == pytest.approx(wanted, rel=1e-5)
    other = Teacher(teacher, t, 0.5, call).loss(student(x).detach(), (x, None), Objective((), mse))
    assert float(other) == pytest.approx(float((teacher(x) - student(x)).detach().square().mean()), rel=1e-5)


def test_a_student_comes_nearer_to_its_teacher_than_labels_bring_it() -> None:
    x = torch.randn(256, 6)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    data = Columns(x, torch.randint(3, (256,)))  # labels that say nothing
    recipe = Recipe(epochs=20, batch_size=32, lr=0.01, flip=0.0)

    def away(**how: object) -> float:
        torch.manual_seed(1)
        student = train(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), data, recipe, **how).model
        return float((torch.softmax(student(x), 1) - torch.softmax(teacher(x), 1)).detach().abs().mean())

    assert away(teacher=teacher, temperature=2.0, teacher_share=1.0) < 0.5 * away()


def test_what_makes_no_teacher_is_refused() -> None:
    model, data = nn.Linear(4, 3), Columns(torch.randn(8, 4), torch.randint(3, (8,)))
    with pytest.raises(BadInput, match="the teacher gives 5 for a sample, the network 3"):
        train(model, data, Recipe(epochs=1, flip=0.0), teacher=nn.Linear(4, 5))
    with pytest.raises(WrongUsage, match="give a network, or 'dense'"):
        train(model, data, Recipe(epochs=1, flip=0.0), teacher="sparse")
    with pytest.raises(WrongUsage, match="temperature is for a teacher"):
        train(model, data, Recipe(epochs=1, flip=0.0), temperature=2.0)


def test_a_cosine_falls_from_the_rate_to_nothing_and_fine_tuning_has_it() -> None:
    recipe = Recipe(epochs=10, lr=0.4, schedule="cosine")
    assert [recipe.lr_at(e) for e in (0, 5, 10, 11)] == pytest.approx([0.4, 0.2, 0, 0])
    assert recipe.lr_at(2.5) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    usual = fine_tuning(3, 50_000, {})
    assert (usual.epochs, usual.batch_size, usual.lr, usual.schedule) == (3, 128, 0.01, "cosine")
    few = fine_tuning(3, 1600, {})
    assert (few.batch_size, few.lr) == (16, pytest.approx(0.01 * (16 / 128) ** 0.5))
    assert fine_tuning(3, 1600, {"batch_size": 128}).lr == pytest.approx(0.01)
    assert fine_tuning(3, None, {"lr": 0.5}).lr == 0.5


def test_the_rate_falls_within_an_epoch() -> None:
    rates: list[float] = []
    model = nn.Linear(4, 3)
    data = Columns(torch.randn(64, 4), torch.randint(3, (64,)))
    done = train(
        model, data, Recipe(epochs=2, batch_size=16, lr=0.1, schedule="cosine", flip=0.0),
        on_epoch=lambda row: rates.append(row.lr),
    )  # fmt: skip
    assert rates == pytest.approx([0.1, 0.05])
    assert len(done.history) == 2
