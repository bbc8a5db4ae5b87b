"""Seeded damage to checkpoints, plans and images, through the command: one line or a sound file, never anything else."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from compressor import Plan, compress, load, networks, save
from compressor.errors import CompressError
from tests.command import isolated, run
from tests.damage import damages, misfilled

TARGET = Path("small.safetensors")


def contents_of(name: str, good: bytes, count: int) -> Iterator[bytes]:
    """Damaged contents; every other plan is sound JSON with something unexpected in it."""
    if name != "plan.json":
        yield from damages(good, count)
        return
    yield from damages(good, count // 2)
    yield from (misfilled(good.decode(), seed).encode() for seed in range(count - count // 2))


def fuzz(name: str, count: int, folder: Path) -> int:
    """How many damaged files of one kind the command refuses; what it does not refuse is sound."""
    os.chdir(folder)
    victim, refused = Path(name), 0
    files = sorted(p.name for p in Path().rglob("*"))
    for number, content in enumerate(contents_of(name, victim.read_bytes(), count)):
        victim.write_bytes(content)
        TARGET.write_bytes(b"old")
        model = name if name.startswith("net.") else "net.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            done = run("apply", "plan.json", model, "-o", TARGET, "--quiet", "--data", "images")
        lines = done.stderr.splitlines()
        if done.returncode == 0:
            assert not lines, (number, lines)
            load(TARGET)
        else:
            refused += 1
            assert done.returncode in (1, 2), number
            assert len(lines) == 1, (number, lines)
            assert lines[0].startswith("compress: "), (number, lines)
            assert TARGET.read_bytes() == b"old", number
        assert not done.stdout, (number, done.stdout)
        assert sorted(p.name for p in Path().rglob("*")) == files, number
    return refused


@pytest.fixture(scope="module")
def pruned() -> tuple[torch.nn.Module, Plan]:
    model = networks.build("lenet300100", image_size=8, seed=1)
    data = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))]
    return model, compress(model, "snapit", data, 0.9).plan


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "plan.json", "images/b/2.png"])
def test_damaged_files(name: str, count: int, pruned, tmp_path: Path) -> None:
    """In a process of its own: a native reader that crashes must not take the tests along."""
    model, plan = pruned
    save(model, tmp_path / "net.pt")
    save(model, tmp_path / "net.safetensors")
    (tmp_path / "plan.json").write_text(plan.to_json())
    generator = torch.Generator().manual_seed(0)
    for n in range(6):
        path = tmp_path / "images" / "ab"[n % 2] / f"{n // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (8, 8), generator=generator).to(torch.uint8).numpy()).save(path)
    (tmp_path / TARGET).write_bytes(b"old")
    assert isolated(fuzz, name, count, tmp_path) > count // 4


def test_damaged_plans_are_refused_or_sound(pruned) -> None:
    text, refused = pruned[1].to_json(), 0
    contents = [content.decode("utf-8", "replace") for content in damages(text.encode(), 300)]
    for content in (*contents, *(misfilled(text, seed) for seed in range(300))):
        try:
            plan = Plan.from_json(content)
        except CompressError as error:
            refused += "\n" not in str(error)
        else:
            assert all(len(k) and int(k.max()) < plan.widths[n] for n, k in plan.kept.items())
    assert refused > 300


def test_plans_that_no_pruning_made(pruned) -> None:
    def changed(**kept) -> str:
        document = json.loads(pruned[1].to_json())
        event = document["events"][-1]
        event["kept"] = ({} if event["kept"] == "as before" else event["kept"]) | kept
        event["removed"] = {name: nodes for name, nodes in event.get("removed", {}).items() if name not in kept}
        return json.dumps(document)

    for kept, words in (
        ([0, 0, 1], "must rise"), ([1, 0], "must rise"), ([10**6], "out of range"), ([-1], "out of range"),
        ([0.5], "out of range"), ([], "keep at least one"),
    ):  # fmt: skip
        with pytest.raises(CompressError, match=words):
            Plan.from_json(changed(**{"1": kept}))
    with pytest.raises(CompressError, match="other groups"):
        Plan.from_json(changed(nosuch=[0]))
