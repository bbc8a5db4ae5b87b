"""Declared options as those of the command line. The home of click beside `cli.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.errors import WrongUsage
from compressor.options import Option, names_of, options_of, spelled
from compressor.system.files import check_name


class _Path(click.Path):
    """The name of a file or folder that can be opened."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]  # which is one
        check_name(path)
        return path


PATH = _Path(path_type=Path)
if TYPE_CHECKING:
    Kind = click.ParamType[Any]
else:
    Kind = click.ParamType  # generic at run time in newer versions only


class _Numbers(Kind):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            name = "" if param is None else str(param.name)
            raise WrongUsage(f"{spelled(name, value)}: write numbers, such as 0.5 or 0.485,0.456,0.406") from None


def flag_of(o: Option) -> click.Option:
    """A declared option as one of the command line; what is not said is left to the declaration."""
    flags = (o.flag or f"--{o.name.replace('_', '-')}").split("/")
    told = not (o.default is None or isinstance(o.default, bool) or o.default == () or o.needed)
    kind: Any = _Numbers() if o.repeatable and o.kind is float else _click_type(o)
    switch = o.kind is bool
    return click.Option(
        [*flags, o.name], type=None if switch else kind, is_flag=switch, default=None if o.needed else o.default,
        multiple=o.repeatable and o.kind is not float, required=o.needed, show_default=told, help=o.help, metavar=o.metavar,
    )  # fmt: skip


def _click_type(o: Option) -> Any:
    if o.choices and not o.open:
        return click.Choice([str(choice) for choice in o.choices])
    if o.open:
        return _NumberOrWord(o.choices)
    if o.kind is int and (o.least is not None or o.most is not None):
        least, most = (None if end is None else int(end) for end in (o.least, o.most))
        return click.IntRange(least, most)
    return PATH if o.kind is Path else str if len(o.kinds) > 1 else o.kind


class _NumberOrWord(Kind):
    name = "number"

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return int(value) if str(value).isdecimal() else str(value)  # what is neither is refused where it is declared


def takes(**declared: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of dataclasses; it is called with an object of each, and with the names of what was `said`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            given = _said(values)
            parts = {
                key: owner(**{name: values.pop(name) for name in names_of(owner) if name in values})
                for key, owner in declared.items()
            }
            said = {"said": given} if "said" in command.__code__.co_varnames else {}
            command(**parts, **said, **values)

        for owner in reversed(declared.values()):
            for o in reversed(options_of(owner)):
                _add(called, flag_of(o))
        return called

    return decorate


def _said(values: Mapping[str, Any]) -> frozenset[str]:
    """Names of the options that the user gave."""
    context, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    return frozenset(name for name in values if context.get_parameter_source(name) is not default)


def _add(command: Any, parameter: click.Parameter) -> None:
    command.__dict__.setdefault("__click_params__", []).append(parameter)
