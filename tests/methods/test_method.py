"""One contract for every discovered method, and discovery itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.coupling import structure
from compressor.errors import WrongUsage
from compressor.method import FOLDER_VARIABLE, RESERVED, make, method_named, summaries
from compressor.model.weights import maskable
from compressor.objective.objective import Objective
from compressor.options import options_of
from tests.blocks import BLOCKS
from tests.command import run

METHODS = sorted(summaries())
OWN = '''"""Widest: keep the nodes that come first."""

from dataclasses import dataclass

import torch

from compressor import Method, Scores, option


@dataclass(frozen=True, kw_only=True)
class Widest(Method):
    """Score a node by its position."""

    power: float = option(1.0, "of the position")

    def score(self, model, structure, objective):
        return Scores({g.name: -torch.arange(g.width).double() ** self.power for g in structure.prunable})
'''


def a_network() -> nn.Module:
    """In train mode, with statistics, a frozen parameter, a gradient and a hook: all must survive."""
    torch.manual_seed(0)
    model = BLOCKS["Residual"]()
    model(torch.randn(8, 3, 8, 8)).sum().backward()
    next(model.parameters()).requires_grad_(False)
    model.head.register_forward_hook(lambda *_: None)
    model.branches.eval()
    return model


def state_of(model: nn.Module) -> dict:
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "trained": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(a, b) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(params=METHODS)
def method(request):
    return make(request.param, {})


def test_scoring_leaves_everything_as_it_was(method, image_batches) -> None:
    model = a_network()
    found = structure(model, (image_batches[0][0],))
    before = state_of(model)
    method.score(model, found, Objective(image_batches))
    after = state_of(model)
    for name in before:
        assert same(before[name], after[name]), name


def test_scores_cover_the_groups_and_repeat(method, image_batches) -> None:
    model = a_network()
    found = structure(model, (image_batches[0][0],))
    first = method.score(model, found, Objective(image_batches))
    if method.unit == "node":
        first.covers(found)
    else:
        first.cover({name: tuple(weight.shape) for name, weight in maskable(model).items()})
    second = method.score(model, found, Objective(image_batches))
    assert all(torch.equal(first.values[n], second.values[n]) for n in first.values)


def test_targets_rise_to_the_sparsity(method) -> None:
    for sparsity in (0.1, 0.5, 0.93):
        targets = method.targets(sparsity)
        assert targets[-1] == sparsity
        assert all(0 <= a <= b for a, b in itertools.pairwise(targets))


def test_every_option_has_help_and_a_default(method) -> None:
    for option in options_of(type(method)):
        assert option.help
        assert option.default is not None
    assert type(method).__doc__


@pytest.mark.parametrize("name", METHODS)
def test_the_command_shows_its_options_and_its_paper(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    for option in options_of(method_named(name)):
        assert f"--{option.name}" in done.stdout


def test_random_removes_the_same_share_everywhere_and_follows_the_seed(image_batches) -> None:
    from compressor.selection.select import select

    model = a_network()
    found = structure(model, (image_batches[0][0],))
    method = make("random", {})
    scores = [method.score(model, found, Objective([], seed=seed)) for seed in (0, 0, 1)]
    kept = select(scores[0], found, 0.5).kept
    assert {name: len(indices) for name, indices in kept.items()} == {g.name: g.width // 2 for g in found.prunable}
    assert all(torch.equal(scores[0].values[n], scores[1].values[n]) for n in scores[0].values)
    assert any(not torch.equal(scores[0].values[n], scores[2].values[n]) for n in scores[0].values)


def test_a_users_own_method_is_one_file(tmp_path: Path, monkeypatch, image_batches) -> None:
    (tmp_path / "widest.py").write_text(OWN)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert summaries()["widest"] == "Widest: keep the nodes that come first."
    model = a_network()
    found = structure(model, (image_batches[0][0],))
    make("widest", {"power": 2.0}).score(model, found, Objective([])).covers(found)
    assert "--power" in run("widest", "--help").stdout


def test_names_of_commands_are_reserved(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "verify.py").write_text(OWN)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert "verify" in RESERVED
    with pytest.raises(WrongUsage, match="is a command of compress"):
        summaries()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nosuch", {}, "no method 'nosuch': choose"),
        ("snapit", {"stesp": 3}, "no option 'stesp'"),
        ("snapit", {"gate": "front"}, "choose read, post-norm, pre-norm"),
    ],
)
def test_mistakes_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        make(name, options)


@pytest.mark.parametrize(
    ("text", "message"), [("def (", "cannot be loaded"), ("import nosuch", "cannot be loaded"), ("x = 1", "holds 0")]
)
def test_a_broken_file_of_a_users_own_is_named_and_hides_nothing(tmp_path: Path, monkeypatch, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert {"mine", "snapit"} <= set(summaries())
    with pytest.raises(WrongUsage, match=message):
        make("mine", {})
