"""Where a result was made: no number is shown without it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from compressor.errors import MissingEnvironment, WrongUsage
from compressor.options import spelled

PACKAGES = ("compressor", "torch", "onnx", "onnxruntime-gpu", "onnxruntime", "torch-pruning")


def prepare(device: str, threads: int | None) -> None:
    """Set this process up for work on a device: its threads, and products in full float32.

    Raises:
        MissingEnvironment: there is no such device here.
        WrongUsage: nor anywhere.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingEnvironment(f"no CUDA device here; use {spelled('device', 'cpu')}")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number or "0") != str(int(number) if number.isdecimal() else 0):
        raise WrongUsage(f"{spelled('device', device)}: choose cpu, cuda or cuda:1")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MissingEnvironment(f"no device {device} here; there are {torch.cuda.device_count()}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if threads:
        torch.set_num_threads(threads)


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, processor, threads, and the commit where the code runs from a checkout."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": found,
        "commit": _commit(),
        "device": device,
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str | None:
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
