"""What is counted, and what is said: weights outside of layers, computed weights, reasons that are never empty."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from compressor import compress
from compressor.coupling import check_prunable, structure
from compressor.errors import CompressError, UnsupportedNetwork, first_line
from compressor.proof.prove import scaling
from compressor.pruning.result import Result
from compressor.pruning.result_text import _frozen_lines
from compressor.types import total_by_layer
from compressor.types.reason import summed_up


def pruned(model: nn.Module, *shape: int, sparsity: float = 0.5) -> Result:
    return compress(model, "random", sparsity=sparsity, example_inputs=torch.randn(*shape))


class Bare(nn.Module):
    """Filters that are parameters of one module, the output's among them."""

    def __init__(self) -> None:
        super().__init__()
        for name, outputs, inputs in (("up", 16, 1), ("mix", 24, 16), ("down", 1, 24)):
            setattr(self, name, nn.Parameter(torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5))

    def forward(self, x):
        h = F.relu(F.conv2d(x, self.up, padding=1))
        return x + F.conv2d(F.relu(F.conv2d(h, self.mix, padding=1)), self.down, padding=1)


@pytest.mark.parametrize("inner", [False, True])
def test_bare_parameters_of_one_module_are_counted_each(inner: bool) -> None:
    """The module that owned the output was left out whole: an open share of 1.47, and 0.35 where 0.5 was asked."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(Bare()) if inner else Bare()
    names = ["0.up", "0.mix"] if inner else ["up", "mix"]
    result = pruned(model, 2, 1, 9, 9)
    assert result.summary.open_share == 1
    assert result.summary.total_nodes == 40
    assert result.summary.reached == pytest.approx(0.5, abs=0.02)
    assert list(result.summary.widths) == names
    small = result.model[0] if inner else result.model
    assert len(small.up) + len(small.mix) == 20
    assert small.down.shape[:2] == (1, len(small.mix))


def test_a_bare_parameter_may_be_named(tmp_path: Path) -> None:
    result = compress(Bare(), "random", sparsity=0.2, example_inputs=torch.randn(2, 1, 9, 9), freeze=("up",))
    assert result.summary.widths["up"] == (16, 16)
    assert result.summary.widths["mix"] == (24, 16)


def spectral() -> nn.Module:
    torch.manual_seed(0)
    body = parametrizations.spectral_norm(nn.Conv2d(24, 16, 3))
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), body, nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(256, 5))


def test_a_weight_that_changes_when_it_is_read_is_the_same_in_train_mode() -> None:
    """In train mode each look at a spectral norm's weight moves it: not even the whole network was itself."""
    x = torch.randn(2, 3, 8, 8)
    results = [compress(spectral().train(mode), "random", sparsity=0.2, example_inputs=x) for mode in (True, False)]
    training, evaluated = (r.summary for r in results)
    assert training.widths == evaluated.widths
    assert training.frozen == evaluated.frozen
    assert "remove_parametrizations(layer, 'weight')" in training.frozen["0"]
    assert results[0].model.training
    assert all(module.training for module in results[0].model.modules())
    assert not results[1].model.training
    with torch.no_grad():
        assert torch.equal(results[0].model.eval()(x), results[1].model(x))


class Act(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.Parameter(torch.ones(1)))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return getattr(self, self.name) * F.relu(x) + self.shift


@pytest.mark.parametrize("name", ["scale", "anything", "weight"])
def test_a_learned_number_does_not_silence_the_proof(name: str) -> None:
    """Ten of them, drawn near 0, left nothing of the signal, and the proof said nothing."""
    torch.manual_seed(0)
    widths = [3] + [12] * 10
    layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Conv2d(i, o, 3, padding=1), Act(name))]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    assert pruned(model, 2, 3, 8, 8).summary.reached == pytest.approx(0.5, abs=0.02)
    found = scaling(model, (torch.randn(2, 3, 8, 8),))
    assert not any(n.endswith("shift") for n in found)
    assert len(found) == (0 if name == "weight" else 10)


class Mixed(nn.Module):
    """Weights of experts, mixed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(12, 10), nn.Linear(10, 4)
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 10, 32) / 4), nn.Parameter(torch.randn(4, 32, 5) / 6)

    def forward(self, x):
        x = self.stem(x)
        g = torch.softmax(self.gate(x), 1)
        h = F.relu(torch.einsum("be,eio,bi->bo", g, self.w1, x))
        return torch.einsum("be,eio,bi->bo", g, self.w2, h)


def test_weights_that_are_not_followed_are_counted_and_named() -> None:
    found = structure(Mixed().eval(), (torch.randn(2, 12),), prunable=False)
    assert total_by_layer(found) == {"stem": 10, "gate": 4, "w1": 32}
    reasons = {g.name: g.frozen for g in found.frozen}
    assert "einsum cannot be followed" in str(reasons["w1"])
    with pytest.raises(UnsupportedNetwork, match=r"nothing can be pruned: .*einsum") as error:
        pruned(Mixed(), 2, 12)
    assert str(error.value).rstrip()[-1] != ":"


class Computed(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(outputs, inputs)), inputs**-0.5

    def forward(self, x):
        return F.linear(x, self.weight * self.scale)


def test_equal_reasons_are_one_with_a_count() -> None:
    model = nn.Sequential(*[Computed(8, 8) for _ in range(20)])
    with pytest.raises(UnsupportedNetwork, match=r"\(linear\).*\(and so 19 more\)") as error:
        pruned(model, 2, 8)
    assert len(str(error.value)) < 200
    places = [f"net.{n}.act (glu): it cannot" for n in (2, 0, 1)]
    assert summed_up([*places, "it is the output", "it is the output"]) == [
        "net.2.act (glu): it cannot (and so 2 more)", "it is the output",
    ]  # fmt: skip


def test_layers_of_one_reason_share_a_line() -> None:
    frozen = {f"net.{n}": f"net.{n} (glu): it cannot be followed" for n in range(20)} | {"fc": "it is the network's output"}
    lines = list(_frozen_lines(frozen, {f"net.{n}": 4 for n in range(20)} | {"stem": 20}))
    assert lines == [
        "stays whole  net.0, net.1, net.2 and 17 more (80.0% of the nodes): net.0 (glu): it cannot be followed",
        "stays whole  fc: it is the network's output",
    ]


class ThroughNumpy(nn.Module):
    """No graph can be followed through this."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.from_numpy(self.a(x).detach().numpy()))


def test_a_refusal_quotes_torch_exports_own_words() -> None:
    with pytest.raises(UnsupportedNetwork, match=r"torch\.export cannot trace it: RuntimeError: \.numpy\(\) is not supported"):
        pruned(ThroughNumpy(), 3, 4)


def test_a_reason_is_cut_behind_a_word() -> None:
    words = " ".join(f"word{n}" for n in range(100))
    said = first_line(RuntimeError(words))
    assert said.endswith(" ...")
    assert len(said) <= 120
    assert words.startswith(said.removesuffix(" ..."))
    assert said.removesuffix(" ...").rpartition(" ")[2] in words.split()
    assert first_line(RuntimeError("short")) == "short"
    assert first_line(RuntimeError("x" * 300)).endswith("x ...")


def test_a_structure_without_nodes_says_so() -> None:
    with pytest.raises(UnsupportedNetwork, match="nothing can be pruned: it has no layer with nodes"):
        check_prunable(structure(nn.Sequential(nn.ReLU()), (torch.randn(2, 4),), prunable=False))


EXPECTED = {
    "BareFilters": (1.0, 48), "OneScale": (1.0, 160), "HiddenBranch": (0.6, 36), "Spectral": (None, 0), "Experts": (None, 0),
    "Equalised": (None, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_the_kinds_that_fell_short(name: str, shared: Path) -> None:
    """The small networks beside the checkout: each comes out right, or is refused with a reason that names an operator."""
    spec = importlib.util.spec_from_file_location("cases", shared / "cases" / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    kind, (share, nodes) = getattr(cases, name), EXPECTED[name]
    torch.manual_seed(0)
    model, x = kind(), torch.randn(*kind.x)
    if share is None:
        with pytest.raises(CompressError, match=r"\((conv2d|einsum|linear)\)"):
            compress(model, "random", sparsity=0.5, example_inputs=x)
        return
    result = compress(model, "random", sparsity=0.5, example_inputs=x)
    assert result.summary.open_share >= share
    assert result.summary.total_nodes == nodes
    assert result.summary.reached == pytest.approx(0.5, abs=0.03)
    assert result.summary.proofs[0].kind == "structure"
