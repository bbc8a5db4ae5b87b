"""A report for people, on a terminal."""

from __future__ import annotations

from typing import Any

from compressor.pruning.result_text import proof_line, result_text, training_line
from compressor.system.terminal import say

__all__ = ["proof_line", "show", "show_training"]


def show(d: dict[str, Any]) -> None:
    """Write the report of a pruning to stdout: costs, widths, proofs, and what the reader should know."""
    say(result_text(d))


def show_training(d: dict[str, Any]) -> None:
    """Write the report of a training without pruning to stdout."""
    say(f"{d['network']} -> {', '.join(f['path'] for f in d['files'])}, data {d['data']}")
    say(f"{d['cost']['parameters']:,} parameters, {d['cost']['macs']:,} MACs per sample")
    say(training_line(d["training"]).strip())
    for line in (*map(proof_line, d["equivalence"]), *d["notes"]):
        say(line)
