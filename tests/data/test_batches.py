"""Batches of the user's own code, from real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressor.data import Batches, open_data
from compressor.errors import BadInput, WrongUsage

CODE = """
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

def pairs(count=3):
    return [(torch.full((2, 4), float(n)), torch.zeros(2).long()) for n in range(count)]

def loader(): return DataLoader(TensorDataset(torch.randn(10, 4), torch.arange(10)), batch_size=4, shuffle=True)
def generator():
    yield from pairs()
def both(): return {"train": pairs(), "test": iter(pairs(1))}
def only_train(): return {"train": pairs(), "test": None}

class Unsized:
    def __init__(self, count): self.count = count
    def __iter__(self): return iter(pairs(self.count))
def unsized(): return Unsized(2)
def unsized_empty(): return Unsized(0)

class Streamed(IterableDataset):
    def __iter__(self): return iter(range(6))
def streamed(): return DataLoader(Streamed(), batch_size=2)

def raises(): raise OSError("the disk\\nis gone")
def raises_first():
    raise ValueError("no first")
    yield
def raises_later():
    yield from pairs(2)
    raise KeyError("third")
def argument(path): return []
def empty(): return []
def empty_generator(): yield from ()
def empty_test(): return {"train": pairs(), "test": []}
def nothing(): return None
def text(): return "abc"
def tensor(): return torch.zeros(3)
def one_batch(): return torch.zeros(2, 4), torch.zeros(2)
def parts(): return pairs(), loader()
def pair_of_batches(): return tuple(pairs(2))
def one_dict(): return {"inputs": torch.zeros(2), "labels": torch.zeros(2)}
def no_names(): return {}
number = 7
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "my_data.py").write_text(CODE)
    return str(tmp_path / "my_data.py")


def test_a_list_and_a_loader_are_read_afresh(code: str) -> None:
    for name, count in (("pairs", 3), ("pair_of_batches", 2), ("loader", 3), ("unsized", 2), ("streamed", 3)):
        data = open_data(f"{code}:{name}")
        assert isinstance(data, Batches)
        assert (data.name, data.test) == (f"{code}:{name}", None)
        assert not isinstance(data.train, Iterator)
        assert [len(list(data.train)) for _ in range(2)] == [count, count]
    assert len(open_data(f"{code}:loader").train) == 3  # type: ignore[arg-type]


def test_an_iterator_stays_one_and_loses_no_batch(code: str) -> None:
    train = open_data(f"{code}:generator").train
    assert isinstance(train, Iterator)
    assert [float(x[0, 0]) for x, _ in train] == [0.0, 1.0, 2.0]


def test_train_and_test(code: str) -> None:
    data = open_data(f"{code}:both")
    assert len(list(data.train)) == 3
    assert data.test is not None
    assert len(list(data.test)) == 1
    assert open_data(f"{code}:only_train").test is None


def test_opening_a_loader_draws_nothing(code: str) -> None:
    open_data(f"{code}:pairs")
    torch.manual_seed(0)
    data = open_data(f"{code}:loader")
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    torch.randn(10, 4)  # the factory's own draw
    assert torch.equal(after, torch.random.get_rng_state())
    assert len(list(data.train)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raises OSError: the disk$"),
        ("raises_first", "batch 1 raises ValueError: no first"),
        ("raises_later", "batch 3 raises KeyError: 'third'"),
        ("unsized_empty", "yields no batch"),
        ("argument", "raises TypeError: argument.. missing 1 required"),
        ("empty", "yields no batch"),
        ("empty_generator", "yields no batch"),
        ("empty_test", "test: yields no batch"),
        ("nothing", "is a NoneType, not batches"),
        ("text", "is a str, not batches"),
        ("tensor", "is one batch"),
        ("one_batch", "is one batch"),
        ("parts", 'returns a pair; return ."train": batches, "test"'),
        ("one_dict", "returns a dict of inputs, labels; its names must be train"),
        ("no_names", "returns a dict of nothing"),
        ("number", "is a int, not a function"),
    ],
)
def test_what_a_factory_can_do_wrong(code: str, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        list(open_data(f"{code}:{name}").train)
    assert str(caught.value).startswith(f"data {code}:{name}")
    assert "\n" not in str(caught.value)


def test_a_factory_that_is_not_there(code: str) -> None:
    with pytest.raises(WrongUsage, match=r"did you mean pairs\?"):
        open_data(f"{code}:pair")
    with pytest.raises(WrongUsage, match="does not exist"):
        open_data("nowhere.py:pairs")
