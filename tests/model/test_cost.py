"""Counts against closed formulas, and that counting leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from compressor.model.cost import cost, count, count_training, csr_int32
from compressor.model.weights import weight_matrices

T, B, W = 5, 3, 16


class First(nn.Module):
    """The first output of a recurrent or an attention layer."""

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x):
        return self.layer(*[x] * self.times)[0]


class Fused(nn.Module):
    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)


CLOSED = {
    "convolution": (nn.Conv2d(4, 6, 3), (4, 9, 9), 6 * 7 * 7 * 4 * 9),
    "stride and padding": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 9), 6 * 5 * 5 * 4 * 9),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 9), 6 * 5 * 5 * 4 * 9),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 9, 9), 6 * 7 * 7 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 9, 9), 4 * 7 * 7 * 9),
    "one dimension": (nn.Conv1d(4, 6, 3), (4, 9), 6 * 7 * 4 * 3),
    "three dimensions": (nn.Conv3d(4, 6, 3), (4, 5, 5, 5), 6 * 27 * 4 * 27),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 4 * 5 * 5 * 6 * 9),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 4 * 5 * 5 * 3 * 9),
    "linear": (nn.Linear(7, 5), (7,), 7 * 5),
    "linear over positions": (nn.Linear(7, 5, bias=False), (3, 7), 3 * 7 * 5),
    "batch norm": (nn.BatchNorm2d(4), (4, 6, 6), 0),
    "lstm": (First(nn.LSTM(8, W, batch_first=True)), (T, 8), T * 4 * W * (8 + W)),
    "lstm, two layers, both ways": (
        First(nn.LSTM(8, W, num_layers=2, bidirectional=True, batch_first=True)), (T, 8),
        2 * T * 4 * W * (8 + W) + 2 * T * 4 * W * (2 * W + W),
    ),
    "gru": (First(nn.GRU(8, W, batch_first=True)), (T, 8), T * 3 * W * (8 + W)),
    "attention": (First(nn.MultiheadAttention(W, 4, batch_first=True), 3), (T, W), 4 * T * W * W + 2 * T * T * W),
    "transformer": (
        nn.TransformerEncoderLayer(W, 4, 32, batch_first=True), (T, W), 4 * T * W * W + 2 * T * T * W + 2 * T * W * 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_counts_are_those_of_the_closed_formula(name: str) -> None:
    model, shape, expected = CLOSED[name]
    counted = count(model, (torch.randn(B, *shape),))
    assert counted.macs == expected
    assert sum(counted.by_layer.values()) == expected
    assert counted.uncounted == ()


def test_fused_attention_is_counted() -> None:
    q = torch.randn(B, 2, T, 8)
    assert count(Fused(), (q, q, q)).macs == 2 * 2 * T * T * 8


def test_norms_are_told_apart() -> None:
    counted = count(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (torch.randn(B, 3, 5, 5),))
    assert (counted.macs, counted.norms) == (3 * 4 * 25, 4 * 25)


def test_training_counts_forward_and_backward() -> None:
    """The first layer's input needs no gradient: one product less."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    first, last = 3 * 4 * 9 * 36, 4 * 36 * 2
    assert count_training(model, (torch.randn(B, 3, 8, 8),)).macs == 2 * first + 3 * last
    model[0].requires_grad_(False)
    assert count_training(model, (torch.randn(B, 3, 8, 8),)).macs == first + 3 * last
    lstm = First(nn.LSTM(8, W, batch_first=True))
    assert count_training(lstm, (torch.randn(B, T, 8),)).macs == 3 * T * 4 * W * (8 + W)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), (4, 9, 9)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
    ],
)
def test_training_counts_of_grouped_and_transposed_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Twice the forward pass where the input needs no gradient, three times where it does."""
    x = torch.randn(B, *shape)
    once = count(layer, (x,)).macs
    assert count_training(layer, (x,)).macs == 2 * once
    behind = nn.Sequential(nn.Conv2d(shape[0], shape[0], 1), layer)
    first = shape[0] ** 2 * shape[1] * shape[2]
    assert count_training(behind, (x,)).macs == 2 * first + 3 * once


def test_weights_of_every_kind_have_their_outputs_first() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.Conv1d(2, 5, 3), nn.Linear(7, 3), nn.LSTM(8, W), nn.GRUCell(8, W))
    assert [tuple(w.shape[:2]) for w in weight_matrices(model)] == [(6, 4), (5, 2), (3, 7), (64, 8), (64, W), (48, 8), (48, W)]


def test_an_operator_that_nobody_counts_is_named() -> None:
    class Distance(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    assert count(Distance(), (torch.randn(B, 4, 30),)).uncounted == ("_cdist_forward",)


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random, settings = torch.random.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    inputs = (torch.randn(B, 3, 8, 8),)
    random = torch.random.get_rng_state()
    for look in (count, count_training, cost):
        look(model, inputs)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == settings


def test_a_real_csr_is_as_large_as_scipys() -> None:
    weight = torch.randn(6, 5, 3, 3) * (torch.rand(6, 5, 3, 3) > 0.7)
    stored = csr_matrix(weight.flatten(1).numpy())
    assert csr_int32(weight) == stored.data.nbytes + stored.indices.nbytes + stored.indptr.nbytes
