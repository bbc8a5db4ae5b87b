"""The processes that measure memory, without the seconds that importing torch takes: copies of one that has imported it."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import sys
import warnings
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from compressor.benchmarks.experiments import trial
from compressor.benchmarks.measure import memory
from tests.command import FORKS


def use(patch: pytest.MonkeyPatch, context: BaseContext = FORKS) -> None:
    """Let probes run in copies of a process; all that they read, do and answer stays as it is."""

    def run(command: list[str], *, input: str, **_: object) -> CompletedProcess[str]:
        assert command[-2:] == ["-m", memory.__name__]
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=answer, args=(theirs, input))
        process.start()
        theirs.close()
        said = ours.recv()
        process.join()
        return CompletedProcess(command, process.exitcode, said, "")

    patch.setattr(memory, "subprocess", SimpleNamespace(run=run))


def answer(connection: Connection, asked: str) -> None:
    """What a probe's process does."""
    sys.stdin = io.StringIO(asked)
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory.main()
    connection.send(said.getvalue())


def serve(connection: Connection, folder: Path, base: Path) -> None:
    """What a sweep's worker does, with such probes."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, multiprocessing.get_context("fork"))
        trial.serve(connection, folder, base)
