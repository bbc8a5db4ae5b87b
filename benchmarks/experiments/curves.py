"""The curves of a sweep's page: what is kept against what is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from compressor.benchmarks.report.plots import DENSE, SMALL, STYLE, svg

if TYPE_CHECKING:
    from compressor.benchmarks.experiments.cells import Cell


Paper = Callable[["Cell"], Mapping[str, Any] | None]
"""The row of a paper that belongs to a kind of trial."""


def experiment_plots(cells: Sequence[Cell], paper: Paper) -> dict[str, tuple[str, str]]:
    """Name -> (SVG, what it shows): accuracy, or else loss, against what is left, of each network and data, with 95 % bands."""
    found = {}
    for network, data in dict.fromkeys((c.network, c.data) for c in cells):
        mine = [c for c in cells if (c.network, c.data) == (network, data) and c.judged]
        judges, own = {c.judge[0] for c in mine}, [c.metric[0] for c in mine if c.metric]
        what = own[0] if own else "accuracy" if "accuracy" in judges else "loss"
        for measure, label in (("weight_sparsity", "weights left, %"), ("macs_x", "MACs of the dense network / of this one")):
            name = f"{network}-{data}-{measure}"
            with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
                figure = Figure(layout="constrained")
                if _trade_off(mine, measure, (label, what), figure, paper):
                    of = f"{network.rpartition('/')[2]} on {data}"
                    aside = "single points side by side, hollow ones the papers'"
                    found[name] = svg(figure, name), f"{of}: {what}, mean and 95 % interval, against {label}; {aside}"
    return found


BESIDE = 5.0
"""Points, 1/72 inch, between single points of different kinds, which may lie at the same place."""


def _trade_off(cells: Sequence[Cell], measure: str, labels: tuple[str, str], figure: Figure, paper: Paper) -> bool:
    """A line per kind of trial, a point per target, a band of 95 %; the dense network as a level. Hollow: the papers'."""
    pruned = [c for c in cells if c.method is not None and c.mean(measure) is not None]
    if not pruned or (measure == "macs_x" and all((c.mean(measure) or 1) < 1.05 for c in pruned)):
        return False
    figure.set_size_inches(8, 4)
    axes = figure.subplots()
    kinds = list(dict.fromkeys(c.label for c in pruned))
    for number, kind in enumerate(kinds):
        colour = SMALL[number % len(SMALL)]
        marker = "osv^DPX*"[number // len(SMALL) % 8]
        points = []
        for c in pruned:
            if c.label == kind:
                x, judged = c.mean(measure), c.judged
                assert x is not None
                assert judged is not None
                points.append((100 * (1 - x) if measure == "weight_sparsity" else x, *judged))
                if (point := _of_paper(paper(c), measure)) is not None:
                    hollow: Any = {"marker": marker, "markersize": 6, "markerfacecolor": "none", "linestyle": "none"}
                    axes.plot(*point, color=colour, **hollow, gid=f"paper-{number}-{len(points)}")
        xs, ys, halves = zip(*sorted(points), strict=True)
        aside = BESIDE * (number - (len(kinds) - 1) / 2) if len(points) == 1 else 0.0  # equal budgets would hide each other
        at = axes.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
        axes.plot(xs, ys, color=colour, marker=marker, markersize=4, linewidth=1.2, label=kind, transform=at)
        axes.update_datalim([(x, y + sign * h) for x, y, h in points for sign in (-1, 1)])  # what stands aside is left out
        if len(points) > 1:
            low, high = ([y + sign * h for y, h in zip(ys, halves, strict=True)] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.errorbar(xs, ys, yerr=halves, color=colour, capsize=2, linewidth=1, transform=at)
    for c in cells:
        if c.method is None and c.judged is not None:
            axes.axhline(c.judged[0], color=DENSE, linestyle="--", linewidth=1, label=c.label)
            if (row := paper(c)) is not None:
                axes.axhline(row["accuracy"], color=DENSE, linestyle=":", linewidth=1, label=f"{c.label}, paper")
    axes.margins(x=0.08)
    axes.autoscale_view()
    if axes.dataLim.x1 > 3 * axes.dataLim.x0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    most = 100.0 if labels[1] == "accuracy" else math.inf
    axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(most, axes.get_ylim()[1]))  # of few seeds, an interval is wider
    if measure == "weight_sparsity":
        axes.invert_xaxis()
    axes.set_xlabel(labels[0])
    axes.set_ylabel("test accuracy, %" if labels[1] == "accuracy" else f"test {labels[1]}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def _of_paper(row: Mapping[str, Any] | None, measure: str) -> tuple[float, float] | None:
    """Where a paper's row lies among ours; None where it does not say that measure."""
    if row is None or (measure == "macs_x" and "flops_inference_x" not in row):
        return None
    return (100 - row["weight_sparsity"] if measure == "weight_sparsity" else row["flops_inference_x"]), row["accuracy"]
