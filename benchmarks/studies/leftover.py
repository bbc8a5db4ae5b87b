"""Where the time of a pruned network goes: `python -m compressor.benchmarks.studies.leftover --data CIFAR10`.

VGG16 at 93 % with widths in multiples of 8, beside the dense network, on one thread: each layer's time in ONNX Runtime, from
its own profile, against what its multiply-adds would need at the dense network's pace; and PyTorch in several memory layouts.
Raw values go to a file.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from compressor import compress
from compressor.benchmarks.measure.latency import Job, cpu_clock, in_turn
from compressor.benchmarks.studies.peers import build
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.coupling import structure
from compressor.data import Images, Samples, open_data
from compressor.exporters import export
from compressor.model.cost import count
from compressor.model.speed import best_layouts, fold_norms
from compressor.system.environment import environment

BATCHES = (1, 64)
KERNELS = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm")


def profiled(path: Path, x: Tensor, runs: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of every operator of an ONNX file in each of `runs` runs, in the order of execution: `3 Conv` -> values."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / f"{path.stem}_{len(x)}")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    for _ in range(runs):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    values: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            values[f"{event['name'].removesuffix('_kernel_time')} {event['args']['op_name']}"].append(event["dur"] / 1e6)
    return {f"{n} {name.rpartition(' ')[2]}": its for n, (name, its) in enumerate(values.items())}


def by_layer(model: nn.Module, path: Path, x: Tensor, runs: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of layers, with their multiply-adds, and of what is between them; batch norms are folded into the layers."""
    times = profiled(path, x, runs, folder)
    macs = {name: n for name, n in count(model, (x,)).by_layer.items() if n}
    kernels = [name for name in times if name.split()[1] in KERNELS]
    if len(kernels) != len(macs):
        raise SystemExit(
            f"{path.name}: {len(kernels)} kernels for {len(macs)} layers; what ONNX Runtime fused is not known here"
        )
    rows: list[dict[str, Any]] = [
        {"layer": layer, "kernel": kernel.split()[1], "macs": n, "seconds": times[kernel]}
        for kernel, (layer, n) in zip(kernels, macs.items(), strict=True)
    ]
    others: dict[str, list[float]] = {}
    for name, its in times.items():
        if name not in kernels:
            kind = name.split()[1]
            others[kind] = [a + b for a, b in zip(others.get(kind, [0.0] * runs), its, strict=True)]
    return rows + [{"layer": None, "kernel": kind, "macs": 0, "seconds": its} for kind, its in others.items()]


def layouts(model: nn.Module, x: Tensor) -> dict[str, Job]:
    """Forward passes of one network in PyTorch: as it is, in another memory layout, with its norms folded."""
    folded = copy.deepcopy(model).eval()
    fold_norms(folded, structure(folded, (x[:2],)).norms)
    suited = copy.deepcopy(folded)
    best_layouts(suited, (x,))
    whole = copy.deepcopy(model).eval()
    last: Any = {"memory_format": torch.channels_last}
    variants: dict[str, tuple[nn.Module, Tensor]] = {
        "default": (whole, x),
        "channels_last": (copy.deepcopy(whole).to(**last), x.contiguous(**last)),
        "folded": (folded, x),
        "folded, channels_last": (copy.deepcopy(folded).to(**last), x.contiguous(**last)),
        "folded, by map size": (suited, x),
    }

    def job(network: nn.Module, given: Tensor) -> Job:
        def forward() -> Any:
            with torch.inference_mode():
                return network(given)

        return forward

    return {name: job(*pair) for name, pair in variants.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Layers and what is between them, as Markdown: milliseconds, and the small network's pace relative to the dense one's."""
    head = " | ".join(f"{what}, batch {b}" for b in BATCHES for what in ("dense ms", "small ms", "pace"))
    lines = [f"| layer | MACs dense | MACs small | {head} |", "| --- | ---: | ---: " + "| ---: " * 3 * len(BATCHES) + "|"]
    found = {(r["network"], r["batch"], r["layer"] or r["kernel"]): r for r in rows}
    for name in dict.fromkeys(r["layer"] or r["kernel"] for r in rows):
        cells, macs = [], ("", "")
        for size in BATCHES:
            dense, small = (found.get((network, size, name)) for network in ("dense", "small"))
            times = [1e3 * median(r["seconds"]) if r else 0.0 for r in (dense, small)]
            cells += [f"{t:.3f}" for t in times]
            if dense and small and dense["macs"]:
                macs = f"{dense['macs']:,}", f"{small['macs']:,}"
                cells.append(f"{(small['macs'] / times[1]) / (dense['macs'] / times[0]):.2f}")
            else:
                cells.append("")
        lines.append(f"| {name} | {macs[0]} | {macs[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="folder of CIFAR-10, or digits")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--output", type=Path, default=RESULTS / "leftover.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    images = open_data(chosen.data)
    assert isinstance(images, Images)
    model = build("vgg16")
    batches = list(Samples(images.train, (3, 32, 32), chosen.samples, 64))
    result = compress(model, "snapit", batches, 0.93, round_to="auto")
    rows: list[dict[str, Any]] = []
    torch_times: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for network, module in {"dense": model, "small": result.model}.items():
            path = Path(folder) / f"{network}.onnx"
            export(module, path, example_inputs=(batches[0][0][:2],))
            for size in BATCHES:
                x = batches[0][0][:size]
                own = by_layer(module.eval(), path, x, chosen.rounds, Path(folder))
                rows += [{"network": network, "batch": size, "unit": "s"} | row for row in own]
                values, failed = in_turn(layouts(module, x), chosen.rounds, cpu_clock())
                if failed:
                    raise SystemExit(str(failed))
                torch_times += [
                    {"network": network, "batch": size, "layout": n, "unit": "s", "seconds": v} for n, v in values.items()
                ]
    document = {"schema": 1, "environment": environment(), "data": Path(chosen.data).name, "samples": chosen.samples,
                "onnxruntime": rows, "torch": torch_times}  # fmt: skip
    write(document, chosen.output)
    print(table(rows))
    for entry in torch_times:
        print(f"{entry['network']}, batch {entry['batch']}, {entry['layout']}: {1e3 * median(entry['seconds']):.3f} ms")


if __name__ == "__main__":
    main()
