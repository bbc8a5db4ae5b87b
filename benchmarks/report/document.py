"""The report as data: what `--report` and `--json` write, and what every rendering is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.model.cost import cost
from compressor.model.inputs import Inputs, suited
from compressor.objective.objective import Quality
from compressor.proof.equivalence import Equivalence
from compressor.pruning.result import Result, Summary
from compressor.pruning.train import Trained
from compressor.system.environment import environment

SCHEMA = 1
UNTRAINED = "A pruned network that was not trained afterwards is expected to be poor: train it before judging its accuracy."


def make_document(
    result: Result, proofs: list[Equivalence], qualities: list[Quality] | None, files: Mapping[Path, int], data: str,
    remarks: list[str], device: str, seed: int, trained: Trained | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The report as data, ready for JSON: raw values, no ratios (readers compute those).

    Args:
        proofs: of the written files; the proofs of the surgery are in the result.
        qualities: how well the dense and the small network do, where there is data to tell.
        files: bytes of the dense network's file, then of those that were written.
        data: name of the data that was scored on.
        remarks: sentences that come before the result's own notes.
        trained: the training that came with the pruning.
    """
    s = result.summary
    before, after = s.before, s.after

    def both(name: str) -> dict[str, Any]:
        return {"dense": getattr(before, name), "small": getattr(after, name)}

    document = {
        "schema": SCHEMA,
        "method": s.method,
        "options": s.options,
        "data": data,
        "samples_per_event": s.samples,
        "events": [{"sparsity": e.sparsity, "loss": e.loss, "tie": e.tie} for e in result.plan.events],
        "node_sparsity": {"asked": s.asked if s.weights is None and _of_nodes(s) else None, "reached": s.reached},
        "masks": _masks(s),
        "ablation": s.ablation,
        "budget": asdict(s.budget) if s.budget else None,
        "round_to": s.round_to,
        "open_share": s.open_share,
        "weight_sparsity": s.weight_sparsity,
        "nodes": {"dense": s.total_nodes, "small": round((1 - s.reached) * s.total_nodes)},
        "macs": both("macs"),
        "parameters": both("parameters"),
        "weights": both("weights"),
        "tensor_bytes": both("tensor_bytes"),
        "csr_bytes": both("csr_bytes"),
        "files": [{"path": str(path), "bytes": size} for path, size in files.items()],
        "training": None if trained is None else _training(trained),
        "loss": _quality(qualities, "loss"),
        "accuracy": _quality(qualities, "accuracy"),
        "widths": {layer: {"dense": w[0], "small": w[1]} for layer, w in s.widths.items()},
        "near_collapse": s.near_collapse,
        "frozen": s.frozen,
        "equivalence": [proof.as_dict() for proof in (*s.proofs, *proofs)],
        "seconds": s.seconds,
        "seed": seed,
        "environment": environment(device),
        "notes": [*remarks, *s.notes, *([UNTRAINED] if trained is None else trained.notes)],
    }
    return _as_json(document)


def training_document(
    trained: Trained, inputs: Inputs, proofs: list[Equivalence], files: Mapping[Path, int], network: str, data: str,
    remarks: list[str], device: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The report of a training without pruning. Arguments as in `make_document`; `network` is what was trained."""
    document = {
        "schema": SCHEMA,
        "network": network,
        "data": data,
        "training": _training(trained),
        "cost": asdict(cost(trained.model, suited(trained.model, inputs))),
        "files": [{"path": str(path), "bytes": size} for path, size in files.items()],
        "equivalence": [proof.as_dict() for proof in proofs],
        "seed": seed,
        "environment": environment(device),
        "notes": [*remarks, *trained.notes],
    }
    return _as_json(document)


def _as_json(document: dict[str, Any]) -> dict[str, Any]:
    """As it will be read back."""
    back: dict[str, Any] = json.loads(json.dumps(document))
    return back


def _training(trained: Trained) -> dict[str, Any]:
    """What the epochs came to."""
    return {
        "recipe": asdict(trained.recipe),
        "stage": trained.stage,
        "history": [asdict(row) for row in trained.history],
        "test": None if trained.quality is None else asdict(trained.quality),
        "macs": trained.macs,
        "seconds": trained.seconds,
    }


def _of_nodes(summary: Summary) -> bool:
    return summary.budget is None or summary.budget.unit == "nodes"


def _masks(summary: Summary) -> dict[str, Any] | None:
    """What became of single weights, where they were removed."""
    w = summary.weights
    if w is None:
        return None
    layers = {name: {"dense": dense, "left": left} for name, (dense, left) in w.by_layer.items()}
    return {"asked": summary.asked, "total": w.total, "left": w.left, "on_a_path": w.effective, "dead_nodes": w.dead,
            "silent_outputs": w.silent, "layers": layers}  # fmt: skip


def _quality(qualities: list[Quality] | None, name: str) -> dict[str, Any] | None:
    """Dense and small, or None where the data cannot tell."""
    if not qualities or getattr(qualities[0], name) is None:
        return None
    return {"dense": getattr(qualities[0], name), "small": getattr(qualities[1], name), "samples": qualities[0].samples}
