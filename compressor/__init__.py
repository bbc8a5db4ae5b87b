"""Structured pruning: smaller, faster, proven networks.

    from compressor import compress, load, save
    result = compress(model, "snapit", batches, sparsity=0.93)
    result.model, result.plan, result.summary

Names are imported when they are first used, so that `compress --help` and `dir(compressor)` do not wait for torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor import networks
    from compressor.checkpoint.checkpoint import load, save
    from compressor.coupling import structure
    from compressor.data import Columns
    from compressor.errors import CompressError
    from compressor.exporters import check_equivalence, export
    from compressor.method import Method
    from compressor.options import option
    from compressor.proof.equivalence import Equivalence
    from compressor.pruning.compress import compress, score
    from compressor.pruning.replay import apply_plan
    from compressor.pruning.result import Result, Summary
    from compressor.pruning.sensitivity import sensitivity
    from compressor.pruning.train import train
    from compressor.settings import Budget, Pruning
    from compressor.training.recipe import Recipe
    from compressor.types.plan import Plan
    from compressor.types.scores import Scores
    from compressor.types.structure import Group, Structure

if not (_HERE := Path(__file__).parent).joinpath("exporters").is_dir():  # a checkout, where those folders lie beside this one
    __path__.append(str(_HERE.parent))

__version__ = "0.1.0"

_HOMES = {
    "checkpoint.checkpoint": ("load", "save"),
    "proof.equivalence": ("Equivalence",),
    "errors": ("CompressError",),
    "exporters": ("check_equivalence", "export"),
    "method": ("Method", "option"),
    "pruning.compress": ("compress", "score"),
    "pruning.replay": ("apply_plan",),
    "training.recipe": ("Recipe",),
    "coupling": ("structure",),
    "data": ("Columns",),
    "pruning.train": ("train",),
    "pruning.result": ("Result", "Summary"),
    "pruning.sensitivity": ("sensitivity",),
    "settings": ("Budget", "Pruning"),
    "types": ("Group", "Plan", "Scores", "Structure"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "Columns",
    "CompressError",
    "Equivalence",
    "Group",
    "Method",
    "Plan",
    "Pruning",
    "Recipe",
    "Result",
    "Scores",
    "Structure",
    "Summary",
    "apply_plan",
    "check_equivalence",
    "compress",
    "export",
    "load",
    "networks",
    "option",
    "save",
    "score",
    "sensitivity",
    "structure",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "networks":
        return importlib.import_module("compressor.networks")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"compressor.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
