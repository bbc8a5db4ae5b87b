"""A report for people, on a terminal."""

from __future__ import annotations

import sys
from typing import Any

from compressor.pruning.result_text import proof_line, result_text, training_line

__all__ = ["proof_line", "show", "show_training"]


def show(d: dict[str, Any]) -> None:
    """Write the report of a pruning to stdout: costs, widths, proofs, and what the reader should know."""
    _write(result_text(d))


def show_training(d: dict[str, Any]) -> None:
    """Write the report of a training without pruning to stdout."""
    _write(f"{d['network']} -> {', '.join(f['path'] for f in d['files'])}, data {d['data']}")
    _write(f"{d['cost']['parameters']:,} parameters, {d['cost']['macs']:,} MACs per sample")
    _write(training_line(d["training"]).strip())
    for line in (*map(proof_line, d["equivalence"]), *d["notes"]):
        _write(line)


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # so that a full disk is an error here, where it can be told
