"""`.npz` files: images as numpy saves them, or plain arrays for networks that take no images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from compressor.data._draw import Drawn
from compressor.data._images import Images, Split, held_out
from compressor.errors import BadInput, first_line
from compressor.system.files import check_unpacked

LAYOUTS = (
    ("train_images", "train_labels", "test_images", "test_labels"),  # medmnist; its val_* are not used
    ("x_train", "y_train", "x_test", "y_test"),  # keras
    ("images", "labels", "test_images", "test_labels"),
    ("x", "y", "x_test", "y_test"),
    ("X", "y", "X_test", "y_test"),
    ("data", "target", "test_data", "test_target"),  # scikit-learn
    ("data", "labels", "test_data", "test_labels"),
    ("inputs", "targets", "test_inputs", "test_targets"),
)
"""Names of the inputs and targets to train on and, where there are some, to test on; the first layout that fits is read."""

IMAGE_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Columns:
    """One part of a data set of arrays.

    Attributes:
        inputs: `(samples, ...)` float32, or integers as stored.
        targets: `(samples,)` int64 of classes, or `(samples, ...)` int64 or float32.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass
class Rows(Drawn):
    """Batches `(inputs (batch, ...), targets (batch, ...))` drawn from the columns of `Arrays`, afresh in each epoch.

    Attributes:
        columns: what to draw from.
        count: samples of one epoch; all there are when the columns are shorter.
        batch_size: samples of a batch.
        seed: of the shuffle; each epoch has a shuffle of its own. None keeps the first `count` in order.
    """

    columns: Columns
    count: int
    batch_size: int
    seed: int | None = 0

    @property
    def available(self) -> int:
        """Samples there are."""
        return len(self.columns)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of these indices `(batch,)`."""
        return self.columns.inputs[chosen], self.columns.targets[chosen]


@dataclass(frozen=True)
class Arrays:
    """A data set of plain arrays, given to the network as they are: neither resized nor normalised.

    Attributes:
        name: as the user gave it.
        train: for scoring.
        test: for accuracy.
        classes: number of classes; None when the targets are no class labels.
    """

    name: str
    train: Columns
    test: Columns
    classes: int | None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    def batches(self, part: Literal["train", "test"], count: int, batch_size: int, seed: int | None = 0) -> Rows:
        """Batches of one part, drawn as `Samples` are."""
        return Rows(self.train if part == "train" else self.test, count, batch_size, seed)


HARMLESS = 300_000_000
"""Bytes of an array that may be nearly all zeros."""


def npz(path: Path) -> Images | Arrays:
    """Open a `.npz` file: `Images` for uint8 pixels with class labels, `Arrays` for all else.

    Raises:
        BadInput: it is damaged, holds Python objects, or lacks inputs and targets of one length that can be trained on.
    """
    name = str(path)
    held = _load(path)
    x = held[0][0]
    is_images = x.dtype == np.uint8 and (
        x.ndim == 3 or (x.ndim == 4 and (x.shape[3] in IMAGE_CHANNELS or x.shape[1] in IMAGE_CHANNELS))
    )
    labels = [_labels(target) for _, target in held]
    classes = None
    if all(label is not None for label in labels):
        lowest = min(int(label.min()) for label in labels if label is not None)
        if lowest < 0:
            raise BadInput(f"data {name}: labels must be 0 or more, the lowest is {lowest}; remove unlabelled samples")
        classes = 1 + max(int(label.max()) for label in labels if label is not None)
    targets = [_targets(y) if label is None else label for label, (_, y) in zip(labels, held, strict=True)]
    if is_images and classes is not None:
        if classes < 2:
            raise BadInput(f"data {name}: has one class (0); a score needs at least two")
        images = [_channels_first(x) for x, _ in held]
        parts = [_split(pixels, target) for pixels, target in zip(images, targets, strict=True)]
        _, c, h, w = images[0].shape
        if len(held) == 1:
            parts = [_part_of(images[0], targets[0], indices) for indices in held_out(len(x))]
        return Images(name, classes, parts[0], parts[1], (c, h, w))
    columns = [Columns(_inputs(x), target) for (x, _), target in zip(held, targets, strict=True)]
    if len(columns) == 1:
        whole = columns[0]
        columns = [Columns(whole.inputs[i], whole.targets[i]) for i in held_out(len(whole))]
    return Arrays(name, columns[0], columns[1], classes)


def _load(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets to train on and, where the file has some, to test on; of fitting shapes, none empty."""
    try:
        # Opened here, so that it is closed whatever the reader makes of a damaged file.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BadInput(f"data {path}: is not a .npz file; write it with numpy.savez")
            with archive:
                assert archive.zip is not None
                check_unpacked(f"data {path}", archive.zip, HARMLESS)
                names = _layout(path, archive.files)
                arrays = [_array(path, archive, name) for name in names]
    except BadInput:
        raise
    except FileNotFoundError as error:
        raise BadInput(f"data {path}: no such file") from error
    except Exception as error:  # numpy, zipfile and zlib meet damaged files with many errors, down to a MemoryError
        raise BadInput(f"data {path}: is not a .npz file, or damaged ({first_line(error)})") from error
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    for (x, y), (x_name, y_name) in zip(pairs, zip(names[::2], names[1::2], strict=True), strict=True):
        if len(x) != len(y):
            raise BadInput(f"data {path}: {x_name} has {len(x):,} samples, {y_name} {len(y):,}; they must be as many")
        for array, name, first, first_name in ((x, x_name, arrays[0], names[0]), (y, y_name, arrays[1], names[1])):
            if array.shape[1:] != first.shape[1:] or array.dtype.kind != first.dtype.kind:
                had = f"{array.dtype} {array.shape[1:]}", f"{first.dtype} {first.shape[1:]}"
                raise BadInput(f"data {path}: samples of {name} are {had[0]}, of {first_name} {had[1]}; they must be alike")
    if len(pairs) == 1 and not all(map(len, held_out(len(arrays[0])))):
        raise BadInput(f"data {path}: too few samples ({len(arrays[0])}); give at least 5")
    return pairs


def _layout(path: Path, found: list[str]) -> tuple[str, ...]:
    """Names of the arrays to read: two, or four where there is a test part."""
    for names in LAYOUTS:
        if set(names[:2]) <= set(found):
            tests = [name for name in names[2:] if name in found]
            if len(tests) == 1:
                absent = next(name for name in names[2:] if name not in found)
                raise BadInput(f"data {path}: has {tests[0]} but no {absent}; give both, or neither")
            return names if tests else names[:2]
    has = ", ".join(found[:10]) or "nothing"
    raise BadInput(f"data {path}: needs arrays x and y, images and labels, or x_train, y_train, x_test, y_test; it has {has}")


def _array(path: Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise BadInput(f"data {path}: {name} holds Python objects, which are not loaded; save it as plain numbers") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"data {path}: {name} is no array, or damaged")
    if array.dtype.kind not in "buif":
        raise BadInput(f"data {path}: {name} holds {array.dtype}; only numbers can be used")
    if array.ndim == 0 or array.size == 0:
        raise BadInput(f"data {path}: {name} is {'a single number' if array.ndim == 0 else 'empty'}; give an array of samples")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(np.float32)
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            raise BadInput(f"data {path}: {name} holds {wrong:,} numbers that are NaN or infinite in float32; remove them")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and int(array.max()) > np.iinfo(np.int64).max:
        raise BadInput(f"data {path}: {name} holds numbers above the largest int64")
    return array


def _labels(y: np.ndarray) -> Tensor | None:
    """Class labels `(n,)` int64 from integers `(n,)` or `(n, 1)`; None for other targets."""
    is_column = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    return torch.from_numpy(y.reshape(-1).astype(np.int64)) if is_column and y.dtype.kind in "ui" else None


def _targets(y: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(y, dtype=np.float32 if y.dtype.kind == "f" else np.int64))


def _inputs(x: np.ndarray) -> Tensor:
    """Inputs as stored, in the machine's byte order; float32 for floats and booleans."""
    if x.dtype.kind in "bf":
        return torch.from_numpy(np.array(x, dtype=np.float32))
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:
        return torch.from_numpy(x.astype(np.int64))  # torch can hold wider unsigned integers, but hardly index or embed them
    return torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("=")))


def _channels_first(x: np.ndarray) -> np.ndarray:
    """Pixels `(n, c, h, w)` from `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`; channels last, numpy's habit, first."""
    if x.ndim == 3:
        return x[:, None]
    return x.transpose(0, 3, 1, 2) if x.shape[3] in IMAGE_CHANNELS else x


def _split(pixels: np.ndarray, labels: Tensor) -> Split:
    return _part_of(pixels, labels, torch.arange(len(labels)))


def _part_of(pixels: np.ndarray, labels: Tensor, indices: Tensor) -> Split:
    def fetch(chosen: Tensor) -> list[Tensor]:
        places = indices[chosen].numpy()
        return list(torch.from_numpy(np.ascontiguousarray(pixels[places]).astype(np.float32) / 255))

    return Split(labels[indices], fetch)
