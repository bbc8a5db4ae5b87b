"""A report for people, on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from compressor.options import spelled

BAR = 40
"""Characters of a full bar."""


def show(d: dict[str, Any]) -> None:
    """Write a report to stdout: costs, widths, proofs, and what the reader should know."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    paths = [f["path"] for f in d["files"]]
    sparsity = d["node_sparsity"]
    table = Table(title=f"{paths[0]} -> {', '.join(paths[1:])}", title_justify="left", box=None, pad_edge=False)
    for column in ("", "dense", "small", "dense / small"):
        table.add_column(column, justify="left" if not column else "right")
    for label, key in (("nodes", "nodes"), ("MACs per sample", "macs"), ("parameters", "parameters"),
                       ("conv and linear weights", "weights")):  # fmt: skip
        big, small = d[key]["dense"], d[key]["small"]
        table.add_row(label, f"{big:,}", f"{small:,}", f"{big / small:,.1f}x" if small else "-")
    dense_bytes = d["files"][0]["bytes"]
    for file in d["files"][1:]:
        label = f"bytes of {Path(file['path']).name}"
        table.add_row(label, f"{dense_bytes:,}", f"{file['bytes']:,}", f"{dense_bytes / file['bytes']:,.1f}x")
    if d["accuracy"]:
        a = d["accuracy"]
        dense = f"{a['dense']:.1%}{' as it came' if d.get('training') else ''}"
        table.add_row(f"accuracy on {a['samples']:,} samples", dense, f"{a['small']:.1%}", "")
    elif d["loss"]:
        table.add_row(f"loss on {d['loss']['samples']:,} samples", f"{d['loss']['dense']:.4g}", f"{d['loss']['small']:.4g}", "")
    console.print(table)
    if d.get("training"):
        console.print(training_line(d["training"]), soft_wrap=True)
    if d.get("ablation"):
        console.print(f"\nthis is a control, not the method itself: {d['ablation']}")
    if d.get("masks"):
        _show_masks(console, d["masks"])
    console.print(
        f"\nnode sparsity {sparsity['reached']:.5f} reached, {_asked(d)}; "
        f"weight sparsity {d['weight_sparsity']:.5f}; {d['method']}, {len(d['events'])} events, data {d['data']}"
    )
    console.print(_widths_table(d["widths"]))
    for layer, reason in d["frozen"].items():
        console.print(f"stays whole  {layer}: {reason}", soft_wrap=True)
    for proof in d["equivalence"]:
        console.print(proof_line(proof), soft_wrap=True)
    if d["near_collapse"]:
        named = ", ".join(f"{layer} ({left})" for layer, left in d["near_collapse"].items())
        console.print(f"near collapse, fewer than 4 nodes left: {named}; {spelled('floor', 'N')} keeps more", soft_wrap=True)
    for note in d["notes"]:
        console.print(note, soft_wrap=True)


NEAR = 0.01
"""A weight with a smaller share left than this is reported by name."""


def _show_masks(console: Console, m: dict[str, Any]) -> None:
    """What became of single weights."""
    reached, effective = (1 - m[key] / m["total"] for key in ("left", "on_a_path"))
    console.print(
        f"\nweights set to zero: {reached:.5f} reached, {m['asked']:g} asked; {effective:.5f} with those on no path from "
        f"input to output; {m['dead_nodes']:,} nodes on no path are gone",
        soft_wrap=True,
    )
    console.print(_share_table({name: (w["dense"], w["left"]) for name, w in m["layers"].items()}, "weights"))
    few = [f"{name} ({w['left']:,} of {w['dense']:,})" for name, w in m["layers"].items() if w["left"] < NEAR * w["dense"]]
    if few:
        console.print(f"near collapse, fewer than {NEAR:.0%} of the weights left: {', '.join(few)}", soft_wrap=True)
    if m["silent_outputs"]:
        console.print(f"{m['silent_outputs']} outputs no longer depend on the input", soft_wrap=True)


def training_line(t: dict[str, Any]) -> str:
    """What a training came to, in one line."""
    test = t["test"]
    epochs = len(t["history"])
    done = f"{epochs} epoch{'' if epochs == 1 else 's'}, {t['seconds']:,.0f} s, {2 * t['macs']:.2e} FLOPs"
    if test is None:
        last = f"training loss {t['history'][-1]['train_loss']:.4g}, no test data; " if t["history"] else ""
        return f"\ntrained: {last}{done}"
    how_well = f"loss {test['loss']:.4g}" if test["accuracy"] is None else f"accuracy {test['accuracy']:.2%}"
    return f"\ntrained: {how_well} on all {test['samples']:,} test samples after {done}"


def show_training(d: dict[str, Any]) -> None:
    """Write the report of a training without pruning to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(f"{d['network']} -> {', '.join(f['path'] for f in d['files'])}, data {d['data']}", soft_wrap=True)
    console.print(f"{d['cost']['parameters']:,} parameters, {d['cost']['macs']:,} MACs per sample", soft_wrap=True)
    console.print(training_line(d["training"]).strip(), soft_wrap=True)
    for proof in d["equivalence"]:
        console.print(proof_line(proof), soft_wrap=True)
    for note in d["notes"]:
        console.print(note, soft_wrap=True)


def _asked(d: dict[str, Any]) -> str:
    """What the pruning aimed at."""
    if d.get("masks"):
        return "weights were asked for"
    if d["node_sparsity"]["asked"] is not None:
        return f"{d['node_sparsity']['asked']:g} asked"
    b = d["budget"]
    return f"{b['asked']:,.0f} {b['unit']} asked, {b['reached']:,.0f} reached"


def _widths_table(widths: dict[str, dict[str, int]]) -> Table:
    """Every layer's nodes before and after, with a bar for the share that is left."""
    return _share_table({layer: (w["dense"], w["small"]) for layer, w in widths.items()}, "nodes")


def _share_table(shares: dict[str, tuple[int, int]], what: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("layer", what, "left", ""):
        table.add_column(column, justify="left" if column in ("layer", "") else "right")
    for layer, (dense, left) in shares.items():
        bar = "#" * (max(1, round(BAR * left / dense)) if left else 0)
        table.add_row(layer, f"{dense:,}", f"{left:,}", bar.ljust(BAR, "."))
    return table


def proof_line(proof: dict[str, Any]) -> str:
    """One proof in one line: verdict, difference, the tolerance that would have been needed."""
    verdict = "equivalent" if proof["equivalent"] else "NOT EQUIVALENT"
    agreement = proof["argmax_agreement"]
    same = "" if agreement is None else f", arg-max {agreement:.0%} of {proof['samples_with_clear_margin']} clear samples"
    return (
        f"{verdict}  {proof['what']}: difference {proof['max_difference']:.1e}, "
        f"{proof['needed_tolerance']:.1e} of the range ({proof['tolerance']:.0e} allowed){same}"
        if proof["max_difference"] is not None
        else f"{verdict}  {proof['what']}: other shapes, or values that are not finite"
    )
