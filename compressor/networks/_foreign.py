"""Networks that other libraries, or a file of the user's, can build."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from compressor.errors import BadInput, MissingEnvironment, WrongUsage, first_line, nearest
from compressor.options import spelled
from compressor.system.quiet import quiet
from compressor.system.user_code import LIBRARIES, object_named
from compressor.types.origin import InputSpec

FETCHING = frozenset(["pretrained", "weights", "weights_backbone", "checkpoint_path", "cache_dir", "pretrained_cfg"])
"""Arguments with which a builder would fetch or read other files; the weights come from the checkpoint alone."""


def is_code(spec: str) -> bool:
    """Whether a builder is code of the user's (`file.py:factory`), which no file may name by itself."""
    return ":" in spec and spec.partition(":")[0] not in LIBRARIES


LARGEST = 250_000
"""Numbers in a file's header beyond which no builder is asked: of channels, classes, layers, pixels in a row."""


def make(spec: str, arguments: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A network with whatever weights its builder gives it, on the CPU; random state is left alone.

    Args:
        seed: what torch's random numbers follow from while it is built.
    Raises:
        WrongUsage: no such builder, or it does not take the arguments.
        MissingEnvironment: the library cannot be imported.
        BadInput: the builder returns no network.
    """
    library, _, name = spec.partition(":")
    asked = (name for name in arguments if name in FETCHING)
    if taken := sorted(name for name in asked if library in LIBRARIES or arguments[name]):  # one's own may need its False
        raise WrongUsage(f"{spelled('arguments', taken[0])}: weights are never fetched; leave it out")
    factory = _of_library(library, name) if library in LIBRARIES else object_named(spec, "network")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            model = factory(**arguments)
        except (Exception, SystemExit) as error:  # a builder may raise anything, or even exit
            raise WrongUsage(f"{spec}: cannot be built ({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{spec}: gives {type(model).__name__}, not a torch.nn.Module")
    return model


def hollow(spec: str, arguments: Mapping[str, Any], most: int) -> nn.Module | None:
    """A library's network as a file describes it, with shapes and no values, so that it takes no memory; None where it cannot
    be built like that.

    Args:
        most: parameters that it may have.
    Raises:
        WrongUsage: as in `make`; a number that no network needs; or more parameters.
    """
    if any(number > LARGEST for number in _numbers(arguments)):
        raise WrongUsage(f"{spelled('arguments')}: numbers beyond {LARGEST:,}")
    made = 0

    def counted(*_: object) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise _TooMany

    library, _, name = spec.partition(":")
    factory = _of_library(library, name)
    counter = register_module_parameter_registration_hook(counted)
    try:
        with torch.random.fork_rng(devices=[]), quiet(), torch.device("meta"):
            model = factory(**arguments)
    except _TooMany:
        raise WrongUsage(f"{spec}: has more than {most:,} parameters with these arguments") from None
    except Exception:  # noqa: BLE001 - it looks at values, which are none here; what else is wrong, building it tells
        return None
    finally:
        counter.remove()
    return model if isinstance(model, nn.Module) else None


class _TooMany(BaseException):
    """No builder catches it."""


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)


def inputs_of(model: nn.Module) -> tuple[InputSpec, ...]:
    """What a network says of its own input, as timm's do; nothing for others."""
    described = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = described.get("input_size") if isinstance(described, Mapping) else None
    if isinstance(size, (tuple, list)) and size and all(isinstance(n, int) and n > 0 for n in size):
        return (InputSpec(tuple(size)),)
    return ()


def _not_imported(library: str, error: Exception) -> str:
    """Which library it is that cannot be imported, the one that was asked for or one that it needs, and the way out."""
    if isinstance(error, ModuleNotFoundError):
        lacks = (error.name or library).partition(".")[0]
        needs = f"{library} needs {lacks}, which is" if lacks != library else f"{library} is"
        return f"{needs} not installed; pip install {lacks}"
    raising = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    within = [name for name in LIBRARIES if any(f"/{name}/" in Path(file).as_posix() for file in raising)]
    broken = "torchvision" if "torchvision" in within else library  # which timm imports
    needs = f"{library} needs {broken}, which" if broken != library else library
    why = first_line(error)
    return f"{needs} cannot be imported ({why}); install the {broken} that was built for torch {torch.__version__}"


def _of_library(library: str, name: str) -> Any:
    try:
        with quiet():
            module = importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except Exception as error:  # a library that does not fit the installed torch may raise anything
        raise MissingEnvironment(_not_imported(library, error)) from error
    known = module.list_models()
    if name.partition(".")[0] not in known:  # timm's `resnet18.a1_in1k` names weights too
        hint = nearest(name, known, f"{module.__name__}.list_models() names them", 3)
        raise WrongUsage(f"{library} has no network {name!r}; {hint}")
    if library == "timm":
        return lambda **options: module.create_model(name, pretrained=False, **options)
    takes = inspect.signature(module.get_model_builder(name)).parameters
    fixed = {"weights": None}
    if "weights_backbone" in takes:
        fixed["weights_backbone"] = None  # else it is fetched
    return lambda **options: module.get_model(name, **fixed, **options)
