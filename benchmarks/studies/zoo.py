"""Networks that others wrote, each pruned to half of its nodes and proven: `python -m compressor.benchmarks.studies.zoo`.

One row per network in `benchmarks/results/zoo.json`, and a table. Each network has a process of its own, so that one that is
killed takes no other with it; rows that are there are not made again, so that a long run can be continued.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor import compress
from compressor.benchmarks.studies.results import RESULTS, write
from compressor.coupling import structure
from compressor.errors import CompressError
from compressor.system.environment import environment

SPARSITY = 0.5
SECONDS = 900
TIMM = [
    "resnet18",
    "regnety_004",
    "densenet121",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "maxvit_rmlp_pico_rw_256",
    "ghostnet_050",
    "hrnet_w18_small",
    "res2net50_14w_8s",
    "dla34",
    "ese_vovnet19b_dw",
    "nfnet_l0",
    "repvgg_a0",
    "edgenext_xx_small",
    "fastvit_t8",
    "levit_128s",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "pit_ti_224",
    "coat_tiny",
    "coatnet_pico_rw_224",
    "poolformer_s12",
    "mobilevit_xxs",
]
"""One network of each family, a small one."""

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


def import_torchvision() -> Any:
    """torchvision, with its missing operators declared where a CPU-only torch cannot load them."""
    try:
        import torchvision
    except RuntimeError:
        for module in [m for m in sys.modules if m.startswith("torchvision")]:
            del sys.modules[module]
        declared = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        globals()["_declared"] = declared  # it lives as long as it is kept
    return torchvision


def torchvision_networks() -> dict[str, Callable[[], tuple[nn.Module, Inputs]]]:
    """Every classifier of torchvision that is not quantised."""
    models = import_torchvision().models

    def maker(name: str) -> Callable[[], tuple[nn.Module, Inputs]]:
        size = 299 if name.startswith("inception") else 224
        return lambda: (models.get_model(name, weights=None), (torch.randn(2, 3, size, size),))

    return {name: maker(name) for name in models.list_models(module=models)}


def timm_networks() -> dict[str, Callable[[], tuple[nn.Module, Inputs]]]:
    """One of each family."""
    import_torchvision()
    import timm

    def make(name: str) -> tuple[nn.Module, Inputs]:
        model: Any = timm.create_model(name)
        return model, (torch.randn(2, *model.default_cfg["input_size"]),)

    return {name: partial(make, name) for name in TIMM}


def transformers_networks() -> dict[str, Callable[[], tuple[nn.Module, Inputs]]]:
    """Encoders of `transformers` as their configurations make them, smaller than the published ones."""
    import_torchvision()  # transformers imports it where it is installed
    import transformers

    hf: Any = transformers

    small: Any = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
    ids: Inputs = {"input_ids": torch.randint(5, 1000, (2, 64)), "attention_mask": torch.ones(2, 64, dtype=torch.int64)}
    image: Inputs = (torch.randn(2, 3, 224, 224),)
    distil = hf.DistilBertConfig(dim=192, n_layers=4, n_heads=6, hidden_dim=768)
    return {
        "BertForSequenceClassification": lambda: (hf.BertForSequenceClassification(hf.BertConfig(**small)), ids),
        "RobertaForSequenceClassification": lambda: (hf.RobertaForSequenceClassification(hf.RobertaConfig(**small)), ids),
        "DistilBertForSequenceClassification": lambda: (hf.DistilBertForSequenceClassification(distil), ids),
        "ViTForImageClassification": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**small)), image),
    }


FAMILIES: dict[str, Callable[[], dict[str, Callable[[], tuple[nn.Module, Inputs]]]]] = {
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "transformers": transformers_networks,
}


def row_of(make: Callable[[], tuple[nn.Module, Inputs]]) -> dict[str, Any]:
    """What became of one network."""
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    start = time.perf_counter()
    found = structure(model, inputs, prunable=False)
    row |= {"graph": found.found_by, "nodes": found.total_nodes, "graph_seconds": time.perf_counter() - start}
    start = time.perf_counter()
    try:
        result = compress(model, "random", None, SPARSITY, example_inputs=inputs)
    except CompressError as error:
        return row | {"refused": str(error), "seconds": time.perf_counter() - start}
    return row | {
        "seconds": time.perf_counter() - start,
        "open": result.summary.open_share,
        "sparsity": result.summary.reached,
        "mac_reduction": result.summary.before.macs / result.summary.after.macs,
        "needed_tolerance": max(p.needed_tolerance for p in result.summary.proofs),
        "equivalent": all(result.summary.proofs),
        "by_labels": any(p.kind == "structure" for p in result.summary.proofs),
        "label_seconds": result.summary.seconds["proof by labels"],
        "groups": len(result.plan.widths),
        "of_one_node": sum(width == 1 for width in result.plan.widths.values()),
        "frozen": dict(Counter(result.summary.frozen.values()).most_common(5)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _work(make: Callable[[], tuple[nn.Module, Inputs]], end: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    end.send(row_of(make))


def in_a_process(make: Callable[[], tuple[nn.Module, Inputs]]) -> dict[str, Any]:
    """The row of one network, made in a process of its own; of a process that ends without one, how it ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(make, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return dict(ours.recv())
        return {"failed": f"no result in {SECONDS} s"}
    except EOFError:
        process.join()
        return {"failed": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| network | open | nodes removed | MACs | graph | in all | equivalent | what stays whole |", "|" + " --- |" * 8]
    for name, row in rows.items():
        if "open" not in row:
            lines.append(f"| {name} | | | | | | | {row.get('refused') or row.get('failed')} |")
            continue
        reasons = [f"{count} x {reason}" for reason, count in list(row["frozen"].items())[:2]]
        if row["of_one_node"]:
            reasons.append(f"{row['of_one_node']} groups are one node each: all their channels go together")
        why = "; ".join(reasons)
        lines.append(
            f"| {name} | {row['open']:.0%} | {row['sparsity']:.1%} | {row['mac_reduction']:.2f}x fewer | "
            f"{row['graph_seconds']:.1f} s | {row['seconds']:.1f} s | {'yes' if row['equivalent'] else 'NO'} | {why} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the rows that are asked for and not there yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; all by default")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--again", action="store_true", help="make rows anew that are there")
    parser.add_argument("--results", type=Path, default=RESULTS / "zoo.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    here = environment()
    known = json.loads(given.results.read_text())["rows"] if given.results.exists() else {}
    for family in given.family or FAMILIES:
        try:
            makers = FAMILIES[family]()
        except ImportError as error:
            print(f"{family} is left out: {error}", file=sys.stderr)
            continue
        for name, make in makers.items():
            key = f"{family}:{name}"
            if (given.names and name not in given.names) or (key in known and not given.again):
                continue
            known[key] = {**in_a_process(make), "commit": here["commit"]}
            print(table({key: known[key]}).splitlines()[-1], file=sys.stderr, flush=True)
            content = {"schema": 1, "sparsity": SPARSITY, "environment": here, "rows": known}
            write(content, given.results)
    print(table(known))


if __name__ == "__main__":
    main()
