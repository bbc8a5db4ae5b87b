"""The errors a user can meet. Each message is one line that says what is wrong and what to do.

CompressError              exit 1: the command line shows the message, no traceback
+-- BadInput               a file, a value or data that cannot be used
+-- UnreachableSparsity    the floors or frozen layers keep too much
+-- UnsupportedNetwork     the dependency graph cannot handle a layer
+-- NotEquivalent          a proof failed; nothing is written
+-- WrongUsage             exit 2: the question itself makes no sense (sparsity 93)
+-- MissingEnvironment     exit 3: this machine cannot do what was asked (no CUDA provider)
"""

from __future__ import annotations

from collections.abc import Collection


def first_line(error: BaseException, length: int = 120) -> str:
    """What an exception says in one line: a foreign one cut behind a word, one of ours whole, as its reason comes last."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, CompressError) or len(line) <= length:
        return line
    whole = line[: length - 3].rpartition(" ")[0] or line[: length - 4]
    return f"{whole.rstrip(' ,;:')} ..."


def nearest(name: str, known: Collection[str], otherwise: str, count: int = 1) -> str:
    """Which of the known names, at most `count`, may have been meant, as a question; `otherwise` where none is near."""
    import difflib  # 9 ms, which no start-up waits for

    near = difflib.get_close_matches(name, known, count, 0.5)
    return f"did you mean {', '.join(near)}?" if near else otherwise


class CompressError(Exception):
    """Base of every error that is the input's fault, not the program's."""

    exit_code = 1


class BadInput(CompressError):
    """A file, a value or data that cannot be used."""


class UnreachableSparsity(CompressError):
    """The asked sparsity cannot be reached; the message gives the highest reachable."""


class UnsupportedNetwork(CompressError):
    """A layer or operator stands in the way; the message names it."""


class NotEquivalent(CompressError):
    """Two networks that must compute the same do not."""


class WrongUsage(CompressError):
    """An option's value that can never be right."""

    exit_code = 2


class MissingEnvironment(CompressError):
    """The machine lacks what was asked for."""

    exit_code = 3
