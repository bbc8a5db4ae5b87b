"""Normalisation with values of the user's own."""

from __future__ import annotations

import pytest
import torch

from compressor.data import Preprocessing, Samples, open_data
from compressor.data._images import convert
from compressor.errors import BadInput, WrongUsage

GREY_PIXEL = torch.full((1, 1, 1), 0.75)
COLOUR_PIXEL = torch.tensor([0.25, 0.5, 0.75])[:, None, None]


def test_four_numbers_by_hand() -> None:
    half = Preprocessing((0.5,), (0.25,))
    assert convert(GREY_PIXEL, (1, 1, 1), half).flatten().tolist() == [1.0]
    assert convert(GREY_PIXEL, (3, 1, 1), half).flatten().tolist() == [1.0, 1.0, 1.0]
    assert convert(COLOUR_PIXEL, (1, 1, 1), half).flatten().tolist() == [0.0]  # the mean of the channels is 0.5
    each = Preprocessing((0.0, 0.5, 0.25), (1.0, 0.5, 0.25))
    assert convert(COLOUR_PIXEL, (3, 1, 1), each).flatten().tolist() == [0.25, 0.0, 2.0]
    assert convert(GREY_PIXEL, (3, 1, 1), each).flatten().tolist() == [0.75, 0.5, 2.0]


def test_without_values_nothing_changes() -> None:
    split = open_data("digits").train
    chosen = torch.arange(20)
    for shape in ((1, 8, 8), (3, 20, 20)):
        assert torch.equal(split.read(chosen, shape), split.read(chosen, shape, Preprocessing()))
    usual = split.read(chosen, (1, 8, 8))
    mine = split.read(chosen, (1, 8, 8), Preprocessing((0.1307,), (0.3081,)))
    assert torch.equal(usual, mine)


def test_samples_are_normalised_with_the_values() -> None:
    split = open_data("digits").train
    plain, scaled = (
        Samples(split, (1, 8, 8), 40, 20, 3, p) for p in (Preprocessing((0.0,), (1.0,)), Preprocessing((0.5,), (0.5,)))
    )
    for (x, y), (other, labels) in zip(plain, scaled, strict=True):
        assert torch.equal(y, labels)
        assert 0 <= float(x.min()) < float(x.max()) <= 1
        torch.testing.assert_close(other, x * 2 - 1)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), None, "belong together"),
        (None, (0.5,), "belong together"),
        ((0.5,), (0.0,), "std 0: must be positive"),
        ((0.5,), (-1.0,), "std -1: must be positive"),
        ((0.5,), (1e-40,), "must be positive"),
        ((float("nan"),), (1.0,), "mean must be finite"),
        ((0.5,), (float("inf"),), "std must be finite"),
        ((10**400,), (1.0,), "mean must be finite"),
        ((0.5, 0.5), (1.0,), "mean has 2 values, std 1"),
        ((), (), "mean must be a list"),
        ("0.5", (1.0,), "mean must be a list"),
        ((True,), (1.0,), "mean must be numbers"),
        ((0.5,), ("1",), "std must be numbers"),
    ],
)
def test_values_that_make_no_sense(mean, std, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        Preprocessing(mean, std)
    with pytest.raises(BadInput, match=message if "list" not in message else "must be"):
        Preprocessing.from_dict({"mean": mean, "std": std})


def test_values_for_other_channels() -> None:
    with pytest.raises(WrongUsage, match="have 3 values, the network's input 1 channel; give 1 or as many"):
        convert(COLOUR_PIXEL, (1, 1, 1), Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)))
    with pytest.raises(WrongUsage, match="have 2 values, the network's input 3 channels"):
        convert(GREY_PIXEL, (3, 1, 1), Preprocessing((0.1, 0.2), (1.0, 1.0)))


def test_it_is_remembered_and_said() -> None:
    for values in (Preprocessing(), Preprocessing((0.5,), (0.25,)), Preprocessing((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))):
        assert Preprocessing.from_dict(values.as_dict()) == values
    assert Preprocessing((0.5,), (0.25,)).said() == "mean 0.5, std 0.25"
    assert Preprocessing((0.1, 0.2), (1, 2)).said() == "mean 0.1 0.2, std 1 2"
    assert "MNIST" in Preprocessing().said()
    assert Preprocessing([0.5], [1]) == Preprocessing((0.5,), (1.0,))  # type: ignore[arg-type]


JUNK = (
    *(None, 3, "mean", [], {}, {"mean": [0.5]}, {"mean": None, "std": None, "x": 1}, {1: 2, "std": None}),
    *({"mean": {"a": 1}, "std": [1]}, {"mean": [[0.5]], "std": [[1]]}, {"mean": 1, "std": 2}),
)


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_refused(junk) -> None:
    with pytest.raises(BadInput, match="preprocessing"):
        Preprocessing.from_dict(junk)
