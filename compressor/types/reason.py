"""Why a group stays whole: a sentence for people, and a cause that code asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum


class Cause(Enum):
    """What kind of a reason it is."""

    OUTPUT = "output"
    TRAINING = "training"
    ASKED = "asked"
    CODE = "code"


class Reason(str):
    """A sentence that knows its cause; any other text is a reason of the network's own code.

    Attributes:
        cause: what code may ask for, whatever the sentence says.
    """

    cause: Cause

    def __new__(cls, text: str, cause: Cause = Cause.CODE) -> Reason:
        made = super().__new__(cls, text)
        made.cause = cause
        return made


OUTPUT = Reason("it is the network's output", Cause.OUTPUT)
"""Why a group that the network returns is frozen."""

NOT_IN_EVAL = Reason("it runs only in training, if at all, and no score sees it", Cause.TRAINING)
"""Why a layer that eval mode does not reach keeps its outputs, such as those of an auxiliary head."""


def asked_for(what: str) -> Reason:
    """Why a group that the user froze is."""
    return Reason(f"{OF_THE_USER}: {what}", Cause.ASKED)


OF_THE_USER = "asked for"


def kind_of(reason: str) -> str:
    """A reason without the place that it begins with, `net.3.act (glu): it ...`: what equal ones have in common."""
    place, mark, what = reason.partition("): ")
    return f"{place.rpartition(' (')[2]}{mark}{what}" if mark else reason


def summed_up(reasons: Iterable[str]) -> list[str]:
    """Reasons, each once: those that differ in the place alone are one with a count."""
    kinds: dict[str, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        kinds.setdefault(kind_of(reason), []).append(reason)
    return [its[0] + (f" (and so {len(its) - 1} more)" if len(its) > 1 else "") for _, its in sorted(kinds.items())]


def cause_of(reason: str | None) -> Cause | None:
    """The cause of a reason; None where there is none."""
    return None if reason is None else reason.cause if isinstance(reason, Reason) else Cause.CODE


def reasons_from(texts: Mapping[str, str], causes: Mapping[str, str] | None) -> dict[str, Reason]:
    """Reasons as they were saved; until 0.1 without causes, which then follow from the sentences of that time.

    Raises:
        ValueError: a cause that there is not.
        TypeError: a reason that is no text.
    """
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("a reason that is no text")
    if causes is None:
        return {name: Reason(text, _cause_in(text)) for name, text in texts.items()}
    return {name: Reason(text, Cause(causes.get(name, Cause.CODE.value))) for name, text in texts.items()}


def _cause_in(text: str) -> Cause:
    known = {str(OUTPUT): Cause.OUTPUT, str(NOT_IN_EVAL): Cause.TRAINING}
    return Cause.ASKED if text.startswith(OF_THE_USER) else known.get(text, Cause.CODE)
