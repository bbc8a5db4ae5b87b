"""Options: fields of a dataclass from which flags, keywords, a sweep's keys and tables are made.

What may be asked is declared once, as fields made by `option`. The checks are here, and so is the one thing that every message
needs: how the surface that it appears in spells an option: `--round-to 8` on the command line, `round_to=8` in Python.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from compressor.errors import WrongUsage, nearest

Spelling = Callable[[str, object], str]
"""(option, value or None) -> how a surface writes it."""


def as_keyword(name: str, value: object = None) -> str:
    """As Python has it: `round_to=8`."""
    return name if value is None else f"{name}={value!r}"


_spelling: ContextVar[Spelling] = ContextVar("spelling", default=as_keyword)


@contextmanager
def speaking(spelling: Spelling) -> Iterator[None]:
    """Within, messages spell options so: each surface says at its door how."""
    token = _spelling.set(spelling)
    try:
        yield
    finally:
        _spelling.reset(token)


def spelled(name: str, value: object = None) -> str:
    """An option, with a value where one is meant, as the surface at hand spells it: for messages."""
    return _spelling.get()(name, value)


def option(
    default: Any, help: str, least: float | None = None, most: float | None = None, *, below: float | None = None,
    flag: str | None = None, metavar: str | None = None, needed: bool = False,
) -> Any:  # fmt: skip
    """A field that is an option.

    Args:
        help: says what it is for, or what it does.
        least: the smallest number; `most` the largest; `below` what it must not reach.
        flag: on the command line, where its name is another there; `-o/--output` gives a short one, too.
        metavar: what stands for its value in help texts.
        needed: on the command line it must be given.
    """
    told = {"help": help, "least": least, "most": most, "below": below, "flag": flag, "metavar": metavar, "needed": needed}
    return dataclasses.field(default=default, metadata=told)


@dataclass(frozen=True)
class Option:
    """One option, as every surface needs it.

    Attributes:
        kinds: of its value, the main one first; of each of them where it is `repeatable`.
        choices: all that it may be; where `open`, words that stand beside numbers.
        optional: whether it may be left open, as None.
    """

    name: str
    kinds: tuple[type, ...]
    choices: tuple[Any, ...]
    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    below: float | None = None
    flag: str | None = None
    metavar: str | None = None
    optional: bool = False
    repeatable: bool = False
    needed: bool = False

    @property
    def kind(self) -> type:
        """The main one of its kinds."""
        return self.kinds[0]

    @property
    def open(self) -> bool:
        """The choices are words beside numbers."""
        return bool(self.choices) and self.kind in (int, float)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        words = ", ".join(map(str, self.choices))
        if self.choices and not self.open:
            return f"choose {words}"
        ends = {"at least": self.least, "at most": self.most, "below": self.below}
        ranges = " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)
        kind = f"{KINDS.get(self.kind, self.kind.__name__)}{', ' * bool(ranges)}{ranges}"
        kind = f"a list, each entry {kind}" if self.repeatable else kind
        return f"must be {words}, or {kind}" if self.open else f"must be {kind}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is of the kind and in the range."""
        if value is None:
            return self.optional
        if self.repeatable:
            return isinstance(value, (tuple, list)) and all(self._accepts_one(part) for part in value)
        return self._accepts_one(value)

    def _accepts_one(self, value: Any) -> bool:
        if isinstance(value, str) and self.choices:
            return value in self.choices
        kinds = tuple(NUMBERS.get(kind, kind) for kind in self.kinds)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return False
        if self.choices and not self.open:
            return value in self.choices
        return not isinstance(value, (int, float)) or self._is_within(value)

    def _is_within(self, value: float) -> bool:
        over, under = self.least is None or value >= self.least, self.most is None or value <= self.most
        return over and under and (self.below is None or value < self.below) and not math.isnan(value)


KINDS: Mapping[type, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path",
}  # fmt: skip
"""What kinds are called in messages."""

NUMBERS: Mapping[type, Any] = {int: numbers.Integral, float: numbers.Real}
"""Numbers of other libraries are numbers, too."""


@functools.cache
def options_of(owner: type) -> tuple[Option, ...]:
    """The options of a dataclass, from its fields."""
    hints = get_type_hints(owner)
    return tuple(_option(f, hints[f.name]) for f in dataclasses.fields(owner) if "help" in f.metadata)


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
    parts = list(get_args(hint)) if get_origin(hint) in (types.UnionType, typing.Union) else [hint]
    optional = types.NoneType in parts
    parts = [part for part in parts if part is not types.NoneType]
    choices = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    kinds = [part for part in parts if get_origin(part) is not Literal]
    repeatable = bool(kinds) and get_origin(kinds[0]) is tuple
    kinds = list(get_args(kinds[0])[:1]) if repeatable else kinds or [type(choices[0])]
    told = field.metadata
    return Option(
        field.name, tuple(get_origin(kind) or kind for kind in kinds), choices, field.default, told["help"], told["least"],
        told["most"], told["below"], told["flag"], told["metavar"], optional, repeatable, told["needed"],
    )  # fmt: skip


def checked(owner: type, name: str, values: Mapping[str, Any], beside: Collection[str] = ()) -> dict[str, Any]:
    """The values, each of an option that there is, of its kind, among its choices and in its range.

    Args:
        name: of the owner, for messages.
        beside: names that may have been meant, too.
    Raises:
        WrongUsage: one of them is not; the message names it.
    """
    known = {o.name: o for o in options_of(owner)}
    for key, value in values.items():
        if key not in known:
            hint = nearest(key, [*known, *beside], f"it has {', '.join(known) or 'none'}")
            raise WrongUsage(f"{name} has no option {key!r}: {hint}")
        if not known[key].accepts(value):
            raise WrongUsage(f"{spelled(key, 'None' if value is None else value)}: {known[key].expected}")
    return {key: tuple(value) if known[key].repeatable and value is not None else value for key, value in values.items()}


class Declared:
    """Base of a dataclass whose fields are options: what no option can be is refused when one is made.

    Raises:
        WrongUsage: a value is of the wrong kind, out of range or not among the choices; the message names the option.
    """

    def __post_init__(self) -> None:
        owner: type = type(self)
        given = {o.name: getattr(self, o.name) for o in options_of(owner)}
        for name, value in checked(owner, owner.__name__.lower(), given).items():
            object.__setattr__(self, name, value)  # lists become tuples


def names_of(*owners: type) -> tuple[str, ...]:
    """The names of all options of some dataclasses."""
    return tuple(o.name for owner in owners for o in options_of(owner))


def divided(given: Mapping[str, Any], *owners: type) -> tuple[dict[str, Any], ...]:
    """Keywords, divided among the dataclasses that have options of those names; the last part is what belongs to none."""
    parts = tuple({name: value for name, value in given.items() if name in names_of(owner)} for owner in owners)
    return (*parts, {name: value for name, value in given.items() if name not in names_of(*owners)})


Function = TypeVar("Function", bound=Callable[..., Any])


def declares(*owners: type) -> Callable[[Function], Function]:
    """Let a function's signature and help show the options of dataclasses, which it takes by its `**asked`.

    In its docstring they stand in place of the line `        ...: OWNERS`.
    """

    def shown(function: Function) -> Function:
        found = inspect.signature(function)
        hints = [get_type_hints(owner) for owner in owners]
        own = [
            inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=hint[o.name])
            for owner, hint in zip(owners, hints, strict=True) for o in options_of(owner) if o.name not in found.parameters
        ]  # fmt: skip
        *known, rest = found.parameters.values()
        told: Any = function
        told.__signature__ = found.replace(parameters=[*known, *own, rest.replace(name="options")])
        text = function.__doc__ or ""
        untold = [o for owner in owners for o in options_of(owner) if f"        {o.name}: " not in text]
        lines = "\n".join(f"        {o.name}: {o.help}." for o in untold)
        told.__doc__ = text.replace("        ...: OWNERS", lines)
        return function

    return shown


def pairs_of(texts: Sequence[str], option: str = "arguments") -> Mapping[str, Any]:
    """`key=value` of each text; the value as JSON where it is (numbers, true, lists), else as text.

    Raises:
        WrongUsage: a text is written otherwise.
    """
    return dict(_pair(text, option) for text in texts)


def _pair(text: str, option: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise WrongUsage(f"{spelled(option, text)}: write KEY=VALUE")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value
