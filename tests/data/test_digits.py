"""The digits are scikit-learn's, without its import."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from compressor.data import _digits, open_data
from compressor.errors import MissingEnvironment


def test_the_file_holds_what_load_digits_gives() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows = _digits._rows()
    assert rows.dtype == pixels.dtype
    assert np.array_equal(rows[:, :-1], pixels)
    assert np.array_equal(rows[:, -1], labels)


def test_scikit_learn_is_asked_where_its_file_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _digits._rows()
    monkeypatch.setattr(_digits, "FILE", "moved/digits.csv.gz")
    assert np.array_equal(_digits._rows(), rows)


def test_without_scikit_learn_there_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingEnvironment, match="pip install scikit-learn"):
        open_data("digits")
