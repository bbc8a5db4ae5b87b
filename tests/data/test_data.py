"""Real data: digits, CIFAR-10 and MNIST where they are, folders of images written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data import Samples, Synthetic, open_data
from compressor.errors import BadInput


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def folder_of_images(path: Path, *, modes: tuple[str, ...] = ("RGB",), splits: tuple[str, ...] = ("",), count: int = 5) -> Path:
    generator = np.random.default_rng(0)
    for split in splits:
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = path / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = generator.integers(0, 256, (9 + n, 7, 3), dtype=np.uint8) // (label + 1)
                Image.fromarray(pixels).convert(modes[n % len(modes)]).save(folder / f"{n}.png")
    return path


def test_digits_are_the_reference_cases_digits() -> None:
    from compressor.data._images import convert

    images = open_data("digits")
    assert (images.classes, images.native) == (10, (1, 8, 8))
    assert len(images.train.labels) + len(images.test.labels) == 1797
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    expected = np.load(Path(__file__).parent.parent / "reference" / "data_digits28.npz")
    ours = torch.stack([convert(torch.from_numpy(p / 16).float().reshape(1, 8, 8), (1, 28, 28)) for p in pixels[:160]])
    torch.testing.assert_close(ours, torch.from_numpy(expected["x"]), rtol=1e-4, atol=1e-5)
    assert labels[:160].tolist() == expected["y"].tolist()


def test_samples_are_drawn_afresh_and_repeat_by_seed() -> None:
    split = open_data("digits").train
    first, second = Samples(split, (1, 8, 8), 50, 20, 3), Samples(split, (1, 8, 8), 50, 20, 3)
    draws = [[y for _, y in first], [y for _, y in first], [y for _, y in second]]
    assert [len(y) for y in draws[0]] == [20, 20, 10]
    assert torch.equal(torch.cat(draws[0]), torch.cat(draws[2]))
    assert not torch.equal(torch.cat(draws[0]), torch.cat(draws[1]))
    assert Samples(split, (1, 8, 8), 10**6, 64, 0).size == len(split.labels)


def test_grey_becomes_colour_and_back() -> None:
    split = open_data("digits").train
    one = split.read(torch.tensor([5]), (1, 16, 16))
    three = split.read(torch.tensor([5]), (3, 16, 16))
    assert torch.equal(three, one.expand(1, 3, 16, 16))
    with pytest.raises(BadInput, match="cannot be converted"):
        split.read(torch.tensor([5]), (4, 16, 16))


def test_cifar10(shared) -> None:
    images = open_data(str(shared / "data" / "cifar10"))
    assert (images.classes, images.native) == (10, (3, 32, 32))
    assert (len(images.train.labels), len(images.test.labels)) == (50_000, 10_000)
    x = images.test.read(torch.arange(64), (3, 32, 32))
    assert x.shape == (64, 3, 32, 32)
    assert abs(float(x.mean())) < 0.5
    assert 0.7 < float(x.std()) < 1.5


def test_mnist(shared) -> None:
    images = open_data(str(shared / "data" / "mnist"))
    assert images.native == (1, 28, 28)
    x = images.train.read(torch.arange(256), (1, 28, 28))
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    images = open_data(str(folder_of_images(tmp_path / "images", modes=("RGB", "L"), count=10)))
    assert images.classes == 3
    assert (len(images.train.labels), len(images.test.labels)) == (24, 6)
    x, y = next(iter(Samples(images.train, (3, 8, 8), 6, 6)))
    assert x.shape == (6, 3, 8, 8)
    assert set(y.tolist()) <= {0, 1, 2}


def test_a_folder_with_a_test_split(tmp_path: Path) -> None:
    images = open_data(str(folder_of_images(tmp_path / "images", splits=("train", "test"), count=4)))
    assert (len(images.train.labels), len(images.test.labels)) == (12, 12)


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no images here")
    for name, message in (("nowhere", "no such folder"), ("empty", "is empty"), ("text", "cannot be read|needs a column")):
        with pytest.raises(BadInput, match=message):
            open_data(str(tmp_path / name))


def test_a_broken_image_is_named_and_one_class_is_not_enough(tmp_path: Path) -> None:
    path = folder_of_images(tmp_path / "images")
    for name in ("cat", "dog", "owl"):
        (path / name / "3.png").write_bytes(b"not a png")
    images = open_data(str(path))
    with pytest.raises(BadInput, match=r"3\.png: not a readable image"):
        list(Samples(images.train, (3, 8, 8), 99, 9))
    with pytest.raises(BadInput, match="two class folders at least"):
        open_data(str(one_class(tmp_path / "one")))


def one_class(path: Path) -> Path:
    (path / "cat").mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (8, 8), (n, n, n)).save(path / "cat" / f"{n}.png")
    return path


def test_noise_repeats_by_seed() -> None:
    a, b = Synthetic((3, 4, 4), 5, 10, 4, 1), Synthetic((3, 4, 4), 5, 10, 4, 1)
    assert [x.shape[0] for x, _ in a] == [4, 4, 2]
    assert len(a) == 3
    next(iter(b))
    assert torch.equal(next(iter(a))[0], next(iter(b))[0])
