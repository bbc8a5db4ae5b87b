"""Seeded damage to checkpoints, plans and images, through the command: one line or a sound file, never anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor import Plan, compress, networks, save
from compressor.errors import CompressError
from tests import ROOT
from tests.damage import damages, misfilled

COUNT = 250
"""Of each of the four kinds: 1,000 in all."""

FUZZ = """
import contextlib, io, json, os, sys, warnings
from pathlib import Path
from compressor import cli, load
from tests.damage import damages, misfilled

name, count = sys.argv[1], int(sys.argv[2])
os.chdir(sys.argv[3])
target, victim = Path("small.safetensors"), Path(name)
good, refused = victim.read_bytes(), 0
files = sorted(p.name for p in Path().rglob("*"))
contents = damages(good, count)
if name == "plan.json":
    half = list(damages(good, count // 2))
    contents = [*half, *(misfilled(good.decode(), seed).encode() for seed in range(count - len(half)))]
for number, content in enumerate(contents):
    victim.write_bytes(content)
    target.write_bytes(b"old")
    model = name if name.startswith("net.") else "net.pt"
    sys.argv = ["compress", "apply", "plan.json", model, "-o", str(target), "--quiet", "--data", "images"]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("error")
            cli.main()
    except SystemExit as end:
        code = end.code
    lines = err.getvalue().splitlines()
    if code == 0:
        assert not lines, (number, lines)
        load(target)
    else:
        refused += 1
        assert code in (1, 2) and len(lines) == 1 and lines[0].startswith("compress: "), (number, code, lines)
        assert target.read_bytes() == b"old", number
    assert not out.getvalue(), (number, out.getvalue())
    assert sorted(p.name for p in Path().rglob("*")) == files, number
print(refused)
"""


@pytest.fixture(scope="module")
def pruned() -> tuple[torch.nn.Module, Plan]:
    model = networks.build("lenet300100", image_size=8, seed=1)
    data = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))]
    return model, compress(model, "snapit", data, 0.9).plan


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "plan.json", "images/b/2.png"])
def test_damaged_files(name: str, pruned, tmp_path: Path) -> None:
    """In a process of its own: a native reader that crashes must not take the tests along."""
    from PIL import Image

    model, plan = pruned
    save(model, tmp_path / "net.pt")
    save(model, tmp_path / "net.safetensors")
    (tmp_path / "plan.json").write_text(plan.to_json())
    generator = torch.Generator().manual_seed(0)
    for n in range(6):
        path = tmp_path / "images" / "ab"[n % 2] / f"{n // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (8, 8), generator=generator).to(torch.uint8).numpy()).save(path)
    (tmp_path / "small.safetensors").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, name, str(COUNT), tmp_path], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > COUNT // 4


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
        document["events"][-1]["kept"] |= kept
        return json.dumps(document)

    for kept, words in (
        ([0, 0, 1], "must rise"), ([1, 0], "must rise"), ([10**6], "out of range"), ([-1], "out of range"),
        ([0.5], "out of range"), ([], "keep at least one"),
    ):  # fmt: skip
        with pytest.raises(CompressError, match=words):
            Plan.from_json(changed(**{"1": kept}))
    with pytest.raises(CompressError, match="other groups"):
        Plan.from_json(changed(nosuch=[0]))
