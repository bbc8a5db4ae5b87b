"""A run's folder: its state after the last epoch, and its history."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from filelock import FileLock, Timeout

from compressor.errors import BadInput, first_line
from compressor.options import spelled
from compressor.system.files import set_aside, staged
from compressor.training.history import Row, write_history

SCHEMA = 2
STATE, BEFORE, HISTORY, LOCK = "state.pt", "state.before.pt", "history.csv", "lock"

OF_DAMAGE = (
    RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError, ValueError, AttributeError, IndexError, OSError,
    zipfile.BadZipFile, NotImplementedError, OverflowError, AssertionError, msgspec.MsgspecError,
)  # fmt: skip
"""What reading a damaged state, or using what it holds, may raise."""


class _Newer(BadInput):
    """A run of a newer version."""


class Damaged(BadInput):
    """A state that cannot be read, or holds something else."""


Kind = TypeVar("Kind")


def held_as(kind: type[Kind], content: object) -> Kind:
    """What a state holds, checked to be of a kind: a dataclass of numbers, texts, tensors, and mappings and lists of those.

    Raises:
        msgspec.ValidationError: it is not.
    """

    def tensor(its: type, value: object) -> object:
        if isinstance(value, its):
            return value
        raise ValueError(f"expected {its.__name__}, got {type(value).__name__}")

    return msgspec.convert(content, kind, dec_hook=tensor)


class Run:
    """Keeps what a run needs to go on, atomically.

    Attributes:
        folder: made when first needed.
        configuration: what must be the same for a run to go on: JSON values by name.
        unsaid: what those are that a configuration does not name.
        of_before: a configuration that an older version kept, in today's names.
        fell_back: why the state before the newest one was taken, where it was.
    """

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any], unsaid: Mapping[str, Any],
        of_before: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> None:  # fmt: skip
        self.folder, self.unsaid, self.of_before = folder, unsaid, of_before
        self.fell_back: str | None = None
        self._going, self._newest_is_whole = False, False
        self.configuration = json.loads(json.dumps(dict(configuration)))

    def check_place(self) -> None:
        """Refuse a place where no folder can be, before any work is done.

        Raises:
            BadInput: it is a file, lies in no folder, or cannot be written to.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder}: is a file; name a folder for the run")
        if not self.folder.parent.is_dir():
            raise BadInput(f"{self.folder}: the folder {self.folder.parent} does not exist; make it first")
        if not os.access(self.folder if self.folder.exists() else self.folder.parent, os.W_OK | os.X_OK):
            raise BadInput(f"{self.folder}: cannot be written to; name another with {spelled('folder')}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the body runs, no other training works in the folder; it is made for that, and goes if it stayed empty.

        Raises:
            BadInput: another one does.
        """
        there = self.folder.is_dir()
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BadInput(
                f"{self.folder}: another training is at work in it; wait for that, or name another with {spelled('folder')}"
            ) from None
        try:
            yield
        finally:
            (self.folder / LOCK).unlink(missing_ok=True)
            lock.release()
            if not there:
                with suppress(OSError):  # something was kept
                    self.folder.rmdir()

    def check_new(self) -> None:
        """Refuse to begin where an unfinished run is; what is damaged is none, and goes when this one is kept.

        Raises:
            BadInput: there is one, or one of a newer version, which may be unfinished.
        """
        try:
            held = self._newest()
        except _Newer:
            raise
        except BadInput:
            held = None
        if held is not None and held["epoch"] < held["epochs"]:
            done = f"{held['epoch']} of {held['epochs']} epochs"
            raise BadInput(
                f"{self.folder}: holds a run that did {done}; {spelled('resume', True)} goes on with it, "
                f"{spelled('folder')} names another"
            )

    def saved(self) -> dict[str, Any] | None:
        """What was kept last, or before that where the last is damaged; None if there is nothing.

        Raises:
            BadInput: both are damaged, or of another configuration; the message names what differs.
        """
        state = self._newest()
        if state is None:
            return None
        self._going, self._newest_is_whole = True, self.fell_back is None
        was = self.of_before(json.loads(state["configuration"]))
        for name in {**self.configuration, **was}:
            before, now = (held.get(name, self.unsaid.get(name, "not given")) for held in (was, self.configuration))
            if before != now and name == "data":
                raise BadInput(
                    f"{self.folder / STATE}: the data changed since; give the same, or name another folder with "
                    f"{spelled('folder')}"
                )
            if before != now and name == "events":
                was_at, is_at = (", ".join(events) for events in (before, now))
                raise BadInput(
                    f"{self.folder / STATE}: its events come before epoch {was_at}, with these {spelled('epochs')} before "
                    f"{is_at}; "
                    f"give the same {spelled('epochs')}, or {spelled('stage', 'after')} and {spelled('prune_at', was_at)}"
                )
            if before != now:
                raise BadInput(
                    f"{self.folder / STATE}: was made with {name} {before}, now it is {now}; give the same, or another "
                    f"folder by {spelled('folder')}"
                )
        return dict(state["content"])

    def keep(self, epoch: int, epochs: int, content: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Put the state after `epoch` epochs, and the history, in place of what was there."""
        self.folder.mkdir(exist_ok=True)
        text = json.dumps(self.configuration)
        whole = {"schema": SCHEMA, "configuration": text, "epoch": epoch, "epochs": epochs, "content": dict(content)}
        with staged(self.folder / STATE, self.folder / HISTORY) as [state, history]:
            torch.save(whole, state)
            write_history(rows, history)
            if not self._going:  # it would be the state of another run
                (self.folder / BEFORE).unlink(missing_ok=True)
            elif self._newest_is_whole:
                set_aside(self.folder / STATE, BEFORE)
        self._going = self._newest_is_whole = True

    def _newest(self) -> dict[str, Any] | None:
        """The newest whole state; None where there never was one."""
        newest, before = self.folder / STATE, self.folder / BEFORE
        if not newest.is_file() and not before.is_file():
            return None
        try:
            if not newest.is_file():
                raise Damaged(f"{newest}: is gone")
            return self._read(newest)
        except Damaged as error:
            if not before.is_file():
                raise
            try:
                held = self._read(before)
            except BadInput as its:
                raise Damaged(f"{error}; the state before it is of no use either ({its})") from its
            self.fell_back = (
                f"{error.args[0].partition('; remove it')[0]}: went on from the state before it, {held['epoch']} epochs"
            )
            return held

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as records:
                if damaged := records.testzip():
                    raise ValueError(f"the checksum of its record {damaged} is wrong")
            held = torch.load(path, map_location="cpu", weights_only=True)
            if held["schema"] > SCHEMA:
                raise _Newer(f"{path}: made by a newer version; update compressor, or name another with {spelled('folder')}")
            if held["schema"] < SCHEMA:
                raise BadInput(f"{path}: made by an older version, whose runs cannot go on; remove it to begin anew")
            if not {"configuration", "epoch", "epochs", "content"} <= held.keys():
                raise ValueError("parts are missing")
            if not (type(held["epoch"]) is type(held["epochs"]) is int and isinstance(held["content"], dict)):
                raise ValueError("it holds something else")
            if not isinstance(json.loads(held["configuration"]), dict):
                raise ValueError("its configuration is something else")
        except OF_DAMAGE as error:
            raise Damaged(f"{path}: damaged ({first_line(error)}); remove it to begin anew") from error
        return dict(held)
