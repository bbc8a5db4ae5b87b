"""The numbers of the main job: `python -m compressor.benchmarks.studies.main_job --data CIFAR10`, as `make bench` runs it.

Scoring and removing of VGG16 at 0.93 against its bound, the bare passes: forward, and backward to the activations, on each
event's network, parameters frozen, default memory layout. Both on the same samples, one thread, in pairs. Then the command
as a whole: wall-clock seconds, peak resident memory, sizes; and the start-up of `compress --help`. Raw values go to a file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import networks
from compressor.benchmarks.measure.latency import quartiles
from compressor.benchmarks.measure.memory import peak_of_command
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.coupling import structure
from compressor.data import Images, Samples, open_data
from compressor.method import make
from compressor.objective.objective import Objective
from compressor.selection.select import select
from compressor.surgery.shrink import shrink
from compressor.system.environment import environment
from compressor.types import Structure

SPARSITY = 0.93
MIB = 2**20


def seconds(job: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def bare_passes(model: nn.Module, first_reader: str, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Forward, and backward to every activation behind the first layer; nothing is recorded."""
    model.eval().requires_grad_(False)
    reader = model.get_submodule(first_reader)
    handle = reader.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach().requires_grad_(),))
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
    handle.remove()


def scoring(data: str, samples: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of each event, ours and bare, in pairs."""
    model, method = networks.build("vgg16"), make("snapit", {})
    images = open_data(data)
    assert isinstance(images, Images)
    batches = list(Samples(images.train, (3, 32, 32), samples, batch_size))
    objective = Objective(batches)
    found = structure(model, batches[0][:1])
    graph_seconds = seconds(lambda: structure(model, batches[0][:1]))
    small, left, events = model, found, []
    for target in method.targets(SPARSITY):
        last: list[Any] = []

        def event(small: nn.Module, left: Structure, target: float, last: list[Any]) -> None:
            kept = select(method.score(small, left, objective), left, target).kept
            last[:] = [shrink(small, left, kept), left.shrink(kept)]

        def bound(small: nn.Module, left: Structure) -> None:
            first_reader = next(s.layer for s in left.prunable[0].slices if s.role == "read")
            bare_passes(small, first_reader, batches)

        ours, bare = partial(event, small, left, target, last), partial(bound, small, left)
        pairs = [(seconds(ours), seconds(bare)) for _ in range(rounds)]
        events.append({"sparsity": target, "ours_s": [a for a, _ in pairs], "bare_s": [b for _, b in pairs]})
        small, left = last
    return {"samples": samples, "batch_size": batch_size, "rounds": rounds, "graph_s": graph_seconds, "events": events}


def whole_command(data: str) -> dict[str, Any]:
    """The command in a process of its own: seconds, peak memory, and its report."""
    with tempfile.TemporaryDirectory() as folder:
        compress = [sys.executable, "-m", "compressor"]
        subprocess.run(
            [*compress, "new", "vgg16", "-o", f"{folder}/vgg16.pt", "--data", data], check=True, stdout=subprocess.DEVNULL
        )
        arguments = ["snapit", f"{folder}/vgg16.pt", "--sparsity", str(SPARSITY), "-o", f"{folder}/small.onnx"]
        arguments += ["-o", f"{folder}/small.safetensors", "--report", f"{folder}/report.json", "--quiet", "--threads", "1"]
        process: list[Any] = []
        wall = seconds(lambda: process.append(peak_of_command([*compress, *arguments])))
        report = json.loads(Path(folder, "report.json").read_text())
    for file in report["files"]:
        file["path"] = Path(file["path"]).name
    report["data"] = Path(report["data"]).name
    return {"wall_s": wall, "peak_rss_bytes": process[0], "report": report}


def help_seconds(runs: int = 7) -> list[float]:
    """Seconds of `compress --help`, whole processes, after one warm-up."""
    command = [str(Path(sys.executable).with_name("compress")), "--help"]
    times = [seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(runs + 1)]
    return times[1:]


def table(found: dict[str, Any]) -> str:
    """What it came to, as Markdown."""
    scoring, command, report = found["scoring"], found["command"], found["command"]["report"]
    ours, bare = (sum(quartiles(event[key])[1] for event in scoring["events"]) for key in ("ours_s", "bare_s"))
    nodes, macs, (dense, small, *_) = report["nodes"], report["macs"], report["files"]
    rows = {
        "node sparsity, weight sparsity": f"{report['node_sparsity']['reached']:.5f} "
        f"({nodes['small']:,} of {nodes['dense']:,} nodes left), {report['weight_sparsity']:.5f}",
        "MACs": f"{macs['dense']:,} to {macs['small']:,}: {macs['dense'] / macs['small']:.1f}x fewer",
        "file": f"{dense['bytes']:,} to {small['bytes']:,} bytes (`{Path(small['path']).suffix}`)",
        f"scoring and removing, {len(scoring['events'])} events": f"{ours:.1f} s; the bare forward and backward passes on the "
        f"same networks take {bare:.1f} s: {ours / bare:.2f} of them",
        "whole command": f"{command['wall_s']:.1f} s, peak memory {command['peak_rss_bytes'] / MIB:,.0f} MiB",
        "`compress --help`": f"{1000 * quartiles(found['help_s'])[1]:.0f} ms",
    }
    return "\n".join(["| What | Value |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows.items())])


def summary(found: dict[str, Any]) -> str:
    """What it came to, event by event."""
    rows, sums = [], [0.0, 0.0]
    for event in found["scoring"]["events"]:
        ours, bare = (quartiles(event[key])[1] for key in ("ours_s", "bare_s"))
        sums = [sums[0] + ours, sums[1] + bare]
        rows.append(f"  event {event['sparsity']:.3f}  ours {ours:6.2f} s  bare passes {bare:6.2f} s  ratio {ours / bare:.3f}")
    command, report = found["command"], found["command"]["report"]
    helps = quartiles(found["help_s"])
    macs = report["macs"]
    sizes = ", ".join(f"{f['path']} {f['bytes']:,}" for f in report["files"])
    widths = "-".join(str(w["small"]) for w in report["widths"].values())
    return "\n".join(
        [
            *rows,
            f"  all events ours {sums[0]:.1f} s  bare passes {sums[1]:.1f} s  ratio {sums[0] / sums[1]:.3f}"
            f"  (graph once: {found['scoring']['graph_s']:.2f} s)",
            f"  whole command {command['wall_s']:.1f} s, peak memory {command['peak_rss_bytes'] / MIB:,.0f} MiB",
            f"  node sparsity {report['node_sparsity']['reached']:.5f}, weight sparsity {report['weight_sparsity']:.5f}, "
            f"MACs {macs['dense']:,} -> {macs['small']:,} ({macs['dense'] / macs['small']:.1f}x)",
            f"  bytes: {sizes}",
            f"  widths {widths}",
            f"  compress --help {helps[1] * 1000:.0f} ms (quartiles {helps[0] * 1000:.0f} to {helps[2] * 1000:.0f})",
        ]
    )


def main() -> None:
    """Measure, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="folder of CIFAR-10, or digits")
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "main_job.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "schema": 1,
        "environment": environment(),
        "data": Path(chosen.data).name,
        "scoring": scoring(chosen.data, chosen.samples, chosen.batch_size, chosen.rounds),
        "command": whole_command(chosen.data),
        "help_s": help_seconds(),
    }
    write(found, chosen.output)
    print(summary(found))


if __name__ == "__main__":
    main()
