"""How far long work is: a bar where people look, a line now and then where they read later."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compressor.system.terminal import printable, say

Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all); 0 in all where that is unknown."""

SECONDS_PER_LINE = 30
"""Between two lines of progress where there is no terminal."""


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr when that is a terminal; else, as in the log of a cluster's job, a line now and then."""
    if quiet:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=escape(printable(what)), completed=done, total=total or None)

        yield report


def _lines() -> Progress:
    """Progress as lines on stderr, `SECONDS_PER_LINE` apart: short work says nothing."""
    said = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_PER_LINE:
            said = time.monotonic()
            say(f"{what} ({done} of {total})" if total else what, error=True)

    return report
