"""Killed at any moment, or out of room: every target is the old file or a complete new one, and nothing else stays."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest

from compressor import load, networks, save

TARGETS = ("small.onnx", "small.safetensors", "report.json")


def command(folder: Path) -> list[str]:
    outputs = ["-o", "small.onnx", "-o", "small.safetensors", "--report", "report.json"]
    how = ["--sparsity", "0.5", *outputs, "--samples", "64", "--quiet"]
    return [sys.executable, "-m", "compressor.cli", "snap", "net.pt", *how]


def complete(path: Path) -> None:
    """Whether a file is a whole one of its kind."""
    if path.suffix == ".onnx":
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    elif path.suffix == ".json":
        assert json.loads(path.read_text())["schema"] == 1
    else:
        assert sum(p.numel() for p in load(path).parameters()) < 142_798


def settled(folder: Path) -> set[str]:
    """The folder's files once the watcher has done its work."""
    expected = {"net.pt", *TARGETS}
    for _ in range(40):
        names = {p.name for p in folder.iterdir()}
        if names == expected:
            break
        time.sleep(0.05)
    return names


def killed(folder: Path, kills: int, from_share: float) -> int:
    """Kill the command `kills` times after a random share of its duration; how many met it still running."""
    save(networks.build("lenet5", data="digits"), folder / "net.pt")
    start = time.monotonic()
    subprocess.run(command(folder), cwd=folder, check=True)
    duration, met = time.monotonic() - start, 0
    draw = random.Random(0)
    for _ in range(3 * kills):
        if met == kills:
            break
        for name in TARGETS:
            (folder / name).write_bytes(b"old")
        running = subprocess.Popen(command(folder), cwd=folder, stderr=subprocess.DEVNULL)
        try:
            running.wait(duration * draw.uniform(from_share, 1.0))
        except subprocess.TimeoutExpired:
            met += 1
        running.kill()
        running.wait()
        assert settled(folder) == {"net.pt", *TARGETS}
        for name in TARGETS:
            if (folder / name).read_bytes() != b"old":
                complete(folder / name)
    return met


def test_killed_while_it_writes(tmp_path: Path) -> None:
    assert killed(tmp_path, 4, 0.4) >= 1


@pytest.mark.slow
def test_killed_fifty_times(tmp_path: Path) -> None:
    assert killed(tmp_path, 50, 0.0) == 50


def test_killed_between_the_first_byte_and_the_last(tmp_path: Path) -> None:
    """The very moment in which a temporary file is there."""
    code = (
        "import os, signal; from pathlib import Path; from compressor.system.files import staged\n"
        "with staged(Path('a.onnx'), Path('b.pt')) as files:\n"
        "    files[0].write_bytes(b'half'); assert len(list(Path().iterdir())) == 4; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for name in ("a.onnx", "b.pt"):
        (tmp_path / name).write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    for _ in range(40):
        if len(list(tmp_path.iterdir())) == 2:
            break
        time.sleep(0.05)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.onnx": b"old", "b.pt": b"old"}


FULL = """
import resource, sys, torch
from compressor import networks, save
from compressor.errors import BadInput
from compressor.exporters import export
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = networks.build("lenet5").eval()
try:
    export(model, sys.argv[1], example_inputs=(torch.randn(4, 1, 28, 28),))
except BadInput as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx", ".pt2"])
def test_a_full_disk_is_one_line_and_loses_nothing(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"small{suffix}"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, target], capture_output=True, text=True)
    assert done.stdout == f"small{suffix}: cannot be written (File too large); make room or choose another folder\n", (
        done.stderr
    )
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(target.name, b"old")]


def test_two_processes_write_the_same_target(tmp_path: Path) -> None:
    save(networks.build("lenet5", data="digits"), tmp_path / "net.pt")
    both = [subprocess.Popen([*command(tmp_path), "--seed", str(seed)], cwd=tmp_path) for seed in (0, 1)]
    assert [one.wait() for one in both] == [0, 0]
    assert settled(tmp_path) == {"net.pt", *TARGETS}
    for name in TARGETS:
        complete(tmp_path / name)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_really_full_file_system(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", room], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        code = FULL.replace("resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))", "")
        for suffix in (".pt", ".safetensors", ".onnx"):
            done = subprocess.run([sys.executable, "-c", code, room / f"small{suffix}"], capture_output=True, text=True)
            assert "cannot be written (No space left on device)" in done.stdout, done.stderr
            assert not list(room.iterdir())
    finally:
        subprocess.run(["umount", room], check=True)
