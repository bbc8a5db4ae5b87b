"""Start-up, in whole processes: `python -m compressor.benchmarks.studies.startup`, as `make bench` runs it.

A command that only makes a network is compared with `import torch`; a pruning with its proofs and its `.onnx` with a bare
script, `bare_export.py`, that imports torch, exports the same LeNet5 and runs it once in ONNX Runtime; `show`, whose groups
come from `torch.export`, with that script's export alone. Both of a pair run in turn, A B A B, after a warm-up that fills
the caches of files. Raw values go to a file: seconds by the clock, and those of processor time, which a busy machine
stretches less.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compressor.benchmarks.measure.latency import quartiles
from compressor.benchmarks.studies import bare_export
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.system.environment import environment

COMPRESS = [sys.executable, "-m", "compressor.cli"]
BARE = [sys.executable, bare_export.__file__]


@dataclass(frozen=True)
class Pair:
    """A command and the least that it could take; they write into the folder that they run in.

    Attributes:
        bar: the most that the command's seconds may be of the bare ones; None where there is none.
    """

    bare: list[str]
    ours: list[str]
    bar: float | None = None


PAIRS = {
    "new": Pair([sys.executable, "-c", "import torch"], [*COMPRESS, "new", "lenet5", "-o", "net.pt"], 1.3),
    "show": Pair(BARE, [*COMPRESS, "show", "net.pt"]),
    "prune to .onnx": Pair(
        [*BARE, "bare.onnx"],
        [*COMPRESS, "l1-filters", "net.pt", "--sparsity", "0.5", "-o", "small.onnx"],
        1.5,
    ),
}


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of one process: by the clock, and of processor time."""
    used, start = _used(), time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return time.perf_counter() - start, _used() - used


def _used() -> float:
    """Seconds of processor time of all processes that this one started and that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def measured(pair: Pair, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both commands of a pair, in turn."""
    values = [[run(command, folder) for command in (pair.bare, pair.ours)] for _ in range(rounds + 1)][1:]
    return {
        who: {kind: [both[place][n] for both in values] for n, kind in enumerate(("wall_s", "cpu_s"))}
        for place, who in enumerate(("bare", "ours"))
    }


def ratios(found: dict[str, Any], kind: str) -> tuple[float, float, float]:
    """Quartiles of ours / bare, pair by pair."""
    return quartiles([a / b for a, b in zip(found["ours"][kind], found["bare"][kind], strict=True)])


def summary(document: dict[str, Any]) -> str:
    """A line for each pair."""
    lines = []
    for name, found in document["pairs"].items():
        (low, middle, high), processor = ratios(found, "wall_s"), ratios(found, "cpu_s")[1]
        bare, ours = (median(found[who]["wall_s"]) for who in ("bare", "ours"))
        bar = "" if found["bar"] is None else f", at most {found['bar']} wanted"
        lines.append(
            f"  {name:<15} {ours:5.2f} s, bare {bare:5.2f} s, ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f}), "
            f"of processor time {processor:.2f}{bar}"
        )
    before, after = document["load"]
    return "\n".join([*lines, f"  load of the machine {before:.1f} before, {after:.1f} after"])


def main() -> None:
    """Measure, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    chosen = parser.parse_args()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        pairs = {
            name: {"bar": pair.bar} | measured(pair, Path(folder), chosen.rounds)
            for name, pair in PAIRS.items()  # the first makes the network that the others read
        }
    load.append(os.getloadavg()[0])
    document = {"schema": 1, "environment": environment(), "load": load, "rounds": chosen.rounds, "pairs": pairs}
    write(document, chosen.output)
    print(summary(document))


if __name__ == "__main__":
    main()
