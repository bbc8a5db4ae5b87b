"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from compressor.errors import BadInput, CompressError, WrongUsage

CHECKPOINTS = (".pt", ".safetensors")
"""Files that hold a network for this tool."""

WRITTEN = (".onnx", ".pt2", *CHECKPOINTS)
"""Files that a network is written to."""


def check_name(path: Path) -> None:
    """Refuse the name of a file that libraries cannot open.

    Raises:
        BadInput: it is not UTF-8, or links to itself.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{path}: its name is not UTF-8; rename it") from error
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise BadInput(f"{path}: {os.strerror(error.errno)}") from error
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def check_target(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a target that could not be written, before any work is done.

    Raises:
        WrongUsage: unknown suffix.
        BadInput: the folder is missing or read-only, or the target is a folder.
    """
    check_name(path)
    if path.suffix not in suffixes:
        raise WrongUsage(f"{path}: unknown suffix {path.suffix or '(none)'}; choose {', '.join(suffixes)}")
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"{path}: the folder {folder} does not exist; make it first")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: is a device or pipe; name a file")
    try:
        with tempfile.TemporaryFile(dir=folder):  # nameless where the system can: it leaves nothing, even when killed
            pass
    except OSError as error:
        raise BadInput(f"{path}: cannot write into {folder} ({error.strerror}); choose another folder") from error


@contextmanager
def staged(*targets: Path) -> Iterator[list[Path]]:
    """Temporary files beside their targets: all renamed when the body ends well, all removed when it does not.

    Renames come one after the other, in the order of the targets, when all that was written is on disk; signals wait for
    their end. A watcher outlives a process that is killed: it removes the files, or, once renaming began, renames the rest.
    Should the system refuse a rename (a target became a folder), those before it stand.

    Example:
        with staged(Path("small.onnx")) as [temporary]:
            temporary.write_bytes(content)

    Raises:
        BadInput: the disk is full, or a quota is.
    """
    targets = tuple(target.resolve() for target in targets)  # through links, as writing to them would
    temporary = [t.with_name(f".{t.stem[:100]}.{secrets.token_hex(4)}{t.suffix}") for t in targets]
    with _settled_after(temporary, targets) as begin:
        for path in temporary:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            yield temporary
            for path in temporary:
                _settle(path)
        except CompressError:
            raise
        except Exception as error:  # what libraries raise for a full disk has no common base
            if reason := _cannot_grow(temporary, error):
                named = ", ".join(target.name for target in targets)
                raise BadInput(f"{named}: cannot be written ({reason}); make room or choose another folder") from error
            raise
        with signals_held():
            begin()
            for path, target in zip(temporary, targets, strict=True):
                os.replace(path, target)
            for folder in dict.fromkeys(target.parent for target in targets):
                _on_disk(folder)


WATCH = """
IFS= read -r word
[ "$word" = rename ] && read -r _
while [ $# -gt 0 ]; do
  if [ "$word" != rename ]; then rm -f -- "$1"; elif [ -e "$1" ]; then mv -f -- "$1" "$2"; fi
  shift 2
done
"""
"""Waits for the pipe to close; then removes the first file of each pair, or moves it over the second if so told before."""


@contextmanager
def _settled_after(paths: Sequence[Path], targets: Sequence[Path]) -> Iterator[Callable[[], None]]:
    """The files are gone afterwards, whatever happens to this process; from the call of what is yielded on, renamed."""
    watcher = None
    if paths and (shell := shutil.which("sh")):
        pairs = itertools.chain.from_iterable(zip(map(str, paths), map(str, targets), strict=True))
        watcher = subprocess.Popen(
            [shell, "-c", WATCH, "sh", *pairs],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def begin() -> None:
        if watcher is not None and watcher.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                watcher.stdin.write(b"rename\n")
                watcher.stdin.flush()

    try:
        yield begin
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
        if watcher is not None:
            watcher.communicate()


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM that come while the body runs are delivered at its end; the main thread alone receives any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    held = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not None]
    before = [signal.signal(s, lambda number, _: came.append(number)) for s in held]
    try:
        yield
    finally:
        for kind, handler in zip(held, before, strict=True):
            signal.signal(kind, handler)
        for number in came:
            signal.raise_signal(number)


def _on_disk(folder: Path) -> None:
    """The folder's own list of names; some systems cannot be asked for it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def set_aside(path: Path, name: str) -> None:
    """Give a file a second name beside it, in place of what bore that; the file itself stays."""
    temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copy2(path, temporary)
    os.replace(temporary, path.with_name(name))


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _cannot_grow(paths: list[Path], error: Exception) -> str | None:
    """Why a file cannot take another megabyte, if that is so; libraries disguise it as errors of their own."""
    if isinstance(error, OSError) and error.errno in FULL:
        return os.strerror(error.errno)
    for path in paths:
        try:
            with path.open("ab") as file:
                file.write(bytes(PROBE))
                os.fsync(file.fileno())
        except OSError as found:
            if found.errno in FULL:
                return os.strerror(found.errno)
    return None


PROBE = 1 << 20
"""Bytes added to see whether a disk is full."""


def _settle(path: Path) -> None:
    """On disk, and readable as a newly made file would be: until now it was private."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


LARGEST_RATIO = 200
"""Unpacked over packed bytes of a record of a zip file, beyond which it is a bomb."""


def check_unpacked(label: object, archive: zipfile.ZipFile, harmless: int = 200_000) -> None:
    """Refuse a zip file whose records take far more unpacked.

    Args:
        label: how the message begins.
        harmless: bytes that a record may have however small it was packed.
    Raises:
        BadInput: naming the record.
    """
    for record in archive.infolist():
        if record.file_size > max(LARGEST_RATIO * record.compress_size, harmless):
            raise BadInput(f"{label}: refused, its record {record.filename!r} claims to unpack to {record.file_size:,} bytes")


Parsed = TypeVar("Parsed")


def parsed(path: Path, parse: Callable[[str], Parsed]) -> Parsed:
    """What a text file says.

    Raises:
        BadInput: no such file, or not one that `parse` can read; the message names it.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except RecursionError as error:
        raise BadInput(f"{path}: nested too deep") from error
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(f"{path}: {error}") from error
