"""Curves of sensitivity on the terminal: what each layer loses, which to freeze, and which can spare most of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from compressor.benchmarks.report.network import console, plain
from compressor.options import spelled
from compressor.types.curves import LITTLE, Sensitivity

SHARES = {"1/8 gone": 1 / 8, "1/2 gone": 1 / 2, "7/8 gone": 7 / 8}
"""Of a group's nodes, in the columns of the table."""


def show_sensitivity(found: Sensitivity, document: Mapping[str, Any]) -> None:
    """Write it to stdout."""
    table = Table("layer", "nodes", *SHARES)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, curve in found.curves.items():
        cells = [f"{curve.without(share):.2%}" if curve.width > 1 else "" for share in SHARES.values()]
        table.add_row(plain(name), f"{curve.width:,}", *cells)
    out = console()
    out.print(
        plain(
            f"{document['model']}: squared distance to the dense outputs, of their variance, as nodes of one layer go, the "
            f"weakest by {found.method} first{', the layers behind refitted' if found.refitted else ', nothing refitted'}"
        )
    )
    out.print(table)
    for name in found.sensitive:
        layer = next((f" {spelled('freeze', repr(layer))}" for layer in found.layers[name] if layer), "")
        lost = found.curves[name].without(1 / 8)
        out.print(plain(f"sensitive: {name} loses {lost:.1%} with an eighth of its nodes; to keep it whole:{layer}"))
    if not found.sensitive:
        out.print(f"no layer needs to be frozen: each can lose an eighth of its nodes for at most {LITTLE:.0%}")
    if found.spare:
        out.print(plain(f"spare: {', '.join(found.spare)} lose at most {LITTLE:.0%} with seven eighths of their nodes"))
