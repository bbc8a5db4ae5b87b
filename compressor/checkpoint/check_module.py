"""Networks that came out of a pickle: checked to be what `nn.Module` promises, before anything walks or runs them."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import BadInput, first_line
from compressor.options import spelled

NAME = re.compile(r"[\w \-:/+]+")
"""What a child or tensor may be called. Names reach generated code (torch.fx), so quotes, brackets and backslashes may not."""

DEEPEST = 100
"""Containers and modules inside one another, beyond which a file is damaged."""


def made_intact(value: Any, replaced: Callable[[Any], Any], trust: bool = False) -> Any:
    """The same value, with every network in it checked and every part that `replaced` knows exchanged, in place.

    Args:
        replaced: gives another value for a part, or the part itself.
        trust: networks may have hooks.
    Raises:
        BadInput: a network holds itself, a child that is no module, a parameter that is no tensor, a name that is none, or
            hooks, or says that it has more layers than parameters.
    """
    return _Walk(replaced, trust).visit(value, ())


class _Walk:
    def __init__(self, replaced: Callable[[Any], Any], trust: bool) -> None:
        self.replaced, self.trust = replaced, trust
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []  # what `done` knows by its identity

    def visit(self, value: Any, above: tuple[int, ...]) -> Any:
        """The value to put in place of this one; `above` are the containers that it lies in."""
        if isinstance(value, Tensor):
            _check_tensor(value)
            return value
        if id(value) in above or len(above) > DEEPEST:
            raise BadInput("damaged network: something in it holds itself")
        if id(value) in self.done:
            return self.done[id(value)]
        given, value = value, self.replaced(value)
        if not isinstance(value, (nn.Module, dict, list, tuple, set, functools.partial, argparse.Namespace)):
            return value
        self.kept.append(given)
        self.done[id(given)] = value
        inside = (*above, id(given))
        if isinstance(value, nn.Module):
            self._fill(value.__dict__, inside)
            _check(value, self.trust)
            if value is not given:
                _complete(value)
        elif isinstance(value, argparse.Namespace):
            self._fill(value.__dict__, inside)
        elif isinstance(value, dict):
            self._fill(value, inside)
        elif isinstance(value, list):
            value[:] = [self.visit(part, inside) for part in value]
        elif isinstance(value, functools.partial):
            named = {name: self.visit(part, inside) for name, part in value.keywords.items()}
            parts = [self.visit(part, inside) for part in value.args]
            self.done[id(given)] = functools.partial(self.visit(value.func, inside), *parts, **named)
        elif type(value) in (tuple, set):
            self.done[id(given)] = type(value)(self.visit(part, inside) for part in value)
        return self.done[id(given)]

    def _fill(self, values: dict[Any, Any], inside: tuple[int, ...]) -> None:
        for name, part in list(values.items()):
            values[name] = self.visit(part, inside)


KINDS = {"_modules": nn.Module, "_parameters": Tensor, "_buffers": Tensor}


def _check_tensor(tensor: Tensor) -> None:
    """Refuse hooks, and a view that shows a little memory as more than a copy of it could take."""
    if tensor._backward_hooks:
        raise BadInput("damaged checkpoint: a tensor has hooks")
    if tensor.layout == torch.strided and tensor.device.type == "cpu":
        shown, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if shown > max(held, REPEATED):
            raise BadInput(f"damaged checkpoint: a tensor of {tuple(tensor.shape)} repeats {held:,} bytes")


REPEATED = 1_000_000
"""Bytes that a tensor may show of fewer: some buffers are expanded."""

HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
"""Attributes of a module that hold code, which torch calls by itself."""


def _check(module: nn.Module, trust: bool) -> None:
    """Refuse what no constructor makes, and hooks, unless the file is trusted."""
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
    for place in HOOKS:
        held = module.__dict__.get(place, {})
        if not isinstance(held, dict):
            raise BadInput(f"{what} has {place} that are none")
        if held and not trust:
            way = (
                f"remove them before it is saved, save a state dict, or, if you trust the file, {spelled('trust_pickle', True)}"
            )
            raise BadInput(f"{type(module).__name__} has hooks ({place}), which are code; {way}")
    if isinstance(module, nn.RNNBase) and not 0 < _number(module, "num_layers") <= len(module._parameters):
        raise BadInput(f"{what} says that it has {module.__dict__.get('num_layers')!r} layers")
    if not isinstance(module.__dict__.get("training"), bool):
        raise BadInput(f"{what} is neither in train nor in eval mode")


def _number(module: nn.Module, name: str) -> int:
    value = module.__dict__.get(name)
    return value if type(value) is int else 0


def _complete(module: nn.Module) -> None:
    """Let its class fill in what files of older versions lack."""
    fill = getattr(type(module), "__setstate__", None)
    if fill is None:
        return
    try:
        fill(module, dict(module.__dict__))
    except Exception as error:  # what it finds is not what a constructor leaves
        raise BadInput(f"damaged network: {type(module).__name__} cannot be filled ({first_line(error)})") from error
