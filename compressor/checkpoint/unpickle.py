"""Reading what `torch.save` wrote, without running code from the file.

The names in the pickle are listed first; then exactly those that are known to be harmless are allowed, and torch's own
restricted unpickler does the reading. Everything else is refused with the names found.
"""

from __future__ import annotations

import importlib
import io
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.checkpoint.check_module import made_intact
from compressor.errors import BadInput, first_line
from compressor.options import spelled
from compressor.system.files import check_unpacked
from compressor.system.quiet import quiet

NETWORKS = (
    "torch.nn",
    "torchvision.models",
    "torchvision.ops",
    "timm.models",
    "timm.layers",
    "transformers.models",
    "compressor.networks",
)
"""Packages whose `nn.Module` classes may be named by a file."""

NEVER = (
    "torch.nn.parallel.distributed", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat",
    "timm.models._features_fx", "timm.layers._fx", "torchvision.models.feature_extraction",
)  # fmt: skip

HELPERS = frozenset(
    [
        "argparse.Namespace", "collections.defaultdict", "datetime.date", "datetime.datetime", "datetime.timedelta",
        "compressor.types.Event", "compressor.types.InputSpec", "compressor.types.Origin", "compressor.types.Plan",  # until 0.1
        "compressor.types.plan.Event", "compressor.types.plan.Plan",
        "compressor.types.origin.InputSpec", "compressor.types.origin.Origin",
        "functools.partial", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray",
        "pathlib.PosixPath", "pathlib.PurePosixPath", "timm.layers.format.Format",
        "torch._C._nn.gelu", "torch._C._nn.silu", "torch.nn.functional.gelu", "torch.nn.functional.relu",
        "torch.nn.functional.relu6", "torch.nn.functional.silu",
    ]
)  # fmt: skip
"""Inert values and pure functions that checkpoints hold. `getattr` is not among them: a network that needs it stays refused."""

KINDS = (
    (("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic", "torch._utils._rebuild_qtensor"),
     "a quantised network; prune the float network first and quantise afterwards"),
    (("ultralytics.", "models.yolo", "models.common"),
     "an Ultralytics file; save its weights there with torch.save(YOLO(file).model.float().state_dict(), 'weights.pt') "
     "and name the network, network=file.py:factory"),
)  # fmt: skip
"""Names by which foreign kinds of file are known, and the way out."""

LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files begin that torch wrote before version 1.6."""

CALLED = (
    "__builtin__.bytearray", "builtins.bytearray", "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_nested_tensor",
)  # fmt: skip
"""torch would call them, and they take as much memory as the file says, without having it; checkpoints do not need them."""

LARGEST_VALUES = 250_000_000
"""Bytes that the values of a pickle may take, its tensors aside."""

BYTES = {"EMPTY_SET": 250, "EMPTY_DICT": 72, "EMPTY_LIST": 64, "MARK": 64, "BINPERSID": 300, "REDUCE": 300, "NEWOBJ": 300,
         "BUILD": 100, "BINGET": 8, "LONG_BINGET": 8, "BINPUT": 100, "LONG_BINPUT": 100, "MEMOIZE": 100}  # fmt: skip
"""What is taken by each operation of a pickle, about; `ELSE` for others, and the length of what is written out."""

ELSE = 48


def read(path: Path, *, trust: bool = False) -> Any:
    """The object in a file written by `torch.save`: tensors on the CPU, containers, and networks of known classes.

    Args:
        trust: run whatever code the file names. The user's own decision, never for a file from elsewhere.
    Raises:
        BadInput: it is no such file, is damaged, or names code; nothing of it was run.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        pickles = list(_of_zip(path) if is_zip else _of_legacy(path))
        allowed = [] if trust else _allowed(path, sorted({name for content in pickles for name in _names(path, content)}))
        with _stored(path) if is_zip else path.open("rb") as file, quiet(), torch.serialization.safe_globals(allowed):
            content = torch.load(file, map_location="cpu", weights_only=not trust, mmap=is_zip)
    except BadInput:
        raise
    except _Called as error:
        raise BadInput(
            f"{path}: refused, because its pickle calls {error}; save a state dict instead, or, if you trust the file, "
            f"{spelled('trust_pickle', True)}"
        ) from error
    except MemoryError as error:
        raise BadInput(f"{path}: damaged checkpoint, or larger than this machine's memory") from error
    except Exception as error:  # damage may provoke anything in the readers
        if "Only persistent_load of storage is allowed" in str(error):
            trusted = spelled("trust_pickle", True)
            way = f"save its state dict, save it again with a newer torch, or, if you trust the file, {trusted}"
            raise BadInput(f"{path}: a whole network in the format of before torch 1.6; {way}") from error
        raise BadInput(f"{path}: damaged checkpoint ({_cause(error)})") from error
    try:
        return made_intact(content, _real, trust)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


class _Called(Exception):
    """A pickle calls the constructor of a network's class."""


class _Shell(type):
    """Stands in for a network's class while a file is read: constructors are code, and some compile what they are given.

    A pickle may make an empty instance of it and fill that, which is how networks are saved, but it cannot call it; and what
    the real class does with what it is filled with is not done before that was checked.
    """

    real: type[nn.Module]

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise _Called(f"{cls.real.__module__}.{cls.real.__qualname__}")

    @classmethod
    def around(cls, real: type[nn.Module]) -> _Shell:
        """The stand-in for a class."""
        return cls(real.__qualname__, (_Filled,), {"real": real})


class _Filled:
    """An instance of a stand-in."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _Called("a network is filled with what is no dict")
        self.__dict__.update(state)


class _Named:
    """Stands in for a function that a network may hold: called on a tensor that repeats itself, it would take any memory."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real = real

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise _Called(f"{self.real.__name__}")


def _real(value: Any) -> Any:
    """What is behind a stand-in: a function, a network's class, or, behind an instance of that, a network as it was filled."""
    if isinstance(value, (_Shell, _Named)):
        return value.real
    if isinstance(type(value), _Shell):
        network = nn.Module.__new__(type(value).real)
        network.__dict__.update(value.__dict__)
        return network
    return value


@contextmanager
def _stored(path: Path) -> Iterator[str]:
    """A zip file whose records can be mapped into memory: this one, or a copy of it where records are compressed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if all(member.compress_type == zipfile.ZIP_STORED for member in members):
            yield str(path)
            return
        with tempfile.NamedTemporaryFile(suffix=path.suffix) as file:  # not in memory: what is refused takes none
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as copy:
                for member in members:
                    with archive.open(member) as packed, copy.open(member.filename, "w", force_zip64=True) as plain:
                        shutil.copyfileobj(packed, plain)
            file.flush()
            yield file.name  # what is mapped stays when the name is gone


def _cause(error: Exception) -> str:
    """The line of torch's long advice that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line.startswith(("WeightsUnpickler", "Trying", "Unsupported"))), first_line(error))[
        :160
    ]


def _of_zip(path: Path) -> Iterator[bytes]:
    """The pickles of a zip file, after every record was checked."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            name = member.filename
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
                raise BadInput(
                    f"{path}: refused, its record {name!r} would climb out of its folder; get the file from its source"
                )
        check_unpacked(path, archive)
        ends = {member.filename.partition("/")[2] for member in members}
        if "constants.pkl" in ends or any(end.startswith("code/") for end in ends):
            way = f"save the state dict of the network it was made from, and name that with {spelled('network')}"
            raise BadInput(f"{path}: a TorchScript file, which holds no network that can be changed; {way}")
        if "archive_format" in ends:
            raise BadInput(f"{path}: an exported program, which cannot be pruned; give the network that it was made from")
        if damaged := archive.testzip():
            raise BadInput(f"{path}: damaged checkpoint (record {damaged} fails its checksum)")
        found = [member for member in members if member.filename.partition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise BadInput(f"{path}: not a PyTorch checkpoint (a zip file with {len(found)} records data.pkl)")
        yield archive.read(found[0])


def _of_legacy(path: Path) -> Iterator[bytes]:
    """The five pickles at the start of a file that an old torch wrote."""
    with path.open("rb") as file:
        head = file.read(64)
        if LEGACY_MAGIC not in head:
            plain = head[:1] == b"\x80" and 2 <= head[1] <= 5
            what = "a plain pickle, which is never run" if plain else "or cut short"
            raise BadInput(f"{path}: not a PyTorch checkpoint, {what}; save the network or its state dict with torch.save")
        file.seek(0)
        for _ in range(5):
            start = file.tell()
            for _ in pickletools.genops(file):
                pass
            end = file.tell()
            file.seek(start)
            yield file.read(end - start)


def _names(path: Path, content: bytes) -> Iterator[str]:
    """Everything that a pickle names.

    Raises:
        BadInput: its values would take too much memory.
    """
    taken = 0
    for operation, argument, _ in pickletools.genops(io.BytesIO(content)):
        taken += BYTES.get(operation.name, ELSE) + (2 * len(argument) if isinstance(argument, (str, bytes)) else 0)
        if taken > LARGEST_VALUES:
            raise BadInput(f"{path}: refused, because the values beside its tensors take more than {LARGEST_VALUES:,} bytes")
        if operation.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL" or operation.name.startswith("EXT"):
            yield f"{operation.name} (a name that is made as it is read)"


def _allowed(path: Path, names: list[str]) -> list[Any]:
    """The objects behind the names that torch does not know itself.

    Raises:
        BadInput: a name is not known to be harmless.
    """
    for prefixes, what in KINDS:
        if any(name.startswith(prefixes) for name in names):
            raise BadInput(f"{path}: {what}")
    foreign = [name for name in names if not _known_to_torch(name)]
    found = {name: _resolved(path, name) for name in foreign}
    refused = [name for name in names if name in CALLED or (name in found and found[name] is None)]
    if refused:
        listed = ", ".join(refused[:5]) + (" ..." if len(refused) > 5 else "")
        raise BadInput(
            f"{path}: refused without running it, because its pickle names {listed}; "
            f"save a state dict instead, or, if you trust the file, {spelled('trust_pickle', True)}"
        )
    allowed: list[Any] = list(PLAIN_NUMBERS) if "numpy.dtype" in found else []  # what it makes
    for name, value in found.items():
        if isinstance(value, type) and issubclass(value, nn.Module):
            allowed.append((_Shell.around(value), name))
        elif name.startswith("torch."):
            allowed.append((_Named(value), name))
        else:
            allowed.append((value, name))
    return allowed


PLAIN_NUMBERS = tuple(
    {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgFDG"}  # not of objects: filled from a file, their bytes are pointers
)
"""NumPy's types of numbers."""


def _known_to_torch(name: str) -> bool:
    from torch._weights_only_unpickler import _get_allowed_globals

    return name.replace("__builtin__.", "builtins.", 1) in _get_allowed_globals() or name in _get_allowed_globals()


def _resolved(path: Path, name: str) -> Any:
    """The class or helper of that name; None for one that may not be named."""
    module, _, attribute = name.rpartition(".")
    is_network = _under(module, NETWORKS) and not _under(module, NEVER)
    if module.startswith("transformers.") and not module.rpartition(".")[2].startswith("modeling_"):
        is_network = False  # its other modules are scripts, which run when they are imported
    if not is_network and name not in HELPERS:
        return None
    try:
        with quiet():
            value = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        library = (error.name or module).partition(".")[0]
        if library == module.partition(".")[0] and error.name == library:
            raise BadInput(f"{path}: needs the library {library}, which is not installed: pip install {library}") from error
        return None
    except Exception as error:  # a library that does not fit the installed torch may raise anything
        library = module.partition(".")[0]
        raise BadInput(f"{path}: needs the library {library}, which cannot be imported here ({first_line(error)})") from error
    if name in HELPERS:
        return value
    is_class = isinstance(value, type) and issubclass(value, nn.Module)
    if is_class and issubclass(value, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return None  # they compile what they are filled with
    return value if is_class and f"{value.__module__}.{value.__qualname__}" == name else None  # no alias for something else


def _under(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
