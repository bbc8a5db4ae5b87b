"""A run's folder: its state after the last epoch, and its history."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compressor.errors import BadInput, first_line
from compressor.options import spelled
from compressor.system.files import staged
from compressor.training.history import Row, write_history

SCHEMA = 2
STATE, HISTORY = "state.pt", "history.csv"


class _Newer(BadInput):
    """A run of a newer version."""


class Run:
    """Keeps what a run needs to go on, atomically.

    Attributes:
        folder: made when first needed.
        configuration: what must be the same for a run to go on: JSON values by name.
        unsaid: what those are that a configuration does not name.
        of_before: a configuration that an older version kept, in today's names.
    """

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any], unsaid: Mapping[str, Any],
        of_before: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> None:  # fmt: skip
        self.folder, self.unsaid, self.of_before = folder, unsaid, of_before
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

    def check_new(self) -> None:
        """Refuse to begin where an unfinished run is; what is damaged is none, and goes when this one is kept.

        Raises:
            BadInput: there is one, or one of a newer version, which may be unfinished.
        """
        try:
            held = self._read()
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
        """What was kept last; None if there is nothing.

        Raises:
            BadInput: it is damaged, or of another configuration; the message names what differs.
        """
        state = self._read()
        if state is None:
            return None
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

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            if held["schema"] > SCHEMA:
                raise _Newer(f"{path}: made by a newer version; update compressor, or name another with {spelled('folder')}")
            if held["schema"] < SCHEMA:
                raise BadInput(f"{path}: made by an older version, whose runs cannot go on; remove it to begin anew")
            if not {"configuration", "epoch", "epochs", "content"} <= held.keys():
                raise KeyError("parts are missing")
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError, ValueError, AttributeError) as error:
            raise BadInput(f"{path}: damaged ({first_line(error)}); remove it to begin anew") from error
        return dict(held)
