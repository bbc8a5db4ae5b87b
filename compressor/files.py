"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import BadInput, WrongUsage


def check_target(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a target that could not be written, before any work is done.

    Raises:
        WrongUsage: unknown suffix.
        BadInput: the folder is missing or read-only, or the target is a folder.
    """
    if path.suffix not in suffixes:
        raise WrongUsage(f"{path}: unknown suffix {path.suffix or '(none)'}; choose {', '.join(suffixes)}")
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"{path}: the folder {folder} does not exist; make it first")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file")
    try:
        descriptor, probe = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    except OSError as error:
        raise BadInput(f"{path}: cannot write into {folder} ({error.strerror}); choose another folder") from error
    os.close(descriptor)
    os.unlink(probe)


@contextmanager
def staged(*targets: Path) -> Iterator[list[Path]]:
    """Temporary files beside their targets: all renamed when the body ends well, all removed when it does not.

    Example:
        with staged(Path("small.onnx")) as [temporary]:
            temporary.write_bytes(content)
    """
    temporary: list[Path] = []
    targets = tuple(target.resolve() for target in targets)  # through links, as writing to them would
    try:
        for target in targets:
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
            os.close(descriptor)
            temporary.append(Path(name))
        yield temporary
        for path in temporary:
            _settle(path)
        for path, target in zip(temporary, targets, strict=True):
            os.replace(path, target)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """On disk, and readable as a newly made file would be (mkstemp makes it private)."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    with path.open("rb") as file:
        os.fsync(file.fileno())
