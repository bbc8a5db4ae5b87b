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


def summed_up(reasons: Iterable[str]) -> list[str]:
    """Reasons, each once: those that differ in the place alone, `net.3.act (glu): it ...`, are one with a count."""
    places: dict[str, list[str]] = {}
    for reason in reasons:
        place, mark, what = reason.partition("): ")
        known = places.setdefault(f"{place.rpartition(' (')[2]}{mark}{what}" if mark else reason, [])
        known.append(place.rpartition(" (")[0] if mark else "")
    found = []
    for key, its in sorted(places.items()):
        first, more = its[0], len(dict.fromkeys(its)) - 1
        text = f"{first} ({key}" if first else key
        found.append(f"{text} (and so {more} more)" if more else text)
    return found


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
