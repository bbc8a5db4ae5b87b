"""The rows of a layer's least squares are what its operator does, for every form of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.model.affine import affine_of, draw
from compressor.repair.layers import layers_of
from compressor.repair.walk import Program

FORMS = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "linear on tokens": (nn.Linear(5, 4, bias=False), (2, 7, 5)),
    "1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "uneven": (nn.Conv2d(4, 6, (1, 5), stride=(2, 1), padding=(0, 2), bias=False), (2, 4, 7, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (2, 4, 8, 8)),
    "same": (nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 8, 8)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 6, 6)),
    "3d": (nn.Conv3d(3, 4, 3, padding=1), (1, 3, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 5)),
    "transposed, no overlap": (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (2, 4, 5, 5)),
    "transposed, padded beyond its kernel": (nn.ConvTranspose1d(4, 6, 2, stride=1, padding=1), (2, 4, 9)),
    "transposed, dilated, grouped": (nn.ConvTranspose2d(4, 6, 3, stride=3, dilation=2, groups=2), (2, 4, 4, 5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_times_the_matrix_are_what_the_layer_gives(form: str) -> None:
    module, shape = FORMS[form]
    module, x = module.double().eval(), torch.randn(shape, dtype=torch.float64)
    program = Program(nn.Sequential(module), (x,))
    [layer] = layers_of(program)
    y = module(x)
    places = draw(layer.positions(y), 10_000, torch.Generator())
    matrix = layer.matrix(module.weight)
    given = (layer.columns(x, places) @ matrix.transpose(1, 2)).transpose(0, 1).flatten(1)
    if module.bias is not None:
        given = given + module.bias
    assert len(given) == y.numel() // matrix[:, :, 0].numel()
    assert torch.allclose(given, layer.at(y, places))
    assert torch.equal(layer.weight_of(matrix, module.weight), module.weight)
    alone = affine_of(module)
    assert alone is not None
    assert torch.equal(alone.columns(x, places), layer.columns(x, places)), "the module says the same of itself"


def test_drawn_places_repeat_and_lie_inside() -> None:
    one, other = (draw((3, 5, 7), 40, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert [int(index.max()) < size for index, size in zip(one, (3, 5, 7), strict=True)] == [True] * 3
    assert all(len(index) == 40 for index in one)
    assert len(draw((3, 5), 40, torch.Generator())[0]) == 15, "no place twice where all may be taken"
