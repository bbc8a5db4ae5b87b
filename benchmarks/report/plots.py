"""The pictures of a benchmark's page, as SVG. The only importer of matplotlib."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from benchmarks.latency import quartiles
from benchmarks.report.compare import (
    ENGINE_NAMES,
    INFERENCE,
    TRAIN_STEP,
    Comparison,
    comparisons,
    dense_of,
    mac_reduction,
    smalls_of,
)

DENSE, SMALL = "#9aa5b1", ("#1663a7", "#d9822b", "#2b8a6b", "#8a4fbf", "#b23b57")
INCH_OF_ROW = 0.24
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a file's name may hold dollars
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def all_plots(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (SVG, what it shows), for those that the document has values for."""
    found = {}
    for name, (draw, caption) in _PLOTS.items():
        with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
            figure = Figure(layout="constrained")
            if draw(document, figure):
                found[name] = (_svg(figure, name), caption)
    return found


def _svg(figure: Figure, name: str) -> str:
    """The figure for inlining: scalable, without a header, ids its own."""
    file = io.StringIO()
    with warnings.catch_warnings(action="ignore"):  # a glyph that matplotlib lacks, the reader's browser may have
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)


def _colour(document: dict[str, Any], name: str) -> str:
    names = [n["name"] for n in smalls_of(document)]
    return SMALL[names.index(name) % len(SMALL)] if name in names else DENSE


def _widths(document: dict[str, Any], figure: Figure) -> bool:
    """Every layer's width, dense and small, a bar over a bar."""
    dense = dense_of(document).get("widths", {})
    smalls = [n for n in smalls_of(document) if n.get("widths")]
    if not dense or not smalls:
        return False
    figure.set_size_inches(8, 1 + INCH_OF_ROW * len(dense))
    axes = figure.subplots()
    rows = range(len(dense))
    axes.barh(rows, list(dense.values()), color=DENSE, height=0.85)
    thick = 0.7 / len(smalls)
    for number, small in enumerate(smalls):
        offset = (number - (len(smalls) - 1) / 2) * thick
        widths = [small["widths"].get(layer, 0) for layer in dense]
        places = [row + offset for row in rows]
        axes.barh(places, widths, color=_colour(document, small["name"]), height=thick)
    axes.set(yticks=rows, yticklabels=list(dense), xlabel="output channels or neurons", ylim=(len(dense) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    bars = [bar for bar in axes.containers if isinstance(bar, BarContainer)]
    axes.legend(bars, [dense_of(document)["name"], *(n["name"] for n in smalls)], loc="lower right")
    return True


def _against_batch(document: dict[str, Any], figure: Figure) -> bool:
    """Time of one sample against the batch size, one panel for each kind of run."""
    runs = [(INFERENCE, "torch"), (INFERENCE, "onnxruntime"), (TRAIN_STEP, "torch")]
    measured = [t for t in document["times"] if t["values"]]
    runs = [run for run in runs if any((t["what"], t["engine"]) == run for t in measured)]
    if not runs:
        return False
    figure.set_size_inches(9, 3.3)
    drawn: dict[str, Any] = {}
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False, sharey=True)[0], runs, strict=True):
        for network in document["networks"]:
            mine = [t for t in measured if (t["network"], t["what"], t["engine"]) == (network["name"], *run)]
            if not mine:
                continue
            spreads = [[1000 * v / t["batch"] for v in quartiles(t["values"])] for t in mine]
            medians = [s[1] for s in spreads]
            errors = [[s[1] - s[0] for s in spreads], [s[2] - s[1] for s in spreads]]
            sizes = [t["batch"] for t in mine]
            drawn[network["name"]] = axes.errorbar(
                sizes, medians, yerr=errors, marker="o", markersize=4, capsize=3, color=_colour(document, network["name"])
            )
        axes.set(xscale="log", yscale="log", xlabel="batch size", title=f"{_what(run[0])}, {ENGINE_NAMES[run[1]]}")
        sizes = sorted({t["batch"] for t in document["times"]})
        axes.set_xticks(sizes, [str(s) for s in sizes])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
    figure.axes[0].set_ylabel("ms of one sample")
    names = [n["name"] for n in document["networks"] if n["name"] in drawn]
    figure.legend([drawn[name] for name in names], names, loc="outside lower center", ncols=3)
    return True


def _what(what: str) -> str:
    return what.replace("_", " ")


def _speedups(document: dict[str, Any], figure: Figure) -> bool:
    """Every speed-up with its spread, against the line where every saved multiply-add is saved time."""
    names = [n["name"] for n in smalls_of(document)]
    shown = sorted((c for c in comparisons(document) if not c.failed), key=lambda c: names.index(c.network))
    if not shown:
        return False
    figure.set_size_inches(8, 1.2 + INCH_OF_ROW * len(shown))
    axes = figure.subplots()
    for row, c in enumerate(shown):
        errors = [[max(0.0, c.ratio - c.low)], [max(0.0, c.high - c.ratio)]]
        colour = _colour(document, c.network)
        axes.barh(row, c.ratio, xerr=errors, capsize=2, height=0.75, color=colour, alpha=1 if c.significant else 0.35)
    labels = [_label(c) for c in shown]
    for row, c in enumerate(shown):
        reduction = mac_reduction(document, c.network, c.what)
        if math.isfinite(reduction):
            axes.vlines(reduction, row - 0.5, row + 0.5, color="black", linestyle="--", linewidth=1.2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(yticks=range(len(shown)), yticklabels=labels, ylim=(len(shown) - 0.4, -0.6), xlabel="dense time / small time")
    axes.grid(visible=False, axis="y")
    return True


def _label(c: Comparison) -> str:
    return f"{c.network}: {_what(c.what)}, {ENGINE_NAMES[c.engine]}, batch {c.batch}"


def _memory(document: dict[str, Any], figure: Figure) -> bool:
    """Peak memory of every run, above what the libraries take by themselves."""
    shown = [m for m in document["memory"] if not m["failed"]]
    if not shown:
        return False
    figure.set_size_inches(8, 1 + INCH_OF_ROW * len(shown))
    axes = figure.subplots()
    for row, m in enumerate(shown):
        axes.barh(row, taken(m) / 2**20, height=0.75, color=_colour(document, m["network"]))
    labels = [f"{m['network']}: {_what(m['what'])}, {ENGINE_NAMES[m['engine']]}, batch {m['batch']}" for m in shown]
    axes.set(yticks=range(len(shown)), yticklabels=labels, ylim=(len(shown) - 0.4, -0.6), xlabel="MiB")
    axes.grid(visible=False, axis="y")
    return True


def taken(m: dict[str, Any]) -> int:
    """Bytes of a measurement of memory: allocated on a GPU; on a CPU what the process took above the libraries' own."""
    return m["allocated"] if "allocated" in m else max(0, m["peak"] - m["baseline"])


_PLOTS: dict[str, tuple[Callable[[dict[str, Any], Figure], bool], str]] = {
    "widths": (_widths, "Width of every layer, before and after."),
    "batch": (_against_batch, "Time of one sample against the batch size; bars are quartiles."),
    "speedup": (
        _speedups,
        "Speed-up of every run, with the quartiles of its rounds. The dashed line is its MAC reduction: a bar that reaches it "
        "turned every saved operation into saved time. Pale bars are not significant.",
    ),
    "memory": (_memory, "Peak memory of every run, above what the libraries take by themselves."),
}
