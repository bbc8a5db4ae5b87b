"""The pictures of a benchmark's page, as SVG. The only importer of matplotlib."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from torch import Tensor

from compressor.benchmarks.measure.bench_document import BenchDocument, Memory
from compressor.benchmarks.measure.latency import quartiles
from compressor.benchmarks.measure.runs import INFERENCE, TRAIN_STEP
from compressor.benchmarks.report.compare import ENGINE_NAMES, Comparison, comparisons, dense_of, mac_reduction, smalls_of
from compressor.types.curves import LITTLE, Sensitivity

if TYPE_CHECKING:
    from compressor.pruning.result import Result
    from compressor.pruning.search import Search

DENSE, SMALL = "#9aa5b1", ("#1663a7", "#d9822b", "#2b8a6b", "#8a4fbf", "#b23b57")
INCH_OF_ROW = 0.24
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a file's name may hold dollars
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def all_plots(document: BenchDocument) -> dict[str, tuple[str, str]]:
    """Name -> (SVG, what it shows), for those that the document has values for."""
    found = {}
    for name, (draw, caption) in _PLOTS.items():
        with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
            figure = Figure(layout="constrained")
            if draw(document, figure):
                found[name] = (svg(figure, name), caption)
    return found


def pruning_plots(
    left: Mapping[str, tuple[int, int]], unit: str, curves: Mapping[str, Tensor], first: tuple[str, Tensor] | None
) -> dict[str, str]:
    """Name -> SVG of one pruning: what is left of each layer, the sorted scores, and the first layer's mask.

    Args:
        left: layer -> nodes or weights in the dense network, and those that are left.
        unit: what they are.
        curves: group or weight -> its scores in falling order.
        first: name and booleans of the first weight, where single weights were removed.
    """
    drawings: dict[str, Callable[[Figure], None]] = {"remaining": lambda figure: _remaining(left, unit, figure)}
    if curves:
        drawings["scores"] = lambda figure: _sorted_scores(curves, figure)
    if first is not None:
        drawings["first_layer"] = lambda figure: _first_layer(*first, figure)
    found = {}
    for name, draw in drawings.items():
        with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
            figure = Figure(layout="constrained")
            draw(figure)
            found[name] = svg(figure, name)
    return found


def sensitivity_plot(found: Sensitivity) -> str:
    """SVG of what the outputs lose as the nodes of each group go, a line for each, on a log scale."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "sensitivity"}):
        figure = Figure(layout="constrained")
        figure.set_size_inches(8, 5)
        axes = figure.subplots()
        curves = {name: curve for name, curve in found.curves.items() if curve.width > 1}
        colours = mpl.colormaps["viridis"](torch.linspace(0, 0.95, len(curves)).numpy())
        for (name, curve), colour in zip(curves.items(), colours, strict=True):
            points = [(100 * (1 - w / curve.width), y) for w, y in zip(curve.widths, curve.losses, strict=True) if y > 0]
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker="o", markersize=3) if points else None
        axes.axhline(LITTLE, color=DENSE, linestyle="--", linewidth=1)
        axes.set(
            xlabel="nodes of the layer that are gone, the weakest first, %", yscale="log", xlim=(0, 100),
            ylabel="squared distance to the dense outputs, of their variance",
        )  # fmt: skip
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if len(curves) <= MOST_NAMES:
            axes.legend(fontsize=7, ncols=2)
        return svg(figure, "sensitivity")


def search_plot(search: Search) -> str:
    """SVG of a search's path: what each network does, with the paired interval, against what is left of the resource."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "search"}):
        figure = Figure(layout="constrained")
        figure.set_size_inches(8, 4.5)
        axes = figure.subplots()
        worse = 1 if search.higher_is_better else -1
        for kept, colour, label in ((True, SMALL[0], "within the drop"), (False, SMALL[1], "not shown to be")):
            steps = [s for s in search.steps if s.kept is kept and s.left is not None]
            axes.errorbar(
                [100 * (s.left or 0) for s in steps], [search.dense - worse * (s.drop or 0) for s in steps],
                yerr=[s.margin or 0 for s in steps], fmt="o", color=colour, capsize=3, label=label,
            )  # fmt: skip
        axes.axhline(search.dense, color=DENSE, linewidth=1, label="dense")
        axes.axhline(search.dense - worse * search.max_drop, color=DENSE, linestyle="--", linewidth=1, label="allowed")
        axes.set(xlabel=f"{search.unit} left, %", ylabel=search.metric, xlim=(0, 100))
        axes.legend(fontsize=8)
        return svg(figure, "search")


def pictures_of(result: Result, folder: Path) -> dict[Path, str]:
    """Path -> picture of what the pruning did; the folder is made."""
    s, masks = result.summary, result.plan.masks
    left = s.weights.by_layer if s.weights else s.widths
    first = next(((name, mask.tensor()) for name, mask in masks.items()), None)
    drawn = pruning_plots(left, "weights" if s.weights else "nodes", result.curves, first)
    folder.mkdir(exist_ok=True)
    return {folder / f"{name}.svg": picture for name, picture in drawn.items()}


def _remaining(pairs: Mapping[str, tuple[int, int]], unit: str, figure: Figure) -> None:
    """The share of each layer that is left, with the number."""
    figure.set_size_inches(8, 1 + INCH_OF_ROW * len(pairs))
    axes, rows = figure.subplots(), range(len(pairs))
    axes.barh(rows, [100 * left / dense for dense, left in pairs.values()], color=SMALL[0], height=0.75)
    for row, (dense, left) in zip(rows, pairs.values(), strict=True):
        axes.text(100 * left / dense, row, f" {left:,} of {dense:,}", va="center", fontsize=7)
    axes.set(yticks=rows, yticklabels=list(pairs), ylim=(len(pairs) - 0.4, -0.6), xlabel=f"{unit} left, %")
    axes.grid(visible=False, axis="y")


def _sorted_scores(curves: Mapping[str, Tensor], figure: Figure) -> None:
    """The first event's scores in falling order, a line for each layer, on a log scale (SNIP-it, fig. 6)."""
    figure.set_size_inches(8, 5)
    axes = figure.subplots()
    colours = mpl.colormaps["viridis"](torch.linspace(0, 0.95, len(curves)).numpy())
    for (name, values), colour in zip(curves.items(), colours, strict=True):
        shown = values.abs()
        axes.plot(
            torch.linspace(0, 100, len(shown)).numpy(), shown.where(shown > 0, torch.nan).numpy(), color=colour, label=name
        )
    axes.set(
        xlabel="nodes or weights of the layer, highest first, %", ylabel="score (its size, where it is negative)", yscale="log"
    )
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0e}"))
    if len(curves) <= MOST_NAMES:
        axes.legend(fontsize=7, ncols=2)


MOST_NAMES = 24


def _first_layer(name: str, mask: Tensor, figure: Figure) -> None:
    """What is left of the first layer: how often a linear one reads each pixel (SNIP, fig. 2), or a convolution's kernels."""
    figure.set_size_inches(6, 6)
    axes = figure.subplots()
    if mask.dim() > 2:
        kernels = mask.flatten(3).sum(1) if mask.dim() > 4 else mask.sum(1)
        kernels = kernels if kernels.dim() == 3 else kernels[:, None]
        columns = math.ceil(math.sqrt(len(kernels)))
        padded = torch.nn.functional.pad(kernels.float(), (0, 1, 0, 1), value=torch.nan)
        padded = torch.cat([padded, padded.new_full((-len(kernels) % columns, *padded.shape[1:]), torch.nan)])
        rows = len(padded) // columns
        image = padded.reshape(rows, columns, *padded.shape[1:]).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        what = "input channels that each place of each kernel reads"
    else:
        reads = mask.sum(0).float()
        side = next((math.isqrt(len(reads) // c) for c in (1, 3) if len(reads) % c == 0 and _is_square(len(reads) // c)), 0)
        image = reads.reshape(-1, side, side).sum(0) if side else mask.float()
        what = "how often each pixel is read" if side else "weights that stay"
    shown = axes.imshow(image.numpy(), cmap="viridis", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{name}: {what}", fontsize=8)
    axes.grid(visible=False)
    figure.colorbar(shown, shrink=0.7)


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def svg(figure: Figure, name: str) -> str:
    """The figure for inlining: scalable, without a header, ids its own."""
    file = io.StringIO()
    with warnings.catch_warnings(action="ignore"):  # a glyph that matplotlib lacks, the reader's browser may have
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)


def _colour(document: BenchDocument, name: str) -> str:
    names = [n["name"] for n in smalls_of(document)]
    return SMALL[names.index(name) % len(SMALL)] if name in names else DENSE


def _widths(document: BenchDocument, figure: Figure) -> bool:
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


def _against_batch(document: BenchDocument, figure: Figure) -> bool:
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


def _speedups(document: BenchDocument, figure: Figure) -> bool:
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


def _memory(document: BenchDocument, figure: Figure) -> bool:
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


def taken(m: Memory) -> int:
    """Bytes of a measurement of memory: allocated on a GPU; on a CPU what the process took above the libraries' own."""
    return m["allocated"] if "allocated" in m else max(0, m["peak"] - m["baseline"])


_PLOTS: dict[str, tuple[Callable[[BenchDocument, Figure], bool], str]] = {
    "widths": (_widths, "Width of every layer, before and after."),
    "batch": (_against_batch, "Time of one sample against the batch size; bars are quartiles."),
    "speedup": (
        _speedups,
        "Speed-up of every run, with the quartiles of its rounds. The dashed line is its MAC reduction: a bar that reaches it "
        "turned every saved operation into saved time. Pale bars are not significant.",
    ),
    "memory": (_memory, "Peak memory of every run, above what the libraries take by themselves."),
}
