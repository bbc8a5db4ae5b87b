"""Widths that run fast, in one run: `python -m compressor.benchmarks.studies.widths --data CIFAR10`.

Each network is pruned to the same node sparsity three times: exact widths, multiples of 8, multiples of 16. Then the dense
network and the three small ones are timed in turn on one thread, in PyTorch and in ONNX Runtime, whose dense network has its
batch norms folded. Raw values go to a file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor import compress
from compressor.benchmarks.measure.latency import cpu_clock, in_turn, quartiles
from compressor.benchmarks.measure.networks import Network
from compressor.benchmarks.measure.runs import INFERENCE, TRAIN_STEP
from compressor.benchmarks.studies.peers import SHAPE, build
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.benchmarks.studies.zoo import import_torchvision
from compressor.data import Images, Samples, open_data
from compressor.exporters import export
from compressor.model.cost import count
from compressor.system.environment import environment

CASES = (
    ("vgg16", 0.93), ("resnet18", 0.5), ("resnet18", 0.8), ("resnet50", 0.5), ("resnet50", 0.8),
    ("mobilenet_v2", 0.5), ("mobilenet_v2", 0.8),
)  # fmt: skip
MULTIPLES = (1, 8, 16)
JOBS = ((INFERENCE, "torch", 1), (INFERENCE, "torch", 64), (INFERENCE, "onnxruntime", 1), (INFERENCE, "onnxruntime", 64),
        (TRAIN_STEP, "torch", 64))  # fmt: skip

Batches = list[tuple[Tensor, Tensor]]


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A fresh network and what it takes; MobileNetV2 is torchvision's."""
    if name == "mobilenet_v2":
        torch.manual_seed(0)
        return import_torchvision().models.mobilenet_v2(num_classes=10), (3, 96, 96)
    return build(name), SHAPE.get(name, (3, 32, 32))


def rows_of(
    name: str, sparsity: float, images: Images, samples: int, rounds: int, folder: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Prune three times, time all four in turn."""
    model, shape = network(name)
    batches: Batches = list(Samples(images.train, shape, samples, 64))
    x, y = batches[0]
    rows: list[dict[str, Any]] = [{"network": name, "sparsity": sparsity, "round_to": None, "macs": count(model, (x,)).macs}]
    modules = [model]
    for multiple in MULTIPLES:
        say(f"{name}, {sparsity}: widths in multiples of {multiple}")
        result = compress(model, "snapit", batches, sparsity, round_to=multiple)
        after = result.summary.after
        rows.append({
            "network": name, "sparsity": sparsity, "round_to": multiple, "macs": after.macs, "reached": result.summary.reached,
            "parameters": after.parameters, "equivalent": all(result.summary.proofs),
        })  # fmt: skip
        modules.append(result.model)
    entries = {}
    for number, module in enumerate(modules):
        path = folder / f"{number}.onnx"
        export(module, path, example_inputs=(x[:2],))
        entries[str(number)] = Network(path, module, path)
    for what, engine, size in JOBS:
        say(f"{name}, {sparsity}: timing {what}, {engine}, batch {size}")
        jobs = {
            n: entry.inference(engine, (x[:size],), "cpu", 1)
            if what == INFERENCE
            else entry.train_step(((x[:size],), y[:size]), "cross-entropy", "cpu")
            for n, entry in entries.items()
        }
        values, failed = in_turn(jobs, rounds, cpu_clock())
        for number, row in enumerate(rows):
            timing = {"what": what, "engine": engine, "batch": size, "unit": "s"}
            timing |= {"values": values.get(str(number), []), "failed": failed.get(str(number))}
            row.setdefault("times", []).append(timing)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Multiply-adds and speed-ups against the dense network, as Markdown."""
    heads = [f"{what}, {engine}, {size}" for what, engine, size in JOBS]
    lines = [
        f"| network | removed | widths | MACs | {' | '.join(heads)} |",
        "| --- | ---: " + "| ---: " * (len(heads) + 2) + "|",
    ]
    dense: dict[str, Any] = {}
    for row in rows:
        if row["round_to"] is None:
            dense = row
            continue
        speeds = []
        for before, after in zip(dense["times"], row["times"], strict=True):
            ok = before["values"] and after["values"]
            speeds.append(
                f"{quartiles(before['values'])[1] / quartiles(after['values'])[1]:.2f}x" if ok else str(after["failed"])
            )
        widths = "exact" if row["round_to"] == 1 else f"x {row['round_to']}"
        fewer = f"{dense['macs'] / row['macs']:.2f}x fewer"
        lines.append(f"| {row['network']} | {row['reached']:.3f} | {widths} | {fewer} | {' | '.join(speeds)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="folder of CIFAR-10, or digits")
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--network", action="append", help="may be repeated; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "widths.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    images = open_data(chosen.data)
    assert isinstance(images, Images)
    rows: list[dict[str, Any]] = []
    document = {"schema": 1, "environment": environment(), "data": Path(chosen.data).name, "samples": chosen.samples,
                "rounds": chosen.rounds, "rows": rows}  # fmt: skip
    for name, sparsity in CASES:
        if chosen.network and name not in chosen.network:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(
                name, sparsity, images, chosen.samples, chosen.rounds, Path(folder), lambda s: print(s, file=sys.stderr)
            )
        write(document, chosen.output)
    print(table(rows))


if __name__ == "__main__":
    main()
