"""Fields of a dataclass that are options on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from compressor.errors import WrongUsage, nearest


def option(default: Any, help: str, least: float | None = None, most: float | None = None) -> Any:
    """A field that is an option on the command line, a number of at least `least` and at most `most`."""
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True)
class Option:
    """One option, as the command line needs it."""

    name: str
    kind: type
    choices: tuple[str, ...]
    default: Any
    help: str
    least: float | None = None
    most: float | None = None


def options_of(owner: type) -> list[Option]:
    """The options of a dataclass, from its fields."""
    hints = get_type_hints(owner)
    found = []
    for f in dataclasses.fields(owner):
        choices = get_args(hints[f.name])
        kind = type(choices[0]) if choices else hints[f.name]
        found.append(Option(f.name, kind, choices, f.default, f.metadata["help"], f.metadata["least"], f.metadata["most"]))
    return found


def checked(owner: type, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each of an option that there is, among its choices and not too small.

    Args:
        name: of the owner, for messages.
    Raises:
        WrongUsage: one of them is not; the message names it.
    """
    known = {o.name: o for o in options_of(owner)}
    for key, value in values.items():
        if key not in known:
            hint = nearest(key, known, f"it has {', '.join(known) or 'none'}")
            raise WrongUsage(f"{name} has no option {key!r}: {hint}")
        kinds: tuple[type, ...] = (int, float) if known[key].kind is float else (known[key].kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and known[key].kind is not bool):
            raise WrongUsage(f"{key}={value!r}: must be of the kind {known[key].kind.__name__}")
        if known[key].choices and value not in known[key].choices:
            raise WrongUsage(f"{key}={value!r}: choose {', '.join(known[key].choices)}")
        least = known[key].least
        if least is not None and isinstance(value, (int, float)) and not value >= least:
            raise WrongUsage(f"{key}={value}: at least {least:g}")
        most = known[key].most
        if most is not None and isinstance(value, (int, float)) and not value <= most:
            raise WrongUsage(f"{key}={value}: at most {most:g}")
    return dict(values)
