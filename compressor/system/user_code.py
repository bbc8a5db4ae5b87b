"""Objects of the user's own code, named on the command line: `package.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from compressor.errors import WrongUsage, first_line, nearest
from compressor.options import spelled
from compressor.system.file_modules import module_of, on_path

LIBRARIES = ("torchvision", "timm")
"""Prefixes that name a network of a library, not a module to import."""


def is_named(text: str) -> bool:
    """Whether a text has the form `module:name` or `file.py:name`; a Windows path `C:\\x` and `timm:x` do not."""
    place, _, attributes = text.rpartition(":")
    if not place or not attributes or place in LIBRARIES:
        return False
    return place.endswith(".py") or all(part.isidentifier() for part in attributes.split("."))


def object_named(name: str, what: str) -> Any:
    """The Python object behind `package.module:name` or `path/to/file.py:name`; dots after the colon reach inside it.

    A file is one module per process: two names from it share its state, and its classes are those that `import` gives,
    whether that comes before or after.

    Args:
        name: where the object is; modules are also looked for in the working folder.
        what: the option it was given to, for messages: `loss`.
    Raises:
        WrongUsage: no colon, no such file, module or object, or the code raises while it loads.
    """
    place, _, attributes = name.rpartition(":")
    if not place or not attributes:
        raise WrongUsage(f"{spelled(what, name)}: name an object as package.module:name or path/to/file.py:name")
    is_file = place.endswith(".py") or "/" in place or "\\" in place
    label, reached = spelled(what, name), place
    found: Any = _file(Path(place), label) if is_file else _module(place, label)
    for attribute in attributes.split("."):
        found = _attribute(found, attribute, reached, label)
        reached = f"{reached}.{attribute}" if ":" in reached[2:] else f"{reached}:{attribute}"
    return found


def _attribute(owner: Any, attribute: str, reached: str, label: str) -> Any:
    try:
        return getattr(owner, attribute)
    except AttributeError as error:
        names = [n for n in dir(owner) if not n.startswith("_")]
        hint = nearest(attribute, names, f"it has {', '.join(names[:8]) or 'no public name'}")
        raise WrongUsage(f"{label}: {reached} has no {attribute}; {hint}") from error
    except Exception as error:  # a module's own __getattr__ or a property is foreign code: it may raise anything
        raise WrongUsage(f"{label}: {reached}.{attribute} raises {_said(error)}") from error


def _module(place: str, label: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        with on_path(str(Path.cwd()), last=True):  # a console script does not see the working folder by itself
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise WrongUsage(f"{label}: no module {error.name} can be imported; check the name, or name a .py file") from error
        raise WrongUsage(f"{label}: {place} raises {_said(error)}") from error
    except (Exception, SystemExit) as error:  # importing runs foreign code: it may raise anything, or even exit
        raise WrongUsage(f"{label}: {place} raises {_said(error)}") from error


def _file(path: Path, label: str) -> ModuleType:
    try:
        path = path.expanduser().resolve()
        is_there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a NUL in it, an unknown user
        raise WrongUsage(f"{label}: no such file ({first_line(error)})") from error
    if not is_there:
        raise WrongUsage(f"{label}: {path} {'is a folder; name a .py file' if path.is_dir() else 'does not exist'}")
    if importlib.util.spec_from_file_location(path.stem, path) is None:
        raise WrongUsage(f"{label}: {path} is no Python file; name a .py file")
    try:
        return module_of(path)
    except (Exception, SystemExit) as error:  # loading runs foreign code: it may raise anything, or even exit
        raise WrongUsage(f"{label}: {path.name} raises {_said(error)}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
