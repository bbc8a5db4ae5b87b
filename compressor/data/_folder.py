"""Data read by the `datasets` library: class folders of images, parquet in the Hugging Face layout, data sets of its hub."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data._images import Images, Split, held_out
from compressor.errors import BadInput, first_line
from compressor.system.quiet import quiet

TEST_SPLITS = ("test", "validation", "val")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
HUB_TIMEOUT_S = 5.0


def folder(path: Path) -> Images:
    """Open a folder.

    Raises:
        BadInput: nothing readable in it, or no labelled images of two classes at least.
    """
    import datasets

    is_parquet = any(path.rglob("*.parquet"))
    if not is_parquet and not any(p.is_file() for p in path.rglob("*")):
        raise BadInput(f"data {path}: the folder is empty; it needs class folders of images, or parquet files")
    _check_one_data_set(path, ".parquet" if is_parquet else None)
    if is_parquet:
        return _labelled_images(str(path), lambda: datasets.load_dataset(str(path)))
    return _labelled_images(str(path), lambda: datasets.load_dataset("imagefolder", data_dir=str(path)), path)


SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"})
"""Folders that `datasets` takes for splits."""


def _check_one_data_set(path: Path, suffix: str | None) -> None:
    """Refuse what `datasets` would mix or number anew without a word: several data sets side by side, empty class folders.

    Args:
        suffix: of parquet files, which lie in one folder, or in one for each split; None for images in class folders.
    """
    places: dict[str, set[str]] = defaultdict(set)
    for folder, inner, names in os.walk(path):
        parts = [part for part in Path(folder).relative_to(path).parts if part.lower() not in SPLITS]
        seen = [name for name in names if not name.startswith(".")]
        if suffix is not None and any(name.endswith(suffix) for name in seen):
            places["the data"].add("/".join(parts))
        elif suffix is None and parts and seen:
            places[f"class {parts[-1]}"].add("/".join(parts[:-1]))
        elif suffix is None and parts and not inner:
            raise BadInput(f"data {path}: the class folder {Path(folder).relative_to(path)} is empty; fill or remove it")
    for what, where in places.items():
        if len(where) > 1:
            one, other, *_ = sorted(where)
            raise BadInput(f"data {path}: {what} lies in {one or '.'} and in {other}: several data sets? Name one of them")


def looks_like_hub(name: str) -> bool:
    """Whether a name can be one of the hub, `name` or `org/name`: no path from here or the root, no file's suffix."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).suffix[1:2].isalpha()


def hub(name: str) -> Images:
    """Open a data set of the Hugging Face hub by its name.

    Raises:
        BadInput: it is not on the hub or the hub cannot be reached, or it has no labelled images.
    """
    import datasets
    import huggingface_hub

    # Asked first, with one short attempt: load_dataset retries for half a minute, and then takes whatever folder of the
    # same name it once read on this machine.
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # each HTTP library under the hub's has errors of its own
        raise BadInput(f"data {name}: no such folder, and not on the hub or no network ({first_line(error)})") from error
    return _labelled_images(name, lambda: datasets.load_dataset(name))


def _labelled_images(name: str, load: Callable[[], Any], folders: Path | None = None) -> Images:
    """The images and labels of what `load` gives; `folders` is set where class folders name the classes."""
    import datasets

    datasets.disable_progress_bars()
    try:
        with _silent("datasets", "PIL"):
            loaded = load()
    except Exception as error:  # parsers of many formats run here, each with errors of its own
        raise BadInput(f"data {name}: cannot be read ({first_line(error)})") from error
    first = loaded[next(iter(loaded))]
    image = next((n for n, f in first.features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in first.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is not None and label is None and folders is not None:
        _check_class_folders(folders)
    if image is None or label is None:
        has = ", ".join(first.features)
        raise BadInput(f"data {name}: needs a column of images and one of labels (two class folders at least), it has {has}")
    classes = first.features[label].names
    if len(classes) < 2:
        raise BadInput(f"data {name}: has one class ({', '.join(classes)}); a score needs at least two")
    train_name = "train" if "train" in loaded else next(iter(loaded))
    test_name = next((n for n in TEST_SPLITS if n in loaded and n != train_name), None)
    train_rows, test_rows = loaded[train_name], loaded[test_name or train_name]
    if test_name:
        train, test = torch.arange(len(train_rows)), torch.arange(len(test_rows))
    else:
        train, test = held_out(len(train_rows))
    if not len(train) or not len(test):
        raise BadInput(f"data {name}: too few images ({len(train_rows)}); give at least 5")
    splits = []
    for part, rows, indices in ((train_name, train_rows, train), (test_name or train_name, test_rows, test)):
        missing = {image, label} - set(rows.column_names)
        if missing:
            raise BadInput(f"data {name}: {part} has no column {', '.join(sorted(missing))}, which {train_name} has")
        splits.append(_split(rows, indices, image, _labels(rows, label, len(classes), f"data {name}: {part}")))
    native = splits[0].fetch(torch.tensor([0]))[0].shape
    return Images(name, len(classes), splits[0], splits[1], (native[0], native[1], native[2]))


def _check_class_folders(path: Path) -> None:
    """Raise BadInput when all files lie in one class folder, for which the library gives no labels."""
    classes = {p.parent.name for p in path.rglob("*") if p.is_file() and p.parent != path}
    if len(classes) == 1:
        raise BadInput(f"data {path}: has one class ({classes.pop()}); a score needs at least two, each a folder of images")


def _labels(rows: Any, label: str, classes: int, where: str) -> Tensor:
    """All labels of a table, `(rows,)` int64; an unlabelled row is usually -1 or null."""
    labels = torch.tensor([-1 if value is None else value for value in rows[label]], dtype=torch.int64)
    wrong = int(((labels < 0) | (labels >= classes)).sum())
    if wrong:
        raise BadInput(f"{where} has {wrong:,} of {len(labels):,} rows without a label in 0..{classes - 1}; remove those rows")
    return labels


def _split(rows: Any, indices: Tensor, image: str, labels: Tensor) -> Split:
    import datasets

    mode = rows.features[image].mode
    rows = rows.cast_column(image, datasets.Image(decode=False))

    def fetch(chosen: Tensor) -> list[Tensor]:
        places = indices[chosen].tolist()
        return decode(rows[places][image], [f"row {place}" for place in places], mode)  # rows one by one take twice as long

    return Split(labels[indices], fetch)


def decode(stored: Sequence[dict[str, Any] | None], rows: Sequence[str], mode: str | None = None) -> list[Tensor]:
    """Images `(channels, h, w)` float32 in [0, 1], each from its `bytes` or the file at its `path`.

    Raises:
        BadInput: one cannot be decoded; the message names its file, or its row where it lies inside a table.
    """
    # PIL warns of truncated files, damaged EXIF and large images, which can all be decoded. It is silenced once for all:
    # to do so takes as long as to decode a small image.
    with _silent("PIL"):
        return [_decoded(one, row, mode) for one, row in zip(stored, rows, strict=True)]


def _decoded(stored: dict[str, Any] | None, row: str, mode: str | None) -> Tensor:
    import datasets
    from PIL import Image

    name = (stored or {}).get("path") or row
    try:
        content = _in_memory(stored)
        is_tiff = (content.get("bytes") or b"")[:2] in (b"II", b"MM")
        with quiet() if is_tiff else nullcontext():  # libtiff prints by itself
            return _pixels(datasets.Image(mode=mode).decode_example(content))
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name}: not a readable image, it has too many pixels; resize or remove it") from error
    except Exception as error:  # PIL's decoders meet broken files with struct.error, EOFError, zlib.error, TypeError, ...
        raise BadInput(f"{name}: not a readable image; remove or replace it") from error


@contextmanager
def _silent(*loggers: str) -> Iterator[None]:
    """Warnings and logs of these libraries are dropped: what matters of them comes as an exception."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in loggers:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _in_memory(stored: dict[str, Any] | None) -> dict[str, Any]:
    """The stored image with its bytes: decoding those leaves no open file behind when it fails."""
    if stored is None:
        raise ValueError("the row has no image")
    path = stored.get("path")
    if stored.get("bytes") is None and path:
        return {"path": path, "bytes": Path(path).read_bytes()}  # a file, never an address: the library would fetch that
    return stored


def _pixels(picture: Any) -> Tensor:
    """A PIL image as `(channels, h, w)` float32 in [0, 1]: grey stays grey, everything else becomes RGB."""
    grey = picture.mode in ("1", "L", "LA", "I", "I;16")
    array = np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())
