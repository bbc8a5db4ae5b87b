"""The command line in this process, as real as in another one without the seconds that importing torch takes; and in another.

Both start where the installed `compress` starts, and both capture what reaches the file descriptors, native code's prints too.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeVar

import pytest
import torch

from compressor import cli

Result = TypeVar("Result")
COMMAND = [sys.executable, "-m", "compressor"]
"""The command line as a process of its own: for signals, exit codes, start-up, what a fresh process reads."""

STREAMS = {number: open(number, "w", buffering=1, closefd=False) for number in (1, 2)}  # noqa: SIM115 - loggers may keep them
"""Text streams on the descriptors, wherever those lead at the time."""


def process(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """What `compress ARGUMENTS` does in a process of its own, in a folder."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=600)


def run(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """What `compress ARGUMENTS` does in a folder: its exit code, stdout and stderr. Here nothing stays changed by it."""
    command = ["compress", *map(str, arguments)]
    threads, stop, often = torch.get_num_threads(), signal.getsignal(signal.SIGTERM), gc.get_threshold()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]), caught(1) as out, caught(2) as err:
        patch.chdir(cwd or Path.cwd())
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", STREAMS[1])
        patch.setattr(sys, "stderr", STREAMS[2])
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, stop)
            torch.set_num_threads(threads)
            gc.set_threshold(*often)
    code = end.value.code
    return CompletedProcess(command, code if isinstance(code, int) else 0, out(), err())


FORKS = multiprocessing.get_context("forkserver")
"""Makes real processes that need not import torch: copies of one that has, and has done nothing else."""
FORKS.set_forkserver_preload(["compressor.benchmarks.experiments.trial", "compressor.exporters.onnx", "compressor.cli"])


def isolated(function: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module returns, or raises, in a process of its own: one that crashes takes no tests along."""
    with ProcessPoolExecutor(1, mp_context=FORKS) as pool:
        return pool.submit(function, *arguments).result()


def wait_for(what: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 300) -> None:
    """Until something is so; a process that ends before, or more time than any machine needs, is a failure."""
    end = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, f"it ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.005)


@contextmanager
def caught(descriptor: int) -> Iterator[Callable[[], str]]:
    """A function that tells, afterwards, what was written to a file descriptor in the meantime."""
    saved, told = os.dup(descriptor), ""
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield lambda: told
        finally:
            STREAMS[descriptor].flush()
            os.dup2(saved, descriptor)
            os.close(saved)
            file.seek(0)
            told = file.read().decode()
