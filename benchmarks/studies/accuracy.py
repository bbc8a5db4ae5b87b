"""What a trained network keeps: `python -m compressor.benchmarks.studies.accuracy NETWORK.pt --data CIFAR10`.

Every node method of ours and torch-pruning's pruners take the same trained network to the same multiply-adds. Its accuracy on
all test images is measured as pruned; with its norms re-estimated; ours also with its layers refitted; and after the same steps
of training, from there. Repairs see 1,024 training images, no labels. Raw values go to a file row by row, and what is in it is
not done again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import compress, load
from compressor.benchmarks.studies.peers import last_layer
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.data import Columns, Rows
from compressor.errors import CompressError, first_line
from compressor.method import method_named, options_of, summaries
from compressor.model.cost import count
from compressor.objective.calibrate import calibrated
from compressor.objective.intervals import t_interval
from compressor.objective.objective import Objective, evaluate
from compressor.pruning.train import train
from compressor.settings import AUTO
from compressor.sources.training import training_data_for
from compressor.system.environment import environment
from compressor.training.recipe import recipe_named

SCHEMA = 1
BUDGETS = (0.7, 0.5, 0.33, 0.2)
SCORED = 2560
REPAIRED = 1024
STEPS = 300
BATCH = 128
SEARCH_STEPS = 10
PEERS = ("group L2, local", "group L2, global", "group Taylor, global", "LAMP, global", "Taylor, isomorphic")


@dataclass(frozen=True)
class Bench:
    """A trained network and its data.

    Attributes:
        inputs: of two samples.
        dense_macs: of one sample.
    """

    name: str
    model: nn.Module
    train: Columns
    test: Columns
    inputs: Tensor
    dense_macs: int
    steps: int

    def accuracy(self, model: nn.Module) -> float:
        """On all test images."""
        batches = Rows(self.test, len(self.test), 500, None)
        found = evaluate(model, Objective(batches)).accuracy
        assert found is not None
        return found

    def drawn(self, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Training images that scores and repairs see, the same for all of a seed."""
        return list(Rows(self.train, count, 64, seed))

    def tuned(self, model: nn.Module, seed: int) -> nn.Module:
        """The network after the steps of training that all get."""
        recipe = recipe_named("fine-tune", {"epochs": 1, "batch_size": BATCH, "precision": "bfloat16"})
        data = Rows(self.train, self.steps * BATCH, BATCH, seed)
        return train(model, data, recipe, colour=True, seed=seed, example_inputs=self.inputs).model


ALLOCATED = ("l-obs, per macs", "l-obs, layer", "l-obs, isomorphic")
"""The method that is chosen for trained networks, with other allocations than the one chosen, which is by sensitivity."""


def ours() -> list[str]:
    """What `compress prune` does, that with other allocations, and each of our methods that removes nodes."""
    return [AUTO, *ALLOCATED, *node_methods()]


def node_methods() -> list[str]:
    """Ours that remove nodes."""
    found = []
    for name in summaries():
        method = method_named(name)
        if "node" in next((o.choices for o in options_of(method) if o.name == "unit"), (method().unit,)):
            found.append(name)
    return found


def by_ours(bench: Bench, pruner: str, budget: float, seed: int) -> dict[str, Any]:
    """One method of ours, with an allocation behind a comma, or its own."""
    method, _, allocation = pruner.partition(", ")
    own = () if method == AUTO else options_of(method_named(method))
    units: dict[str, Any] = {"unit": "node"} if any(o.name == "unit" for o in own) else {}
    if allocation == "per macs":
        units["per"] = "macs"
    elif allocation:
        units["allocate"] = allocation
    start = time.perf_counter()
    result = compress(
        bench.model, method, bench.drawn(SCORED, seed), target_macs=budget, repair="least-squares",
        repair_samples=REPAIRED, state="trained", seed=seed, **units,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    assert result.pruned is not None
    assert result.summary.repair is not None
    row = after(bench, result.pruned, seed)
    row |= {"repaired": bench.accuracy(result.model), "repair": result.summary.repair.as_dict(), "seconds": seconds}
    if bench.steps:
        row["tuned"] = bench.accuracy(bench.tuned(result.model, seed))
    return row


def by_torch_pruning(bench: Bench, kind: str, budget: float, seed: int) -> dict[str, Any]:
    """One of torch-pruning's pruners, asked for the ratio whose multiply-adds come nearest to the budget."""
    start = time.perf_counter()
    gradients = _gradients(bench, seed) if "Taylor" in kind else {}
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module] | None = None
    for _ in range(SEARCH_STEPS):
        ratio = (low + high) / 2
        small = torch_pruned(bench, kind, ratio, gradients)
        share = count(small, (bench.inputs,)).macs / bench.dense_macs
        if best is None or abs(share - budget) < best[0]:
            best = abs(share - budget), small
        low, high = (ratio, high) if share > budget else (low, ratio)
    assert best is not None
    row = after(bench, best[1], seed) | {"seconds": time.perf_counter() - start}
    if bench.steps:
        row["tuned"] = bench.accuracy(bench.tuned(renormed(bench, best[1], seed), seed))
    return row


def _gradients(bench: Bench, seed: int) -> dict[str, Tensor]:
    """Of the loss on the images that scores see, by parameter."""
    twin = copy.deepcopy(bench.model).eval()
    for inputs, labels in bench.drawn(SCORED, seed):
        (F.cross_entropy(twin(inputs), labels) * len(labels) / SCORED).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def torch_pruned(bench: Bench, kind: str, ratio: float, gradients: dict[str, Tensor]) -> nn.Module:
    """A copy, pruned in one step as torch-pruning's documentation has it."""
    import torch_pruning as tp

    importance, _, scope = kind.partition(", ")
    twin = copy.deepcopy(bench.model).eval()
    twin.__dict__.pop("origin", None)
    found = {
        "group L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "group Taylor": tp.importance.GroupTaylorImportance,
        "Taylor": tp.importance.GroupTaylorImportance,
        "LAMP": tp.importance.LAMPImportance,
    }[importance]()
    for name, gradient in gradients.items():
        twin.get_parameter(name).grad = gradient.clone()
    pruner = tp.pruner.BasePruner(
        twin, bench.inputs, importance=found, global_pruning=scope != "local", isomorphic=scope == "isomorphic",
        pruning_ratio=ratio, ignored_layers=[last_layer(twin)],
    )  # fmt: skip
    pruner.step()
    twin.zero_grad(set_to_none=True)
    return twin


def after(bench: Bench, small: nn.Module, seed: int) -> dict[str, Any]:
    """What a pruned network is, as it comes and with its norms re-estimated."""
    return {
        "macs": count(small, (bench.inputs,)).macs, "parameters": sum(p.numel() for p in small.parameters()),
        "pruned": bench.accuracy(small), "norms": bench.accuracy(renormed(bench, small, seed)),
    }  # fmt: skip


def renormed(bench: Bench, small: nn.Module, seed: int) -> nn.Module:
    """A copy whose batch norms have the statistics of the images that repairs see."""
    return calibrated(small, Objective(bench.drawn(REPAIRED, seed), example=(bench.inputs,)))


def opened(path: Path, data: str, steps: int) -> Bench:
    """A network of ours and its data, in memory."""
    model = load(path).eval()
    held = training_data_for(model, data, count=1)
    assert isinstance(held.train, Columns)
    assert isinstance(held.test, Columns)
    inputs = held.test.inputs[:2]
    return Bench(path.stem, model, held.train, held.test, inputs, count(model, (inputs,)).macs, steps)


def run(
    bench: Bench,
    pruners: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
    output: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All rows that the file does not hold yet."""
    document: dict[str, Any] = {"schema": SCHEMA, "environment": environment(), "networks": {}, "rows": []}
    if output.is_file():
        document = json.loads(output.read_text())
    if bench.name not in document["networks"]:
        document["networks"][bench.name] = {"accuracy": bench.accuracy(bench.model), "macs": bench.dense_macs}
    done = {(row["network"], row["pruner"], row["budget"], row["seed"], row["steps"]) for row in document["rows"]}
    for budget in budgets:
        for seed in seeds:
            for pruner in pruners:
                key = (bench.name, pruner, budget, seed, bench.steps)
                if key in done:
                    continue
                row: dict[str, Any] = dict(zip(("network", "pruner", "budget", "seed", "steps"), key, strict=True))
                try:
                    if pruner in PEERS:
                        row |= by_torch_pruning(bench, pruner, budget, seed)
                    else:
                        row |= by_ours(bench, pruner, budget, seed)
                except (CompressError, RuntimeError, ValueError) as error:
                    row["failed"] = first_line(error)
                document["rows"].append(row)
                write(document, output)
                said = ", ".join(f"{k} {row[k]:.1%}" for k in ("pruned", "norms", "repaired", "tuned") if k in row)
                say(f"{bench.name} {pruner} {budget} seed {seed}: {said or row.get('failed')}")
    return document


STAGES = {"pruned": "as pruned", "norms": "norms re-estimated", "repaired": "layers refitted", "tuned": "{steps} steps"}


def table(document: dict[str, Any], budgets: Sequence[float] = (0.5, 0.33)) -> str:
    """The mean accuracy of each pruner at these budgets, in percent, as Markdown."""
    rows = [row for row in document["rows"] if "failed" not in row and row["budget"] in budgets]
    steps = max((row["steps"] for row in rows), default=0)
    names = [f"{budget:g}: {name.format(steps=steps)}" for budget in budgets for name in STAGES.values()]
    lines = [f"| network, pruner | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for network, dense in document["networks"].items():
        mine = [row for row in rows if row["network"] == network]
        lines.append(f"| **{network}**, dense {100 * dense['accuracy']:.1f} |{' |' * len(names)}")
        pruners = dict.fromkeys(row["pruner"] for row in mine)
        for pruner in sorted(pruners, key=lambda name: (name in PEERS, name != AUTO)):
            cells = [_mean(mine, pruner, budget, stage) for budget in budgets for stage in STAGES]
            lines.append(f"| {_label(pruner)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired(document: dict[str, Any], ours: str = AUTO) -> str:
    """How far one pruner is ahead of torch-pruning's, seed by seed, in points, with 95 % intervals by Student's t; Markdown.

    Without training, the repaired network is compared with theirs with its norms re-estimated.
    """
    rows = [row for row in document["rows"] if "failed" not in row]
    steps = max((row["steps"] for row in rows), default=0)
    lines = [f"| `compress prune` against | seeds | without training | after {steps} steps |", "|---|---|---|---|"]
    for network, budget in dict.fromkeys((row["network"], row["budget"]) for row in rows):
        kinds: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if (row["network"], row["budget"], row["steps"]) == (network, budget, steps):
                kinds.setdefault(row["pruner"], {})[row["seed"]] = row
        for peer in (name for name in PEERS if name in kinds):
            seeds = sorted(kinds.get(ours, {}).keys() & kinds[peer].keys())
            if len(seeds) < 2:
                continue
            pairs = [(kinds[ours][seed], kinds[peer][seed]) for seed in seeds]
            gaps = [
                _gap([100 * (a[mine] - b[its]) for a, b in pairs]) for mine, its in (("repaired", "norms"), ("tuned", "tuned"))
            ]
            lines.append(f"| {network} at {budget:g}: {_label(peer)} | {len(seeds)} | {' | '.join(gaps)} |")
    return "\n".join(lines)


def _gap(points: Sequence[float]) -> str:
    return f"{mean(points):+.1f} ± {t_interval(points) or 0.0:.1f}"


def _label(pruner: str) -> str:
    if pruner in PEERS:
        return f"torch-pruning, {pruner}"
    return "`compress prune`" if pruner == AUTO else f"ours, `{pruner}`"


def _mean(rows: Sequence[dict[str, Any]], pruner: str, budget: float, stage: str) -> str:
    values = [100 * row[stage] for row in rows if (row["pruner"], row["budget"]) == (pruner, budget) and stage in row]
    return f"{sum(values) / len(values):.1f}" if values else ""


def main() -> None:
    """Measure, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", type=Path, nargs="+", help="trained networks, .pt or .safetensors of ours")
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--pruner", action="append", help="may be repeated; all by default")
    parser.add_argument("--budget", action="append", type=float, help="multiply-adds left, may be repeated")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training; 0 for none")
    parser.add_argument("--output", type=Path, default=RESULTS / "accuracy.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for path in chosen.network:
        bench = opened(path, chosen.data, chosen.steps)
        pruners = chosen.pruner or [*ours(), *PEERS]
        document = run(
            bench, pruners, chosen.budget or BUDGETS, range(chosen.seeds), chosen.output, lambda s: print(s, file=sys.stderr)
        )
    print(table(document))
    print(f"\n{paired(document)}")


if __name__ == "__main__":
    main()
