"""Damaged files, by seeded mutation: they are read, or refused in one line; warnings are errors here."""

from __future__ import annotations

import gc
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data import Arrays, Rows, Samples, open_data
from compressor.data._folder import decode
from compressor.data._images import convert
from compressor.errors import BadInput
from tests.damage import damages

MUTATIONS = 200


def image(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form, exif=exif, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_images_of_a_folder(tmp_path: Path, form: str, capfd) -> None:
    path = tmp_path / f"mutated.{form.lower()}"
    refused = []
    for content in damages(image(form), MUTATIONS):
        path.write_bytes(content)
        try:
            pixels = decode([{"bytes": None, "path": str(path)}], ["row 0"])[0]
            assert torch.isfinite(convert(pixels, (3, 8, 8))).all()
        except BadInput as error:
            refused.append(str(error))
    gc.collect()  # an open file left behind would warn now
    assert 0 < len(refused) < MUTATIONS
    assert all(message.startswith(f"{path}: not a readable image") for message in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_npz(tmp_path: Path, compressed: bool, kind: type, capfd) -> None:
    file = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(file, x=np.random.default_rng(0).integers(0, 9, (20, 4, 4)).astype(kind), y=np.arange(20) % 3)
    path = tmp_path / "mutated.npz"
    refused = []
    for content in damages(file.getvalue(), MUTATIONS):
        path.write_bytes(content)
        try:
            data = open_data(str(path))
            drawn = Rows(data.train, 8, 8) if isinstance(data, Arrays) else Samples(data.train, (1, 8, 8), 8, 8)
            assert torch.isfinite(next(iter(drawn))[0].float()).all()
        except BadInput as error:
            refused.append(str(error))
    gc.collect()
    assert 0 < len(refused) < MUTATIONS
    assert all(message.startswith(f"data {path}: ") and "\n" not in message for message in refused)
    assert capfd.readouterr() == ("", "")
