"""Batches that the user's own code makes: a factory named as `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compressor.errors import BadInput, CompressError, first_line
from compressor.system.user_code import object_named


@dataclass(frozen=True)
class Batches:
    """Batches as the user's code makes them, given to the network and the loss as they are.

    Each part is a re-iterable, or an iterator that gives its batches once, which who reads it must cache.

    Attributes:
        name: as the user gave it.
        train: for scoring.
        test: for accuracy; None when the factory gives none.
    """

    name: str
    train: Iterable[Any]
    test: Iterable[Any] | None


class Stream:
    """A re-iterable whose failures, and whose being empty, end in BadInput with its name."""

    def __init__(self, label: str, source: Iterable[Any]) -> None:
        self.label = label
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return _guarded(self.label, self.source)


class SizedStream(Stream):
    """A `Stream` that knows its number of batches."""

    def __len__(self) -> int:
        assert isinstance(self.source, Sized)
        return len(self.source)


def batches(name: str) -> Batches:
    """Call a factory without arguments and take what it gives: batches, or `{"train": batches, "test": batches}`.

    Raises:
        BadInput: the factory raises, or gives no batches.
        WrongUsage: there is no such factory.
    """
    factory = object_named(name, "data")
    if not callable(factory):
        raise BadInput(f"data {name}: is a {type(factory).__name__}, not a function that returns batches")
    try:
        made = factory()
    except CompressError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything, or even exit
        raise BadInput(f"data {name}: raises {type(error).__name__}: {first_line(error)}") from error
    if isinstance(made, tuple) and len(made) == 2 and not any(_is_batch(part) for part in made):
        raise BadInput(f'data {name}: returns a pair; return {{"train": batches, "test": batches}}')
    if not isinstance(made, Mapping):
        return Batches(name, _stream(f"data {name}", made), None)
    if "train" not in made or not set(made) <= {"train", "test"}:
        has = ", ".join(str(key)[:40] for key in made) or "nothing"
        raise BadInput(f"data {name}: returns a dict of {has}; its names must be train and, if you like, test")
    test = made.get("test")
    train = _stream(f"data {name}: train", made["train"])
    return Batches(name, train, None if test is None else _stream(f"data {name}: test", test))


def _is_batch(part: Any) -> bool:
    return isinstance(part, (Tensor, Mapping)) or (
        isinstance(part, (tuple, list)) and any(isinstance(p, (Tensor, Mapping)) for p in part)
    )


def _stream(label: str, source: Any) -> Iterable[Any]:
    """Batches that are checked as they come; what is known to be empty is refused now."""
    if isinstance(source, Tensor) or (isinstance(source, tuple) and any(isinstance(part, Tensor) for part in source)):
        raise BadInput(f"{label}: is one batch; return a list of batches, or any iterable of them")
    if isinstance(source, (str, bytes, Mapping)) or not _is_iterable(source):
        raise BadInput(f"{label}: is a {type(source).__name__}, not batches; return an iterable of (inputs, target)")
    if isinstance(source, Iterator):
        guarded = _guarded(label, source)
        return itertools.chain([next(guarded)], guarded)  # the first is drawn now, so that its errors come early
    try:
        size = len(source)
    except (TypeError, NotImplementedError):  # no length, or none that is known, as of a DataLoader over a stream
        return Stream(label, source)
    if not size:
        raise BadInput(f"{label}: yields no batch; give at least one")
    return SizedStream(label, source)


def _is_iterable(source: Any) -> bool:
    return isinstance(source, Iterable) or hasattr(type(source), "__getitem__")


def _guarded(label: str, source: Iterable[Any]) -> Iterator[Any]:
    count = 0
    try:
        for batch in source:
            count += 1
            yield batch
    except CompressError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything, or even exit
        raise BadInput(f"{label}: batch {count + 1} raises {type(error).__name__}: {first_line(error)}") from error
    if not count:
        raise BadInput(f"{label}: yields no batch; give at least one")
