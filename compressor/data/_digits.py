"""`digits`: scikit-learn's 1,797 real handwritten digits of 8x8 pixels, embedded in that library."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.data._images import Images, Split, held_out
from compressor.errors import MissingEnvironment, first_line

FILE = "datasets/data/digits.csv.gz"
"""Where the digits lie in scikit-learn: a row of 64 pixels from 0 to 16 and the label for each."""


def digits() -> Images:
    """The digits, a fifth of them held out for testing.

    Raises:
        MissingEnvironment: scikit-learn is not there, or has no digits.
    """
    rows = torch.from_numpy(_rows())
    images = (rows[:, :-1] / 16).float().reshape(-1, 1, 8, 8)
    targets = rows[:, -1].long()

    def part(indices: Tensor) -> Split:
        return Split(targets[indices], lambda chosen: list(images[indices[chosen]]))

    train, test = held_out(len(targets))
    return Images("digits", 10, part(train), part(test), (1, 8, 8))


def _rows() -> np.ndarray:
    """Pixels and label of every digit, `(1797, 65)`: from the file alone, as importing scikit-learn takes as long as torch."""
    spec = importlib.util.find_spec("sklearn")  # of a package that lies in no other, so that nothing is imported
    for folder in spec.submodule_search_locations or () if spec else ():
        if (file := Path(folder, FILE)).is_file():
            return np.loadtxt(file, delimiter=",")
    return _asked_for()


def _asked_for() -> np.ndarray:
    """The same from scikit-learn itself, where its file lies elsewhere."""
    try:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    except (ImportError, OSError) as error:
        raise MissingEnvironment(
            f"data digits: they come with scikit-learn, which has none here ({first_line(error)}); pip install scikit-learn"
        ) from error
    return np.column_stack([pixels, labels])
