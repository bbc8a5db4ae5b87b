"""The report as data: what `--report` and `--json` write, and what every rendering is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.model.cost import cost
from compressor.model.inputs import Inputs, suited
from compressor.objective.objective import Quality
from compressor.proof.equivalence import Equivalence
from compressor.pruning.result import Result
from compressor.pruning.search import Search
from compressor.system.environment import environment

if TYPE_CHECKING:
    from compressor.pruning.course import Trained

SCHEMA = 1
UNTRAINED = "A pruned network that was not trained afterwards is expected to be poor: train it before judging its accuracy."


def make_document(
    result: Result, proofs: list[Equivalence], qualities: list[Quality] | None, files: Mapping[Path, int], data: str,
    remarks: list[str], device: str, seed: int, trained: Trained | None = None, stages: Mapping[str, Quality] | None = None,
    search: Search | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The report as data, ready for JSON: what `Result.as_dict` says, and what became of the files.

    Args:
        proofs: of the written files; the proofs of the surgery are in the result.
        qualities: how well the dense and the small network do, where there is data to tell.
        files: bytes of the dense network's file, then of those that were written.
        data: name of the data that was scored on.
        remarks: sentences that come before the result's own notes.
        trained: the training that came with the pruning.
        stages: how well the network does dense, as pruned, and so on, all on the same data.
        search: that found its size.
    """
    of_pruning = result.as_dict()
    document = {
        "schema": SCHEMA,
        **of_pruning,
        "data": data,
        "files": [{"path": str(path), "bytes": size} for path, size in files.items()],
        "training": None if trained is None else _training(trained),
        "loss": _quality(qualities, "loss"),
        "accuracy": _quality(qualities, "accuracy"),
        "metric": _metric(qualities),
        "stages": [{"stage": name, **asdict(seen)} for name, seen in (stages or {}).items()],
        "search": None if search is None else asdict(search),
        "equivalence": [*of_pruning["equivalence"], *(proof.as_dict() for proof in proofs)],
        "seed": seed,
        "environment": environment(device),
        "notes": [
            *remarks,
            *of_pruning["notes"],
            *([UNTRAINED] if trained is None and result.summary.repair is None else trained.notes if trained else ()),
        ],
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


def _metric(qualities: list[Quality] | None) -> dict[str, Any] | None:
    """Dense and small by the metric of the user's choice."""
    if not qualities or qualities[0].metric is None or qualities[1].metric is None:
        return None
    first = qualities[0].metric
    values = {"dense": first.value, "small": qualities[1].metric.value, "samples": qualities[0].samples}
    return {"name": first.name, "higher_is_better": first.higher_is_better, **values}


def _quality(qualities: list[Quality] | None, name: str) -> dict[str, Any] | None:
    """Dense and small, or None where the data cannot tell."""
    if not qualities or getattr(qualities[0], name) is None:
        return None
    return {"dense": getattr(qualities[0], name), "small": getattr(qualities[1], name), "samples": qualities[0].samples}
