"""Folders of images, read by the `datasets` library: class folders, or parquet in the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data._images import Images, Split, held_out
from compressor.errors import BadInput, first_line

TEST_SPLITS = ("test", "validation", "val")


def folder(path: Path) -> Images:
    """Open a folder.

    Raises:
        BadInput: nothing readable in it, or no labelled images.
    """
    import datasets

    datasets.disable_progress_bars()
    is_parquet = any(path.rglob("*.parquet"))
    if not is_parquet and not any(p.is_file() for p in path.rglob("*")):
        raise BadInput(f"data {path}: the folder is empty; it needs class folders of images, or parquet files")
    try:
        loaded = datasets.load_dataset(str(path)) if is_parquet else datasets.load_dataset("imagefolder", data_dir=str(path))
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"data {path}: cannot be read ({first_line(error)})") from error
    first = loaded[next(iter(loaded))]
    image = next((n for n, f in first.features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in first.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None or label is None:
        has = ", ".join(first.features)
        raise BadInput(f"data {path}: needs a column of images and one of labels (two class folders at least), it has {has}")
    train_name = "train" if "train" in loaded else next(iter(loaded))
    test_name = next((n for n in TEST_SPLITS if n in loaded and n != train_name), None)
    train_rows, test_rows = loaded[train_name], loaded[test_name or train_name]
    if test_name:
        train, test = torch.arange(len(train_rows)), torch.arange(len(test_rows))
    else:
        train, test = held_out(len(train_rows))
    if not len(train) or not len(test):
        raise BadInput(f"data {path}: too few images ({len(train_rows)}); give at least 5")
    native = _read(train_rows, int(train[0]), image).shape
    return Images(
        str(path),
        first.features[label].num_classes,
        _split(train_rows, train, image, label),
        _split(test_rows, test, image, label),
        (native[0], native[1], native[2]),
    )


def _split(rows: Any, indices: Tensor, image: str, label: str) -> Split:
    labels = torch.tensor(rows[label])[indices]

    def fetch(chosen: Tensor) -> list[Tensor]:
        return [_read(rows, place, image) for place in indices[chosen].tolist()]

    return Split(labels, fetch)


def _read(rows: Any, place: int, image: str) -> Tensor:
    """One image of a table.

    Raises:
        BadInput: it cannot be decoded; the message names its file, or its row where it lies inside a table.
    """
    try:
        return _pixels(rows[place][image])
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for broken files
        import datasets

        raw = rows.cast_column(image, datasets.Image(decode=False))[place][image]
        raise BadInput(f"{raw.get('path') or f'row {place}'}: not a readable image; remove or replace it") from error


def _pixels(picture: Any) -> Tensor:
    """A PIL image as `(channels, h, w)` float32 in [0, 1]: grey stays grey, everything else becomes RGB."""
    grey = picture.mode in ("1", "L", "LA", "I", "I;16")
    array = np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())
