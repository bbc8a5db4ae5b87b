"""All methods side by side: `python -m compressor.benchmarks.studies.methods --data CIFAR10 --mnist MNIST`.

Cost: seconds and peak memory of one scoring of VGG16 and ResNet18, each in a process of its own, on one thread. Product: SNIP's
score and GraSP's product with the Hessian, in turn. Flow: the squared norm of the gradient after keeping a tenth of the
weights, relative to the dense network's. Extreme: what is left of each layer of VGG16 at 99.9 %. What is in the results file
already is not measured again; raw values go there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import compress, networks
from compressor.benchmarks.measure.latency import cpu_clock, in_turn
from compressor.benchmarks.measure.memory import peak_resident_bytes
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.coupling import structure
from compressor.criteria.variables import gradient, hessian_product, variables
from compressor.data import Images, Samples, open_data
from compressor.method import make, method_named, summaries
from compressor.model.weights import maskable
from compressor.objective.objective import Objective
from compressor.options import options_of
from compressor.system.environment import environment

COSTS = ("vgg16", "resnet18")
FLOWS = ("snip", "grasp", "synflow", "random")
EXTREME = ("synflow", "snip")
COLOUR = {"in_channels": 3, "image_size": 32}
MIB = 2**20


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method with each of its units."""
    for name in summaries():
        units = next((o.choices for o in options_of(method_named(name)) if o.name == "unit"), ())
        yield from ((name, {"unit": unit}) for unit in units) if units else [(name, {})]


def batches_of(data: str, model: nn.Module, samples: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Normalised training images in batches of 64, of the network's shape."""
    images = open_data(data)
    assert isinstance(images, Images)
    origin: Any = model.origin
    return list(Samples(images.train, origin.input_shape, samples, 64, seed=seed))


def one_scoring(data: str, network: str, name: str, options: dict[str, Any], samples: int) -> dict[str, Any]:
    """Seconds of one scoring of a fresh network, and the process's peak memory before and after."""
    torch.set_num_threads(1)
    model = networks.build(network)
    batches = batches_of(data, model, samples)
    found = structure(model, batches[0][:1])
    method = make(name, options)
    found = found.freeze(method.cannot_score(model, found))
    objective = Objective(batches, example=batches[0][:1])
    before = peak_resident_bytes()
    start = time.perf_counter()
    method.score(model, found, objective)
    seconds = time.perf_counter() - start
    return {
        "network": network, "method": name, "options": options, "samples": samples if method.uses_data else 0,
        "seconds": seconds, "events": len(method.targets(0.9)), "peak_rss_before": before, "peak_rss": peak_resident_bytes(),
    }  # fmt: skip


PRODUCT_SAMPLES = 128
PRODUCT_ROUNDS = 3


def product(data: str, network: str) -> dict[str, Any]:
    """Seconds of SNIP's score and of GraSP's product with the Hessian, in turn on the same samples."""
    torch.set_num_threads(1)
    model = networks.build(network)
    batches = batches_of(data, model, PRODUCT_SAMPLES)
    found, objective = structure(model, batches[0][:1]), Objective(batches, example=batches[0][:1])
    snip = make("snip", {})
    with variables(model, found, "weight") as (twin, by):
        g, _, _ = gradient(twin, by, objective)
        jobs = {
            "snip": lambda: snip.score(model, found, objective),
            "product": lambda: hessian_product(twin, by, objective, g),
        }
        values, failed = in_turn(jobs, PRODUCT_ROUNDS, cpu_clock())
    assert not failed, failed
    return {"network": network, "samples": PRODUCT_SAMPLES, "unit": "s", "values": values}


def gradient_norm(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Squared norm of dL/dw over the weights that are not zero, of the mean loss over all samples, in eval mode."""
    weights = maskable(model.eval())
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in batches:
        for total, g in zip(
            sums.values(), torch.autograd.grad(F.cross_entropy(model(x), y), list(weights.values())), strict=True
        ):
            total.add_(g, alpha=1 / len(batches))
    return sum(float((total[weights[name] != 0] ** 2).sum(dtype=torch.float64)) for name, total in sums.items())


def flow(data: str, network: str, shape: dict[str, Any], name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The gradient's squared norm, dense and with a tenth of the weights, on the samples that were scored on."""
    torch.set_num_threads(1)
    model = networks.build(network, seed=seed, **shape)
    batches = batches_of(data, model, 2560, seed)
    dense = gradient_norm(model, batches)
    result = compress(model, name, batches, 0.9, seed=seed, **options)
    small = gradient_norm(result.model, batches)
    return {
        "network": network,
        "data": Path(data).name,
        "method": name,
        "options": options,
        "seed": seed,
        "dense": dense,
        "small": small,
    }


def extreme(data: str, name: str) -> dict[str, Any]:
    """What is left of VGG16 at 99.9 %."""
    torch.set_num_threads(1)
    model = networks.build("vgg16")
    batches = batches_of(data, model, 2560)
    start = time.perf_counter()
    result = compress(model, name, batches, 0.999, allow_disconnect=True)
    weights: Any = result.summary.weights
    return {
        "network": "vgg16", "method": name, "seconds": time.perf_counter() - start, "reached": weights.reached,
        "effective": weights.effective_sparsity, "silent_outputs": weights.silent, "dead_nodes": weights.dead,
        "left": {layer: left for layer, (_, left) in weights.by_layer.items()}, "equivalent": all(result.summary.proofs),
    }  # fmt: skip


Rows = dict[str, dict[str, Any]]
"""What was measured, by key."""


def cost_table(rows: Rows) -> str:
    """Seconds and memory of one scoring by each method, as Markdown."""
    lines = ["| method | removes | " + " | ".join(f"{n}, s | of SNIP | MiB above start" for n in COSTS) + " | events at 0.9 |"]
    lines.append("| --- | --- | " + "---: | " * (3 * len(COSTS)) + "---: |")
    for name, options in variants():
        cells, events = [], ""
        for network in COSTS:
            row, snip = (rows.get(_key("cost", network, *what)) for what in ((name, options), ("snip", {})))
            if row and snip:
                cells += [f"{row['seconds']:.1f}", f"{row['seconds'] / snip['seconds']:.2f}"]
                cells.append(f"{(row['peak_rss'] - row['peak_rss_before']) / MIB:,.0f}")
                events = str(row["events"])
            else:
                cells += ["", "", ""]
        if not any(cells):
            continue  # not measured yet
        unit = make(name, options).unit
        lines.append(f"| {name} | {unit}s | {' | '.join(cells)} | {events} |")
    return "\n".join(lines)


def flow_table(rows: Rows) -> str:
    """How much of the gradient's norm each method leaves, as Markdown."""
    lines = ["| network | data | method | seeds | squared gradient norm, small / dense |", "| --- | --- | --- | ---: | ---: |"]
    grouped: dict[tuple[str, ...], list[float]] = {}
    for key, row in rows.items():
        if key.startswith("flow"):
            said = row["method"] + "".join(f" --{k} {v}" for k, v in row["options"].items() if k != "unit")
            grouped.setdefault((row["network"], row["data"], said), []).append(row["small"] / row["dense"])
    for names, ratios in grouped.items():
        lines.append(f"| {' | '.join(names)} | {len(ratios)} | {', '.join(f'{r:.3g}' for r in ratios)} |")
    return "\n".join(lines)


def tables(rows: Rows) -> str:
    """All that was measured, as Markdown."""
    lines = [cost_table(rows), "", flow_table(rows)]
    for key, row in rows.items():
        if key.startswith("product"):
            of = {name: statistics.median(values) for name, values in row["values"].items()}
            lines.append(
                f"\n{row['network']}, {row['samples']} samples in turn: SNIP {of['snip']:.2f} s, product with the Hessian "
                f"{of['product']:.2f} s, {of['product'] / of['snip']:.2f} times"
            )
        if key.startswith("extreme"):
            left = ", ".join(f"{n:,}" for n in row["left"].values())
            lines.append(
                f"\n{row['method']} at {row['reached']:.4f} of VGG16's weights: {left} left by layer; {row['silent_outputs']} "
                f"outputs silent, {row['dead_nodes']:,} nodes dead, {row['effective']:.5f} zero or on no path"
            )
    return "\n".join(lines)


def _key(*parts: Any) -> str:
    return " ".join(json.dumps(p) if isinstance(p, dict) else str(p) for p in parts)


def main() -> None:
    """Measure what is missing, print, and keep the raw values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="folder of CIFAR-10, or digits")
    parser.add_argument("--mnist", default="digits", help="folder of MNIST, or digits")
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--only", choices=["cost", "product", "flow", "extreme"])
    parser.add_argument("--method", action="append", help="of the costs; may be repeated, all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "methods.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one_scoring(**json.loads(chosen.one))))
        return
    document: dict[str, Any] = {"schema": 1, "rows": {}}
    if chosen.output.exists():
        document = json.loads(chosen.output.read_text())
    document["environment"] = environment()

    def measure(kind: str, key: str, job: Callable[[], dict[str, Any]]) -> None:
        if key in document["rows"] or chosen.only not in (None, kind):
            return
        print(key, file=sys.stderr, flush=True)
        document["rows"][key] = {**job(), "commit": document["environment"]["commit"]}
        write(document, chosen.output)

    grasps = [("grasp", {"unit": "weight"}), ("grasp", {"unit": "weight", "sign": "published-snipit"})]
    weighted = [(n, {"unit": "weight"}) if n in ("synflow", "random") else (n, {}) for n in FLOWS if n != "grasp"] + grasps
    for data, network, shape in (
        (chosen.mnist, "mlp5", {}), (chosen.mnist, "lenet5", {}),
        (chosen.data, "mlp5", COLOUR), (chosen.data, "lenet5", COLOUR),
    ):  # fmt: skip
        for name, options in weighted:
            for seed in range(3):
                key = _key("flow", network, Path(data).name, name, options, seed)
                measure("flow", key, partial(flow, data, network, shape, name, options, seed))
    for name in EXTREME:
        measure("extreme", _key("extreme", name), partial(extreme, chosen.data, name))
    for network in reversed(COSTS):
        measure("product", _key("product", network), partial(product, chosen.data, network))
        for name, options in variants():
            if chosen.method and name not in chosen.method:
                continue
            question = {"data": chosen.data, "network": network, "name": name, "options": options, "samples": chosen.samples}
            measure("cost", _key("cost", network, name, options), partial(_in_a_process, question))
    print(tables(document["rows"]))


def _in_a_process(question: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "compressor.benchmarks.studies.methods", "--one", json.dumps(question)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
