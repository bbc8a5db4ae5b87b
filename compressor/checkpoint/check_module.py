"""Networks that came out of a pickle: checked to be what `nn.Module` promises, before anything walks or runs them."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compressor.errors import BadInput

NAME = re.compile(r"[\w \-:/+]+")
"""What a child or tensor may be called. Names reach generated code (torch.fx), so quotes, brackets and backslashes may not."""

DEEPEST = 100
"""Containers and modules inside one another, beyond which a file is damaged."""


def made_intact(value: Any, replaced: Callable[[Any], Any]) -> Any:
    """The same value, with every network in it checked and every attribute that `replaced` knows exchanged, in place.

    Args:
        replaced: gives another value for a leaf, or the leaf itself.
    Raises:
        BadInput: a network holds itself, a child that is no module, a parameter that is no tensor, or a name that is none.
    """
    return _Walk(replaced).visit(value, ())


class _Walk:
    def __init__(self, replaced: Callable[[Any], Any]) -> None:
        self.replaced = replaced
        self.done: dict[int, Any] = {}

    def visit(self, value: Any, above: tuple[int, ...]) -> Any:
        """The value to put in place of this one; `above` are the containers that it lies in."""
        if isinstance(value, Tensor):
            return value
        if not isinstance(value, (nn.Module, dict, list, tuple, set, functools.partial, argparse.Namespace)):
            return self.replaced(value)
        if id(value) in above or len(above) > DEEPEST:
            raise BadInput("damaged network: something in it holds itself")
        if id(value) in self.done:
            return self.done[id(value)]
        self.done[id(value)] = value
        inside = (*above, id(value))
        if isinstance(value, nn.Module):
            _check(value)
            self._fill(value.__dict__, inside)
        elif isinstance(value, argparse.Namespace):
            self._fill(value.__dict__, inside)
        elif isinstance(value, dict):
            self._fill(value, inside)
        elif isinstance(value, list):
            value[:] = [self.visit(part, inside) for part in value]
        elif isinstance(value, functools.partial):
            named = {name: self.visit(part, inside) for name, part in value.keywords.items()}
            parts = [self.visit(part, inside) for part in value.args]
            self.done[id(value)] = functools.partial(self.visit(value.func, inside), *parts, **named)
        elif type(value) in (tuple, set):
            self.done[id(value)] = type(value)(self.visit(part, inside) for part in value)
        return self.done[id(value)]

    def _fill(self, values: dict[Any, Any], inside: tuple[int, ...]) -> None:
        for name, part in list(values.items()):
            values[name] = self.visit(part, inside)


KINDS = {"_modules": nn.Module, "_parameters": Tensor, "_buffers": Tensor}


def _check(module: nn.Module) -> None:
    """Refuse what no constructor makes."""
    what = f"damaged network: {type(module).__name__}"
    if not all(isinstance(name, str) and name.isidentifier() for name in module.__dict__):
        raise BadInput(f"{what} has an attribute whose name is none")
    for name in module.__dict__:
        if callable(getattr(nn.Module, name, None)):
            raise BadInput(f"{what} has a method {name} of its own")
    for place, kind in KINDS.items():
        held = module.__dict__.get(place)
        if not isinstance(held, dict):
            raise BadInput(f"{what} has no {place}")
        for name, part in held.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise BadInput(f"{what} holds something under the name {str(name)[:80]!r}, which is none")
            if part is not None and not isinstance(part, kind):
                raise BadInput(f"{what}.{name} is a {type(part).__name__}, not a {kind.__name__}")
    if not isinstance(module.__dict__.get("training"), bool):
        raise BadInput(f"{what} is neither in train nor in eval mode")
