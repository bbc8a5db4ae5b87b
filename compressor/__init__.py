"""Structured pruning: smaller, faster, proven networks.

    from compressor import compress, load, save
    result = compress(model, "snapit", batches, sparsity=0.93)
    result.model, result.plan, result.summary

Names are imported when they are first used, so that `compress --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.checkpoint import load, save
    from compressor.coupling import structure
    from compressor.data import Columns
    from compressor.equivalence import Equivalence
    from compressor.errors import CompressError
    from compressor.fit import train
    from compressor.method import Method, option
    from compressor.pipeline import apply_plan, compress, score
    from compressor.recipe import Recipe
    from compressor.summary import Result, Summary
    from compressor.types import Group, Plan, Scores, Structure

_HOMES = {
    "checkpoint": ("load", "save"),
    "equivalence": ("Equivalence",),
    "errors": ("CompressError",),
    "method": ("Method", "option"),
    "pipeline": ("apply_plan", "compress", "score"),
    "recipe": ("Recipe",),
    "coupling": ("structure",),
    "data": ("Columns",),
    "fit": ("train",),
    "summary": ("Result", "Summary"),
    "types": ("Group", "Plan", "Scores", "Structure"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Columns",
    "CompressError",
    "Equivalence",
    "Group",
    "Method",
    "Plan",
    "Recipe",
    "Result",
    "Scores",
    "Structure",
    "Summary",
    "apply_plan",
    "compress",
    "load",
    "option",
    "save",
    "score",
    "structure",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"compressor.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
