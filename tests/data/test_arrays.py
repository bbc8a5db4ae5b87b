"""`.npz` files, written by numpy itself."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.data import Arrays, Images, Rows, Samples, open_data
from compressor.errors import BadInput

GENERATOR = np.random.default_rng(0)


def saved(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def pixels(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "native"),
    [
        ((20, 6, 5), (1, 6, 5)),
        ((20, 6, 5, 3), (3, 6, 5)),
        ((20, 3, 6, 5), (3, 6, 5)),
        ((20, 6, 5, 1), (1, 6, 5)),
        ((20, 1, 6, 5), (1, 6, 5)),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_pixels_are_images(tmp_path: Path, shape, native, column: bool) -> None:
    x, y = pixels(*shape), np.arange(20) % 4
    data = open_data(saved(tmp_path / "x.npz", images=x, labels=y[:, None].astype(np.uint8) if column else y))
    assert isinstance(data, Images)
    assert (data.classes, data.native) == (4, native)
    assert (len(data.train.labels), len(data.test.labels)) == (16, 4)
    every = sorted(
        float(image.sum()) for split in (data.train, data.test) for image in split.fetch(torch.arange(len(split.labels)))
    )
    np.testing.assert_allclose(every, sorted(x.reshape(20, -1).sum(1) / 255), rtol=1e-5)
    batch, labels = next(iter(Samples(data.train, (3, 8, 8), 8, 8)))
    assert batch.shape == (8, 3, 8, 8)
    assert labels.dtype == torch.int64


def test_one_pixel_is_where_it_was(tmp_path: Path) -> None:
    last = np.zeros((6, 4, 5, 3), dtype=np.uint8)
    last[:, 2, 3, 1] = 51
    for name, x in (("last", last), ("first", last.transpose(0, 3, 1, 2))):
        image = open_data(saved(tmp_path / f"{name}.npz", x=x, y=np.arange(6) % 2)).train.fetch(torch.tensor([0]))[0]
        assert image.nonzero().tolist() == [[1, 2, 3]]
        assert float(image[1, 2, 3]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
def test_a_test_part_is_used(tmp_path: Path, names) -> None:
    parts = dict(zip(names, (pixels(12, 4, 4), np.arange(12) % 3, pixels(5, 4, 4), np.arange(5)), strict=True))
    data = open_data(saved(tmp_path / "x.npz", **parts, val_images=pixels(3, 4, 4), val_labels=np.array([-1, -1, -1])))
    assert data.classes == 5
    assert data.train.labels.tolist() == parts[names[1]].tolist()
    assert data.test.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(data.test.fetch(torch.tensor([2]))[0][0] * 255, torch.from_numpy(parts[names[2]][2]).float())


def test_floats_are_arrays_as_they_are(tmp_path: Path) -> None:
    x = GENERATOR.normal(size=(50, 7)) * 1000
    data = open_data(saved(tmp_path / "x.npz", data=x, target=np.arange(50) % 5))
    assert isinstance(data, Arrays)
    assert (data.input_shape, data.classes, len(data.train), len(data.test)) == ((7,), 5, 40, 10)
    whole = torch.cat([data.train.inputs, data.test.inputs])
    assert torch.equal(whole.sort(0).values, torch.from_numpy(x).float().sort(0).values)
    place = int((torch.from_numpy(x).float()[:, 0] == data.test.inputs[3, 0]).nonzero()[0, 0])
    assert int(data.test.targets[3]) == place % 5


@pytest.mark.parametrize(
    ("x", "y", "x_type", "y_type", "classes"),
    [
        (GENERATOR.normal(size=(10, 3, 4, 4)), np.arange(10) % 3, torch.float32, torch.int64, 3),
        (GENERATOR.normal(size=(10, 2)).astype(np.float16), GENERATOR.normal(size=10), torch.float32, torch.float32, None),
        (np.arange(80).reshape(10, 8), np.arange(10) % 2, torch.int64, torch.int64, 2),
        (np.arange(80, dtype=">i4").reshape(10, 8), np.arange(10) % 2, torch.int32, torch.int64, 2),
        (np.arange(80, dtype=np.uint16).reshape(10, 8), np.arange(10) % 2, torch.int64, torch.int64, 2),
        (np.ones((10, 4, 4), dtype=np.uint8), GENERATOR.normal(size=(10, 2)), torch.uint8, torch.float32, None),
        (np.ones((10, 5), dtype=np.uint8), np.arange(10) % 2, torch.uint8, torch.int64, 2),
        (np.ones((10, 5), dtype=bool), np.ones((10, 3), dtype=np.int8), torch.float32, torch.int64, None),
        (np.ones(10), np.ones((10, 1)), torch.float32, torch.float32, None),
    ],
)
def test_types(tmp_path: Path, x, y, x_type, y_type, classes) -> None:
    data = open_data(saved(tmp_path / "x.npz", x=x, y=y))
    assert isinstance(data, Arrays)
    inputs, targets = next(iter(data.batches("train", 4, 4)))
    assert (inputs.dtype, targets.dtype, data.classes) == (x_type, y_type, classes)
    assert inputs.shape == (4, *x.shape[1:])


def test_rows_are_drawn_as_samples_are(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path / "x.npz", x=np.arange(100.0)[:, None], y=np.arange(100)))
    images = open_data(saved(tmp_path / "i.npz", x=np.arange(100, dtype=np.uint8)[:, None, None], y=np.arange(100)))
    first, second, samples = (
        data.batches("train", 50, 20, 3),
        Rows(data.train, 50, 20, 3),
        Samples(images.train, (1, 1, 1), 50, 20, 3),
    )
    draws = [torch.cat([y for _, y in rows]) for rows in (first, first.epoch(1), second, samples)]
    assert (len(first), first.size, [len(x) for x, _ in first]) == (3, 50, [20, 20, 10])
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert all(torch.equal(x[:, 0], y.float()) for x, y in first)
    assert Rows(data.test, 10**6, 7).size == 20
    assert next(iter(Rows(data.train, 3, 3, None)))[1].tolist() == data.train.targets[:3].tolist()


def broken(path: Path) -> dict[str, str]:
    """Files that cannot be used, and what is said of each."""
    x, y = np.ones((10, 4)), np.arange(10)
    long = np.full((10, 4), 1e300)
    nan, negative = x.copy(), y.copy()
    nan[3, 2], negative[4] = np.nan, -1
    files = {
        "objects": ({"x": np.array([{}] * 10, dtype=object), "y": y}, "x holds Python objects, which are not loaded"),
        "names": ({"a": x, "b": y}, "needs arrays x and y.*it has a, b"),
        "half": ({"x_train": x, "y_train": y, "x_test": x}, "has x_test but no y_test"),
        "none": ({}, "it has nothing"),
        "lengths": ({"x": x, "y": y[:9]}, "x has 10 samples, y 9"),
        "empty": ({"x": x[:0], "y": y[:0]}, "x is empty"),
        "hollow": ({"x": np.ones((10, 0)), "y": y}, "x is empty"),
        "number": ({"x": 1.0, "y": y}, "x is a single number"),
        "nan": ({"x": nan, "y": y}, "x holds 1 numbers that are NaN or infinite"),
        "overflow": ({"x": long, "y": y}, "x holds 40 numbers that are NaN or infinite"),
        "nan_target": ({"x": x, "y": nan}, "y holds 1 numbers"),
        "negative": ({"x": x, "y": negative}, "labels must be 0 or more, the lowest is -1"),
        "text": ({"x": np.array(["a"] * 10), "y": y}, "x holds <U1; only numbers"),
        "complex": ({"x": x * 1j, "y": y}, "x holds complex128"),
        "dates": ({"x": x.astype("datetime64[s]"), "y": y}, "x holds datetime64"),
        "few": ({"x": x[:2], "y": y[:2]}, r"too few samples \(2\)"),
        "shapes": (
            {"x_train": x, "y_train": y, "x_test": x[:, :3], "y_test": y},
            r"samples of x_test are float32 \(3,\), of x_train float32 \(4,\)",
        ),
        "kinds": ({"x_train": x, "y_train": y, "x_test": x, "y_test": y * 1.0}, "samples of y_test are float32"),
        "one_class": ({"x": pixels(10, 4, 4), "y": y * 0}, "has one class"),
        "huge": ({"x": np.full((10, 2), 2**63, dtype=np.uint64), "y": y}, "above the largest int64"),
    }
    said = {saved(path / f"{name}.npz", **arrays): message for name, (arrays, message) in files.items()}
    for name, content in (("text", b"no archive at all"), ("zero", b""), ("cut", (path / "nan.npz").read_bytes()[:300])):
        (path / f"{name}_.npz").write_bytes(content)
        said[str(path / f"{name}_.npz")] = "is not a .npz file, or damaged"
    np.save(path / "plain.npy", x)
    (path / "plain.npy").rename(path / "plain.npz")
    said[str(path / "plain.npz")] = "is not a .npz file; write it with numpy.savez"
    with zipfile.ZipFile(path / "zip.npz", "w") as archive:
        archive.writestr("x.npy", "text")
        archive.writestr("y.npy", "text")
    said[str(path / "zip.npz")] = "x is no array, or damaged"
    said[str(path / "nowhere.npz")] = "no such file"
    return said


def test_what_is_no_data(tmp_path: Path) -> None:
    for name, message in broken(tmp_path).items():
        with pytest.raises(BadInput, match=message) as caught:
            open_data(name)
        assert str(caught.value).startswith(f"data {name}: ")
        assert "\n" not in str(caught.value)


def test_an_array_of_zeros_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (400000, 1, 28, 28), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            file.write(header)
            for _ in range(400):
                file.write(bytes(784_000))
        archive.writestr("y.npy", header.replace(b"(400000, 1, 28, 28)", b"(400000,)          ") + bytes(range(2)) * 200_000)
    with pytest.raises(BadInput, match=r"data .*x\.npz: refused, its record 'x\.npy' claims to unpack to 313,600,128 bytes"):
        open_data(str(tmp_path / "x.npz"))
