"""Real data: digits, CIFAR-10 and MNIST where they are, folders of images written here."""

from __future__ import annotations

import contextlib
import gc
import io
import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor import networks
from compressor.data import Samples, open_data
from compressor.data._folder import decode
from compressor.errors import BadInput
from compressor.sources.scoring import source_for
from tests import ROOT


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
    expected = np.load(ROOT / "tests" / "methods" / "reference" / "data_digits28.npz")
    ours = torch.stack([convert(torch.from_numpy(p / 16).float().reshape(1, 8, 8), (1, 28, 28)) for p in pixels[:160]])
    torch.testing.assert_close(ours, torch.from_numpy(expected["x"]), rtol=1e-4, atol=1e-5)
    assert labels[:160].tolist() == expected["y"].tolist()


def test_samples_are_drawn_afresh_and_repeat_by_seed() -> None:
    split = open_data("digits").train
    first, second = Samples(split, (1, 8, 8), 50, 20, 3), Samples(split, (1, 8, 8), 50, 20, 3)
    draws = [[y for _, y in first], [y for _, y in first.epoch(1)], [y for _, y in second]]
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


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    path = folder_of_images(tmp_path / "images")
    for name in ("cat", "dog", "owl"):
        (path / name / "3.png").write_bytes(b"not a png")
    images = open_data(str(path))
    with pytest.raises(BadInput, match=r"3\.png: not a readable image"):
        list(Samples(images.train, (3, 8, 8), 99, 9))


@pytest.mark.parametrize("layout", ["cat", "train/cat", "deep/deeper/cat"])
def test_one_class_is_not_enough(tmp_path: Path, layout: str) -> None:
    (tmp_path / "one" / layout).mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "one" / layout / f"{n}.png")
    with pytest.raises(BadInput, match=r"has one class \(cat\); a score needs at least two"):
        open_data(str(tmp_path / "one"))


def test_images_beside_each_other_have_no_classes(tmp_path: Path) -> None:
    for n in range(6):
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / f"{n}.png")
    with pytest.raises(BadInput, match="two class folders at least"):
        open_data(str(tmp_path))


def png(size: tuple[int, int] = (8, 6), form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def test_what_datasets_would_mix_or_number_anew_is_refused(tmp_path: Path) -> None:
    """An empty class folder, and several data sets in one folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for place in ("a/train/0", "a/train/1", "a/test/0", "a/test/1", "b/0", "b/1", "b/2"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")
    assert open_data(str(tmp_path / "a")).classes == 2
    assert open_data(str(tmp_path / "b")).classes == 3
    with pytest.raises(BadInput, match=r"class 0 lies in a and in b: several data sets\? Name one of them"):
        open_data(str(tmp_path))
    for file in (tmp_path / "b" / "1").iterdir():
        file.unlink()
    with pytest.raises(BadInput, match="the class folder 1 is empty; fill or remove it"):
        open_data(str(tmp_path / "b"))
    both = tmp_path / "both"
    (both / "one").mkdir(parents=True)
    parquet(both / "one" / "train", [0, 1] * 5)
    assert open_data(str(both)).classes == 2
    parquet(both / "two", [0, 1] * 5)
    with pytest.raises(BadInput, match=r"the data lies in one and in two: several data sets\?"):
        open_data(str(both))


def parquet(path: Path, labels: list, names: tuple[str, ...] = ("cat", "dog"), images: list | None = None) -> str:
    """A table of images and labels as the hub holds them, written past the checks of `datasets`."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": png(), "path": f"{n}.png"} for n in range(len(labels))] if images is None else images
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
    path.mkdir()
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path / "train-00000-of-00001.parquet")
    return str(path)


def test_labels_of_a_table(tmp_path: Path) -> None:
    assert open_data(parquet(tmp_path / "good", [0, 1] * 5)).classes == 2
    for name, labels, message in (
        (
            "unlabelled",
            [0, 1, -1, -1, 0, 1, 0, 1, -1, 1],
            r"train has 3 of 10 rows without a label in 0\.\.1; remove those rows",
        ),
        ("null", [0, 1, None, 0, 1, 0], r"train has 1 of 6 rows without a label"),
        ("above", [0, 1, 2, 0, 1, 0], r"1 of 6 rows without a label|cannot be read \("),
    ):
        with pytest.raises(BadInput, match=message):
            open_data(parquet(tmp_path / name, labels))
    with pytest.raises(BadInput, match=r"has one class \(cat\)"):
        open_data(parquet(tmp_path / "one", [0] * 6, ("cat",)))


def test_a_broken_image_of_a_table_is_named_by_its_row(tmp_path: Path) -> None:
    good = {"bytes": png(), "path": None}
    for name, bad in (
        ("null", None),
        ("no_bytes", {"bytes": None, "path": None}),
        ("cut", {"bytes": png()[:99], "path": None}),
    ):
        images = open_data(parquet(tmp_path / name, [0, 1] * 5, images=[*[good] * 9, bad]))
        with pytest.raises(BadInput, match="row 9: not a readable image"):
            [list(Samples(split, (3, 8, 8), 99, 9)) for split in (images.train, images.test)]


def test_a_damaged_table(tmp_path: Path, capfd) -> None:
    name = Path(parquet(tmp_path / "data", [0, 1] * 5)) / "train-00000-of-00001.parquet"
    content = name.read_bytes()
    for part in (b"", b"PAR1", content[: len(content) // 2]):
        name.write_bytes(part)
        with pytest.raises(BadInput, match="cannot be read"):
            open_data(str(tmp_path / "data"))
    assert capfd.readouterr() == ("", "")


BROKEN = {
    "empty.png": b"",
    "half.png": png()[:80],
    "header.png": png()[:20],
    "half.jpg": png(form="JPEG")[:400],
    "crc.png": png()[:45] + bytes([png()[45] ^ 255]) + png()[46:],
    "palette.gif": png(form="GIF")[:30],
    "half.bmp": png(form="BMP")[:40],
    "half.tiff": png(form="TIFF")[:60],
    "half.webp": png(form="WEBP")[:50],
}


def test_every_broken_file_is_named_and_nothing_is_shown(tmp_path: Path, capfd) -> None:
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{re.escape(name)}: not a readable image; remove or replace it"):
            decode([{"bytes": None, "path": str(tmp_path / name)}], ["row 0"])
    gc.collect()  # an open file left behind would warn now
    assert capfd.readouterr() == ("", "")


def test_an_image_of_too_many_pixels(tmp_path: Path, monkeypatch, capfd) -> None:
    (tmp_path / "large.png").write_bytes(png((30, 20)))
    stored = {"bytes": None, "path": str(tmp_path / "large.png")}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # PIL warns above, and raises above twice as many
    assert decode([stored], ["row 0"])[0].shape == (3, 20, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(BadInput, match=r"large\.png: not a readable image, it has too many pixels"):
        decode([stored], ["row 0"])
    assert capfd.readouterr() == ("", "")


def test_a_damaged_exif_block_breaks_nothing(capfd) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker" * 9
    whole = png(form="JPEG", exif=exif)
    assert decode([{"bytes": whole, "path": None}], ["row 0"])[0].shape == (3, 8, 6)  # turned by a quarter
    place = whole.index(b"Exif")
    for offset in range(6, 40):
        content = bytearray(whole)
        content[place + offset] ^= 0xFF
        with contextlib.suppress(BadInput):
            assert decode([{"bytes": bytes(content), "path": None}], ["row 0"])[0].dim() == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["cifar10", "org/name", "uoft-cs/cifar10", "a/name-v1.0"])
def test_a_hub_name_without_the_hub_fails_fast(name: str, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.perf_counter()
    with pytest.raises(BadInput, match=f"data {name}: no such folder, and not on the hub or no network") as caught:
        open_data(name)
    assert time.perf_counter() - start < 10
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


NO_HUB_NAMES = (
    *("./cifar10", "/tmp/nowhere/x", "../x", "a/b/c", "images.zip", "org/data.csv", "~/x", "x/", ".hidden", ""),
    *("a b", "x\0y", "n" * 5000, "timm:resnet18"),
)


@pytest.mark.parametrize("name", NO_HUB_NAMES)
def test_a_path_never_goes_to_the_hub(name: str, tmp_path: Path, monkeypatch) -> None:
    def reached(*_args, **_options) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", reached)
    with pytest.raises(BadInput, match="no such folder"):
        open_data(name)


def test_a_hub_data_set_is_read_as_a_folder_is(tmp_path: Path, monkeypatch) -> None:
    """The hub itself cannot be had in a test: a real table stands in for what it would send."""
    import datasets

    monkeypatch.chdir(tmp_path)
    table = parquet(tmp_path / "table", [0, 1] * 5)
    load = datasets.load_dataset
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_args, **_options: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: load(table) if name == "org/name" else None)
    images = open_data("org/name")
    assert (images.name, images.classes, images.native) == ("org/name", 2, (3, 6, 8))


def test_a_table_that_names_an_address_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what lies in an archive at one; the library would."""
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("it was looked up"))
    for address in ("http://127.0.0.1:9/x.png", "zip://a.png::http://127.0.0.1:9/x.zip", "hf://datasets/x/y/z.png"):
        with pytest.raises(BadInput, match="not a readable image"):
            decode([{"bytes": None, "path": address}], ["row 0"])


def test_data_that_a_file_remembers_is_not_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda _, name, **__: asked.append(name) or 1 / 0)
    model = networks.build("lenet5", data="someone/something")
    with pytest.raises(
        BadInput, match=r"data someone/something: not on this machine, and looked up on the hub only .* with data"
    ):
        source_for(model, None)
    assert not asked
    with pytest.raises(BadInput, match="not on the hub or no network"):
        source_for(model, "someone/something")
    assert asked == ["someone/something"], "where the user names it, it is"
