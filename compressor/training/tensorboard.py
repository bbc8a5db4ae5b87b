"""A training's epochs as TensorBoard's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from compressor.errors import BadInput, MissingEnvironment
from compressor.options import spelled
from compressor.training.history import Row


@contextmanager
def watched(folder: Path | None) -> Iterator[Callable[[Row], None]]:
    """What is to be called after each epoch; it does nothing without a folder.

    Raises:
        MissingEnvironment: TensorBoard is not installed.
        BadInput: the folder is a file.
    """
    if folder is None:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingEnvironment("TensorBoard is not installed here: pip install tensorboard") from error
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{spelled('tensorboard', folder)}: is a file; name a folder")
    with SummaryWriter(str(folder)) as writer:

        def on_epoch(row: Row) -> None:
            for name, value in asdict(row).items():
                if value is not None and name != "epoch":
                    writer.add_scalar(name, value, row.epoch)

        yield on_epoch
