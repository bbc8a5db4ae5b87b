"""Tables of images whose columns hold something else: each ends in one line that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from compressor.data import Samples, open_data
from compressor.errors import BadInput
from tests.data.test_data import png

STORED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE = {"bytes": png((8, 8)), "path": None}
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}

WRONG = {
    "labels as words": ([IMAGE], STORED, ["a", "b"], pa.string(), "needs a column of images and one of labels"),
    "labels as fractions": ([IMAGE], STORED, [0.5, float("nan")], pa.float64(), "needs a column of images and one of labels"),
    "no labels": ([IMAGE], STORED, [None], pa.int64(), "train has 8 of 8 rows without a label in 0..1"),
    "labels beyond the classes": ([IMAGE], STORED, [-1, 2**40], pa.int64(), "train has 8 of 8 rows without a label"),
    "bytes of no image": ([{"bytes": b"junk", "path": None}], STORED, [0, 1], pa.int64(), "row 0: not a readable image"),
    "no images": ([None], STORED, [0, 1], pa.int64(), "row 0: not a readable image"),
    "a file that is none": (
        [{"bytes": None, "path": "/etc/passwd"}],
        STORED,
        [0, 1],
        pa.int64(),
        "passwd: not a readable image",
    ),
    "numbers for images": ([1], pa.int64(), [0, 1], pa.int64(), "needs a column of images and one of labels"),
    "lists for images": ([[1, 2]], pa.list_(pa.int64()), [0, 1], pa.int64(), "needs a column of images and one of labels"),
}


def write(folder: Path, images: list, stored: pa.DataType, labels: list, numbers: pa.DataType) -> None:
    folder.mkdir()
    table = pa.table(
        {"image": pa.array(images * (8 // len(images)), stored), "label": pa.array(labels * (8 // len(labels)), numbers)}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    for split in ("train", "test"):
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("name", WRONG)
def test_columns_of_a_wrong_kind(name: str, tmp_path: Path) -> None:
    *content, words = WRONG[name]
    write(tmp_path / "table", *content)
    with pytest.raises(BadInput, match=words) as refusal:
        next(iter(Samples(open_data(str(tmp_path / "table")).train, (3, 8, 8), 8, 8)))
    assert "\n" not in str(refusal.value)


def test_the_right_kind_is_read(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    write(tmp_path / "table", [IMAGE], STORED, [0, 1], pa.int64())
    images, labels = next(iter(Samples(open_data(str(tmp_path / "table")).train, (3, 8, 8), 8, 8)))
    assert images.shape == (8, 3, 8, 8)
    assert set(labels.tolist()) == {0, 1}
