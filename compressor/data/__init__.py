"""Data for scoring and for accuracy: `digits`, folders of images, hub data sets, `.npz` files, batches of the user's code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from compressor.data._arrays import Arrays, Columns, Rows
from compressor.data._batches import Batches
from compressor.data._draw import ByEpoch, Drawn, epoch_of, epoch_seed, length_of
from compressor.data._hold import held_bytes, hold
from compressor.data._images import USUAL, Images, Preprocessing, Split
from compressor.data._random import own_randomness, seed_all
from compressor.errors import BadInput
from compressor.settings import DATA_FORMS
from compressor.system.user_code import is_named

__all__ = [
    "Arrays",
    "Batches",
    "ByEpoch",
    "Columns",
    "Drawn",
    "Images",
    "Preprocessing",
    "Rows",
    "Samples",
    "Split",
    "epoch_of",
    "epoch_seed",
    "held_bytes",
    "hold",
    "length_of",
    "open_data",
    "own_randomness",
    "seed_all",
]


def open_data(name: str, fetch: bool = True) -> Images | Arrays | Batches:
    """The data set behind `--data`.

    Args:
        name: `digits`; a folder: of class folders of images, or of parquet files in the Hugging Face layout; a `.npz`
            file; `file.py:factory` or `package.module:factory`; or a data set of the Hugging Face hub, `org/name`.
        fetch: the hub may be asked.
    Raises:
        BadInput: no such folder, file or data set, nothing readable in it, or no labelled images.
        WrongUsage: no such module or factory.
    """
    if name == "digits":
        from compressor.data._digits import digits

        return digits()
    path = Path(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise BadInput(f"data {name[:80]!r}: no such folder; name {DATA_FORMS}") from error
    if name and is_folder:
        from compressor.data._folder import folder

        return folder(path)
    if path.suffix.lower() == ".npz":
        from compressor.data._arrays import npz

        return npz(path)
    if is_file:
        raise BadInput(f"data {name}: is a file of an unknown kind; name {DATA_FORMS}")
    if is_named(name):
        from compressor.data._batches import batches

        return batches(name)
    from compressor.data._folder import hub, looks_like_hub

    if looks_like_hub(name):
        if not fetch:
            raise BadInput(f"data {name}: not on this machine, and looked up on the hub only for those who name it themselves")
        return hub(name)
    raise BadInput(f"data {name}: no such folder; name {DATA_FORMS}")


@dataclass
class Samples(Drawn):
    """Batches `(inputs (batch, c, h, w), labels (batch,))` drawn from a split, afresh in each epoch.

    Attributes:
        split: what to draw from.
        input_shape: what the images are converted to, `(c, h, w)`.
        count: samples of one epoch; all there are when the split is smaller.
        batch_size: samples of a batch.
        seed: of the shuffle; each epoch has a shuffle of its own. None keeps the first `count` in order.
        preprocessing: how the images are normalised.
    """

    split: Split
    input_shape: tuple[int, ...]
    count: int
    batch_size: int
    seed: int | None = 0
    preprocessing: Preprocessing = USUAL

    @property
    def available(self) -> int:
        """Samples there are."""
        return len(self.split.labels)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The images of these indices `(batch,)`, read and normalised, and their labels."""
        return self.split.read(chosen, self.input_shape, self.preprocessing), self.split.labels[chosen]
