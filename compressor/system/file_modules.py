"""One module per file: what is loaded by its path is what `import` gives, whichever comes first.

Classes are then the same ones on both ways, so that `isinstance` holds. Nothing is ever put in the place of another module:
a file called torch.py does not replace torch.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_LOADED: dict[str, ModuleType] = {}
"""File -> the module that it was loaded as under a name of our own."""


def module_of(path: Path) -> ModuleType:
    """The module of a Python file: the one that is there already, or a new one, made while imports look beside the file first.

    Args:
        path: of the file, resolved.
    Raises:
        Exception: whatever the file raises; it is loaded anew then by the next call.
    """
    if (module := _present(path)) is not None:
        return module
    importlib.invalidate_caches()
    name = _name_for_import(path)
    with on_path(str(path.parent)):
        return importlib.import_module(name) if name else _loaded(path)


@contextmanager
def on_path(folder: str, *, last: bool = False) -> Iterator[None]:
    """Imports also look in `folder`, first or last, while the body runs; what the body adds to the path stays."""
    sys.path.insert(len(sys.path) if last else 0, folder)
    try:
        yield
    finally:
        if last:
            sys.path.reverse()
        if folder in sys.path:
            sys.path.remove(folder)
        if last:
            sys.path.reverse()


def _present(path: Path) -> ModuleType | None:
    """The module that was made of a file already, under whatever name; the running script only where it is the only one."""
    modules = {name: module for name, module in list(sys.modules.items()) if _is_from(module, path)}
    running = [module for name in ("__main__", "__mp_main__") if (module := modules.pop(name, None)) is not None]
    return next(iter([*modules.values(), *running]), None)


def _is_from(module: Any, path: Path) -> bool:
    try:
        file = object.__getattribute__(module, "__dict__").get("__file__")  # no getattr: that would load lazy modules
    except AttributeError:  # what stands among the modules need not be one
        return False
    return isinstance(file, str) and os.path.basename(file) == path.name and os.path.realpath(file) == str(path)


def _name_for_import(path: Path) -> str | None:
    """The name by which `import` finds a file now; None where it does not, or where another file has that name too."""
    name = path.stem
    if not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names:
        return None
    elsewhere = [folder for folder in sys.path if os.path.realpath(folder) != str(path.parent)]
    return name if _origin(name) == str(path) and _origin(name, elsewhere) is None else None


def _origin(name: str, folders: Sequence[str] | None = None) -> str | None:
    """The file that would be imported from some folders, by default those of the search path."""
    spec = PathFinder.find_spec(name, folders)
    return None if spec is None or spec.origin is None else os.path.realpath(spec.origin)


def _loaded(path: Path) -> ModuleType:
    """A module made of a file under a name of our own, which stands in nothing's way."""
    stem = re.sub(r"\W", "_", path.stem)
    unique = f"_compressor_named_{stem}_{hashlib.sha256(str(path).encode(errors='surrogatepass')).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = _LOADED[str(path)] = module  # before it runs: a dataclass looks its own module up there
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del _LOADED[str(path)]
        for name in [name for name, there in sys.modules.items() if there is module]:  # its own files may have imported it
            del sys.modules[name]
        raise
    return module


class _OneModulePerFile(MetaPathFinder):
    """Asked first by `import`: where the search path leads to a file that is loaded already, its module is the one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.rpartition(".")[2]
        if target is not None or not any(Path(file).stem == name for file in _LOADED):  # a target: it is to be run anew
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None or (module := _LOADED.get(os.path.realpath(spec.origin))) is None:
            return None
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=_There(module))


_FINDER = _OneModulePerFile()


class _There(Loader):
    """Gives a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""
