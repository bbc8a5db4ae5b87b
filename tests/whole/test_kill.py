"""Killed at any moment, or out of room: every target is the old file or a complete new one, and nothing else stays."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch

from compressor import cli, load, networks, save
from compressor.errors import BadInput
from compressor.exporters import export
from tests.command import COMMAND, FORKS, isolated, wait_for

TARGETS = ("small.onnx", "small.safetensors", "report.json")


def command(folder: Path) -> list[str]:
    outputs = ["-o", "small.onnx", "-o", "small.safetensors", "--report", "report.json"]
    how = ["--sparsity", "0.5", *outputs, "--samples", "64", "--quiet"]
    return [*COMMAND, "snap", "net.pt", *how]


def complete(path: Path) -> None:
    """Whether a file is a whole one of its kind."""
    if path.suffix == ".onnx":
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    elif path.suffix == ".json":
        assert json.loads(path.read_text())["schema"] == 1
    else:
        assert sum(p.numel() for p in load(path).parameters()) < 142_798


def kill_when(met: Callable[[], bool], folder: Path) -> bool:
    """Kill the command at a moment; whether that came. No moment leaves half a file, or another one."""
    for name in TARGETS:
        (folder / name).write_bytes(b"old")
    running = subprocess.Popen(command(folder), cwd=folder, stderr=subprocess.DEVNULL)
    while running.poll() is None and not met():
        time.sleep(0.001)
    running.kill()
    running.wait()
    is_settled(folder)
    return running.returncode == -signal.SIGKILL


def is_settled(folder: Path) -> None:
    """Every target is the file of before or a complete new one; the watcher, which outlives the command, removed the rest."""
    wait_for(lambda: {p.name for p in folder.iterdir()} == {"net.pt", *TARGETS})
    for name in TARGETS:
        if (folder / name).read_bytes() != b"old":
            complete(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(networks.build("lenet5", data="digits"), tmp_path / "net.pt")
    return tmp_path


def written(folder: Path) -> int:
    """Bytes in files that are being written; -1 where there is none."""
    with contextlib.suppress(FileNotFoundError):  # it has its name by now
        return sum((p.stat().st_size for p in folder.glob(".*")), -1 if not list(folder.glob(".*")) else 0)
    return -1


@pytest.mark.parametrize(
    "least",
    [pytest.param(0, id="as a file appears"), pytest.param(1, id="as it grows", marks=pytest.mark.slow)],
)
def test_killed_while_it_writes(least: int, folder: Path) -> None:
    assert kill_when(lambda: written(folder) >= least, folder)


@pytest.mark.slow
def test_killed_fifty_times(folder: Path) -> None:
    """At any moment of its work."""
    start = time.monotonic()
    subprocess.run(command(folder), cwd=folder, check=True)
    duration, draw, met = time.monotonic() - start, random.Random(0), 0
    for _ in range(150):
        end = time.monotonic() + duration * draw.random()
        met += kill_when(lambda end=end: time.monotonic() > end, folder)
        if met == 50:
            return
    pytest.fail(f"only {met} of 150 kills met it still running")


def commanded(folder: Path, arguments: list[str]) -> None:
    """The command line, in a process of its own that has imported torch."""
    os.chdir(folder)
    sys.argv = ["compress", *arguments]
    cli.main()


@pytest.mark.slow
def test_killed_a_hundred_times_as_the_first_file_appears(folder: Path) -> None:
    """All files appear then, by the watcher; or none, where the kill came before."""
    arguments = [*command(folder)[len(COMMAND) :], "--plan", "plan.json"]
    targets, outcomes = {*TARGETS, "plan.json"}, {"all": 0, "none": 0}
    for _ in range(100):
        running = FORKS.Process(target=commanded, args=(folder, arguments))
        running.start()
        while running.is_alive() and not targets & {p.name for p in folder.iterdir()}:
            time.sleep(0.0002)
        running.kill()
        running.join()
        wait_for(lambda: not list(folder.glob(".*")))
        there = {p.name for p in folder.iterdir()} & targets
        assert there in (targets, set()), there
        outcomes["all" if there else "none"] += 1
        for name in there:
            complete(folder / name) if name in TARGETS else json.loads((folder / name).read_text())
            (folder / name).unlink()
    assert outcomes["all"] > 50, outcomes


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
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.onnx": b"old", "b.pt": b"old"}


def exported_into(folder: Path, largest: int | None, *suffixes: str) -> list[str]:
    """What is said where a network is exported into a folder that does not take files of its size."""
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    model, said = networks.build("lenet5").eval(), []
    for suffix in suffixes:
        try:
            export(model, folder / f"small{suffix}", example_inputs=(torch.randn(4, 1, 28, 28),))
        except BadInput as error:
            said.append(str(error))
    return said


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    suffixes = (".pt", ".safetensors", ".onnx", ".pt2")
    for suffix in suffixes:
        (tmp_path / f"small{suffix}").write_bytes(b"old")
    said = isolated(exported_into, tmp_path, 100_000, *suffixes)
    reason = "cannot be written (File too large); make room or choose another folder"
    assert said == [f"small{suffix}: {reason}" for suffix in suffixes]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {f"small{suffix}": b"old" for suffix in suffixes}


def test_two_processes_write_the_same_target(folder: Path) -> None:
    both = [subprocess.Popen([*command(folder), "--seed", str(seed)], cwd=folder) for seed in (0, 1)]
    assert [one.wait() for one in both] == [0, 0]
    assert all((folder / name).stat().st_size for name in TARGETS)
    is_settled(folder)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_really_full_file_system(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", room], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        said = isolated(exported_into, room, None, ".pt", ".safetensors", ".onnx")
        assert len(said) == 3
        assert all("cannot be written (No space left on device)" in line for line in said)
        assert not list(room.iterdir())
    finally:
        subprocess.run(["umount", room], check=True)
