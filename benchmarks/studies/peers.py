"""Beside the peers, in one run: `python -m compressor.benchmarks.studies.peers --data CIFAR10`, as `make bench` runs it.

The same networks, the same data, one thread: ours against torch-pruning's pruner (group magnitude, Taylor) and the
structured masks of `torch.nn.utils.prune`; asked for the same node sparsity, and once more for our multiply-adds, since a
threshold by value reaches what the values let it. Every pruning runs in a process of its own, which tells its seconds and its
peak memory; then all of them are timed in turn against the dense network. Raw values go to a file.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from compressor import compress, networks
from compressor.benchmarks.measure.latency import cpu_clock, in_turn, quartiles
from compressor.benchmarks.measure.memory import peak_resident_bytes
from compressor.benchmarks.measure.networks import Network
from compressor.benchmarks.measure.runs import INFERENCE, TRAIN_STEP
from compressor.benchmarks.report.compare import Comparison, times
from compressor.benchmarks.studies.resnet50 import resnet50
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.coupling import structure
from compressor.data import Images, Samples, open_data
from compressor.errors import first_line
from compressor.model.cost import count
from compressor.model.observe import outputs_of
from compressor.model.weights import LAYERS
from compressor.proof.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.surgery.shrink import shrink
from compressor.system.environment import environment
from compressor.types.structure import Structure

SHAPE = {"resnet50": (3, 64, 64)}
SPARSITY = 0.93
PRUNERS = ("ours, snapit", "torch-pruning, group magnitude", "torch-pruning, group Taylor", "torch.nn.utils.prune, masks")
NETWORKS = ("vgg16", "vgg16, trained-like norms", "resnet18", "resnet50")
SEARCH_STEPS = 7


def build(name: str) -> nn.Module:
    """A fresh network, seed 0; with `trained-like norms` the scales of its batch norms are spread as training spreads them."""
    torch.manual_seed(0)
    if name == "resnet50":
        return resnet50()
    model = networks.build(name.partition(",")[0])
    if "norms" in name:
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                scale = torch.empty_like(module.weight).log_normal_(-1, 0.8, generator=generator)
                module.weight.data = scale
    return model


def batches_of(name: str, data: str, samples: int) -> list[tuple[Tensor, Tensor]]:
    """What every pruner sees, and what is timed."""
    images = open_data(data)
    assert isinstance(images, Images)
    return list(Samples(images.train, SHAPE.get(name, (3, 32, 32)), samples, 64))


def last_layer(model: nn.Module) -> nn.Module:
    """The layer that answers, which nobody prunes."""
    return [m for m in model.modules() if isinstance(m, LAYERS)][-1]


def by_torch_pruning(
    model: nn.Module, x: Tensor, ratio: float, importance: str
) -> tuple[nn.Module, list[tuple[str, bool, Any]]]:
    """A pruned copy, and which channels went; gradients are on the model where the importance needs them."""
    import torch_pruning

    twin = copy.deepcopy(model)
    for parameter, original in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    kinds = {
        "group magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "group Taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    pruner = torch_pruning.pruner.BasePruner(
        twin, x, importance=kinds[importance](), global_pruning=True, pruning_ratio=ratio, ignored_layers=[last_layer(twin)]
    )
    pruner.step()
    return twin, pruner.pruning_history()


def at_macs(target: int, model: nn.Module, x: Tensor, importance: str) -> tuple[nn.Module, list[tuple[str, bool, Any]], float]:
    """The peer's pruning whose multiply-adds come nearest to ours, by bisection over the ratio that it is asked for."""
    low, high, best = 0.0, 1.0, None
    for _ in range(SEARCH_STEPS):
        ratio = (low + high) / 2
        pruned, history = by_torch_pruning(model, x, ratio, importance)
        macs = count(pruned, (x,)).macs
        if best is None or abs(macs - target) < best[0]:
            best = abs(macs - target), pruned, history, ratio
        low, high = (ratio, high) if macs > target else (low, ratio)
    assert best is not None
    return best[1], best[2], best[3]


def masked(model: nn.Module, ratio: float) -> nn.Module:
    """Rows of every layer's weight masked by their L2 norm, as `torch.nn.utils.prune` does it: nothing is removed."""
    twin, last = copy.deepcopy(model), last_layer(model)
    for module, original in zip(twin.modules(), model.modules(), strict=True):
        if isinstance(module, LAYERS) and original is not last:
            prune.ln_structured(module, "weight", amount=ratio, n=2, dim=0)
            prune.remove(module, "weight")
    return twin


def kept_by(history: list[tuple[str, bool, Any]], found: Structure) -> dict[str, Tensor] | None:
    """The peer's choice as kept nodes of our groups; None where it cannot be said so."""
    kept = {name: indices.tolist() for name, indices in found.keep_all().items()}
    group_of = {layer: g.name for g in found.prunable for layer in g.layers("produce", "pass")}
    for layer, _, removed in history:
        if layer not in group_of:
            return None
        left = kept[group_of[layer]]
        gone = {left[i] for i in removed if i < len(left)}
        kept[group_of[layer]] = [node for node in left if node not in gone]
    return {name: torch.tensor(nodes) for name, nodes in kept.items()}


def node_sparsity(model: nn.Module, dense: Structure, x: Tensor) -> float:
    """1 - nodes left / nodes; a row of zeros counts as removed."""
    left = 0
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and name not in dense.outputs:
            left += int((module.weight.flatten(1) != 0).any(1).sum())
    return 1 - left / dense.total_nodes


def one(name: str, pruner: str, data: str, samples: int, target: int | None, output: Path) -> dict[str, Any]:
    """Prune once, and say what came out; the network goes to `output`."""
    torch.set_num_threads(1)
    model, batches = build(name), batches_of(name, data, samples)
    x = batches[0][0][:2]
    before, start = peak_resident_bytes(), time.perf_counter()
    history, ratio = None, SPARSITY
    proof: bool | str = "-"
    if pruner.startswith("ours"):
        result = compress(model, "snapit", batches, SPARSITY)
        small = result.model
        proof = all(bool(p) for p in result.summary.proofs)
    elif pruner.startswith("torch-pruning"):
        importance = pruner.partition(", ")[2]
        if "Taylor" in importance:
            model.eval()
            for inputs, labels in batches:
                (F.cross_entropy(model(inputs), labels) * len(labels) / samples).backward()
        if target is None:
            small, history = by_torch_pruning(model, x, SPARSITY, importance)
        else:
            _, _, ratio = at_macs(target, model, x, importance)
            start = time.perf_counter()  # of the last pruning alone
            small, history = by_torch_pruning(model, x, ratio, importance)
    else:
        small = masked(model, SPARSITY)
        proof = "nothing removed"
    seconds = time.perf_counter() - start
    peak = peak_resident_bytes()
    found = structure(model, (x,))
    if history is not None:
        proof = _as_ours(model, small, found, history, x)
    torch.save(small, output)
    return {
        "network": name, "pruner": pruner, "asked": ratio, "at_our_macs": target is not None,
        "reached": node_sparsity(small, found, x), "parameters": sum(p.numel() for p in small.parameters()),
        "macs": count(small, (x,)).macs, "prune_s": seconds, "peak_bytes": peak, "peak_before_bytes": before,
        "equivalent": proof,
    }  # fmt: skip


def _as_ours(model: nn.Module, small: nn.Module, found: Structure, history: Any, x: Tensor) -> bool | str:
    """Whether the peer's network computes what removing its channels by our graph computes, which is proven."""
    kept = kept_by(history, found)
    if kept is None or not all(len(nodes) for nodes in kept.values()):
        return "not comparable"
    try:
        ours = shrink(model, found, kept)
        return bool(Equivalence.of("", outputs_of(ours, (x,)), outputs_of(small, (x,)), TORCH_TOLERANCE))
    except Exception as error:  # noqa: BLE001 - whatever a network that fits nowhere raises
        return first_line(error)


def compared(name: str, data: str, samples: int, rounds: int, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All pruners on one network, then their times in turn."""
    rows: list[dict[str, Any]] = []
    files: list[tuple[dict[str, Any], Path]] = []
    ours_macs: int | None = None
    for pruner, equal in [(p, False) for p in PRUNERS] + [(p, True) for p in PRUNERS if p.startswith("torch-pruning")]:
        if equal and ours_macs is None:
            continue
        say(f"{name}: {pruner}{', at our MACs' if equal else ''}")
        output = folder / f"{len(rows)}.pt"
        arguments = ["--one", name, pruner, str(output), "--data", data, "--samples", str(samples)]
        if equal:
            arguments += ["--macs", str(ours_macs)]
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-m", "compressor.benchmarks.studies.peers", *arguments],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = first_line(RuntimeError((done.stderr.strip().splitlines() or ["died"])[-1]))
            rows.append({"network": name, "pruner": pruner, "at_our_macs": equal, "failed": reason})
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        files.append((rows[-1], output))
        if pruner.startswith("ours"):
            ours_macs = rows[-1]["macs"]
    dense = build(name)
    found: list[tuple[dict[str, Any] | None, nn.Module]] = [
        (None, dense),
        *((row, torch.load(path, weights_only=False)) for row, path in files),
    ]
    batches = batches_of(name, data, 64)
    for what, size in ((INFERENCE, 1), (INFERENCE, 64), (TRAIN_STEP, 64)):
        say(f"{name}: timing {what}, batch {size}")
        x, y = batches[0][0][:size], batches[0][1][:size]
        candidates = {str(n): Network(Path(name), model) for n, (_, model) in enumerate(found)}
        jobs = {
            n: network.inference("torch", (x,), "cpu", 1)
            if what == INFERENCE
            else network.train_step(((x,), y), "cross-entropy", "cpu")
            for n, network in candidates.items()
        }
        values, failed = in_turn(jobs, rounds, cpu_clock())
        for number, (row, _) in enumerate(found):
            if row is not None:
                row.setdefault("times", []).append({
                    "what": what, "batch": size, "unit": "s", "dense": values["0"], "small": values.get(str(number), []),
                    "failed": failed.get(str(number)),
                })  # fmt: skip
    dense_row = {
        "network": name, "pruner": "dense", "at_our_macs": False, "asked": 0.0, "reached": 0.0,
        "parameters": sum(p.numel() for p in dense.parameters()), "macs": count(dense, (batches[0][0],)).macs,
    }  # fmt: skip
    return [dense_row, *rows]


def table(document: dict[str, Any]) -> str:
    """The table of the README, as Markdown."""
    head = ["network", "pruner", "asked", "reached", "parameters", "MACs", "prune", "peak memory", "inference, batch 1",
            "inference, batch 64", "train step", "equivalent"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"| --- | --- {'| ---: ' * (len(head) - 2)}|"]
    for row in document["rows"]:
        if row["pruner"] == "dense":
            dense = row
            cells = ["", "", f"{row['parameters']:,}", f"{row['macs']:,}", *[""] * 6]
        elif row.get("failed"):
            cells = [row["failed"], *[""] * 9]
        else:
            speeds = [_speed(t) for t in row["times"]]
            proof = {True: "yes", False: "NO"}.get(row["equivalent"], row["equivalent"])
            cells = [f"{row['asked']:.3f}", f"{row['reached']:.3f}", f"{row['parameters']:,}",
                     f"{times(dense['macs'] / row['macs'])} fewer", f"{row['prune_s']:.1f} s",
                     f"{row['peak_bytes'] / 2**20:,.0f} MiB", *speeds, str(proof)]  # fmt: skip
        pruner = row["pruner"] + (", at our MACs" if row["at_our_macs"] else "")
        lines.append(f"| {row['network']} | {pruner} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(t: dict[str, Any]) -> str:
    if t["failed"] or not t["small"]:
        return t["failed"] or "-"
    c = Comparison("", t["what"], "torch", t["batch"], quartiles(t["dense"]), quartiles(t["small"]))
    return times(c.ratio) if c.significant else "not significant"


def main() -> None:
    """Measure, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="folder of CIFAR-10, or digits")
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", action="append", help="may be repeated; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "PRUNER", "FILE"), help="prune once, in this process")
    parser.add_argument("--macs", type=int, help="multiply-adds that --one aims at")
    chosen = parser.parse_args()
    if chosen.one:
        name, pruner, output = chosen.one
        print("\n" + json.dumps(one(name, pruner, chosen.data, chosen.samples, chosen.macs, Path(output))))
        return
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    document = {
        "schema": 1, "environment": environment(), "data": Path(chosen.data).name, "samples": chosen.samples,
        "rounds": chosen.rounds, "sparsity": SPARSITY, "rows": rows,
    }  # fmt: skip
    for name in chosen.network or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows += compared(
                name, chosen.data, chosen.samples, chosen.rounds, Path(folder), lambda s: print(s, file=sys.stderr)
            )
        write(document, chosen.output)
    print(table(document))


if __name__ == "__main__":
    main()
