"""A benchmark as a page, as Markdown, or as JSON: rendered from the same document, which alone holds the numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any

from compressor.benchmarks.measure.bench_document import BenchDocument, NetworkFacts
from compressor.benchmarks.report.compare import (
    ENGINE_NAMES,
    comparisons,
    dense_of,
    disk_meant,
    efficiency,
    headline,
    mac_reduction,
    node_sparsity,
    paper,
    paper_rows,
    smalls_of,
    times,
)

Row = list[str]
Table = tuple[str, Row, list[Row]]
"""(title, head, rows), all text."""


def to_json(document: Mapping[str, Any]) -> str:
    """The document itself."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def to_html(document: BenchDocument) -> str:
    """One self-contained page: no script, no file beside it, no network."""
    from compressor.benchmarks.report.plots import all_plots

    return page(**_parts(document), plots=all_plots(document))


def page(**parts: Any) -> str:
    """The page's template, filled."""
    from jinja2 import Environment, StrictUndefined

    template = files("compressor.benchmarks.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**parts)


def to_markdown(document: BenchDocument) -> str:
    """The same tables as Markdown, for a pull request or a README."""
    parts = _parts(document)
    lines = [f"# {parts['title']}", ""]
    for name, said in parts["headlines"].items():
        lines += [f"**{name}: {', '.join(said)}**", "", *(f"- {what}: {how}" for what, how in said.items()), ""]
    for title, head, rows in parts["tables"]:
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    lines += [*(f"{note}\n" for note in parts["footnotes"]), "## Environment", ""]
    lines += markdown_table(["", ""], parts["environment"])
    lines += ["", *(f"- {note}" for note in document["notes"])]
    return "\n".join(lines).rstrip() + "\n"


def headlines(document: BenchDocument) -> dict[str, dict[str, str]]:
    """Small network -> what is said first of it -> how that was measured."""
    return {n["name"]: headline(document, n["name"]) for n in smalls_of(document)}


def markdown_table(head: Row, rows: list[Row]) -> list[str]:
    """A table's lines."""

    def line(cells: Row) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    return [line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]


def _parts(document: BenchDocument) -> dict[str, Any]:
    """What every rendering shows, as text."""
    smalls = smalls_of(document)
    papers = list(_paper_table(document))
    return {
        "title": f"{dense_of(document)['name']} against {', '.join(n['name'] for n in smalls)}",
        "headlines": headlines(document),
        "tables": [
            ("Sizes", *_sizes(document)),
            ("Times", *_times(document)),
            ("Multiply-adds by layer", *_by_layer(document)),
            *([("Peak memory", *_memory(document))] if document["memory"] else []),
            *([("Beside the paper", *papers)] if papers else []),
        ],
        "footnotes": _footnotes(document, bool(papers)),
        "environment": _environment(document),
        "notes": document["notes"],
    }


def _sizes(document: BenchDocument) -> tuple[Row, list[Row]]:
    """Everything that needs no clock: a row for each quantity, a column for each network."""
    networks = document["networks"]
    quantities: list[tuple[str, Callable[[NetworkFacts], Any]]] = [
        ("nodes", lambda n: n.get("nodes")),
        ("MACs of one sample", lambda n: n["macs"]["total"]),
        ("FLOPs of one sample (2 x MACs)", lambda n: 2 * n["macs"]["total"]),
        ("training FLOPs of one sample, forward and backward", lambda n: _twice(n.get("training_macs"))),
        ("MACs by fvcore, convolutions and linear layers", lambda n: n.get("macs_by_fvcore")),
        ("MACs by thop, convolutions and linear layers", lambda n: n.get("macs_by_thop")),
        ("parameters", lambda n: n.get("parameters")),
        ("conv, linear and recurrent weights", lambda n: n.get("weights")),
        ("bytes of the file", lambda n: n["bytes"]),
        ("bytes of all tensors", lambda n: n.get("tensor_bytes")),
        ("CSR estimate, 2 index bits", lambda n: n.get("csr_bytes", {}).get("2")),
        ("CSR estimate, 4 index bits", lambda n: n.get("csr_bytes", {}).get("4")),
        ("CSR estimate, 8 index bits", lambda n: n.get("csr_bytes", {}).get("8")),
        ("CSR as stored, int32 indices", lambda n: n.get("csr_bytes", {}).get("int32")),
    ]
    rows = []
    for label, of in quantities:
        values = [of(n) for n in networks]
        if any(isinstance(v, int) for v in values):
            rows.append([label, *_with_ratios(values)])
    rows.append(["node sparsity", "", *(_percent(node_sparsity(document, n)) for n in networks[1:])])
    qualities = [n["quality"] for n in networks]
    if any(qualities):
        counted = next(q["samples"] for q in qualities if q)
        accuracies = [q["accuracy"] if q else None for q in qualities]
        if any(a is not None for a in accuracies):
            rows.append([f"accuracy on {counted:,} samples", *map(_percent, accuracies)])
        judged = [(q.get("metric") if q else None) for q in qualities]
        if any(judged):
            name = next(j["name"] for j in judged if j)
            rows.append([f"{name} on {counted:,} samples", *(f"{j['value']:.4g}" if j else "-" for j in judged)])
        losses = [f"{q['loss']:.4g}" if q and q["loss"] is not None else "-" for q in qualities]
        rows.append([f"loss on {counted:,} samples ({document['loss']})", *losses])
    return ["", *(n["name"] for n in networks)], rows


def _by_layer(document: BenchDocument) -> tuple[Row, list[Row]]:
    """Multiply-adds and output widths of every layer that has any, a column for each network that torch runs."""
    shown = [n for n in document["networks"] if n["macs"].get("by_layer")]
    layers = dict.fromkeys(layer for n in shown for layer in n["macs"]["by_layer"])

    def cell(n: NetworkFacts, layer: str) -> str:
        width = n.get("widths", {}).get(layer)
        return f"{n['macs']['by_layer'].get(layer, 0):,}" + (f" ({width:,} wide)" if width else "")

    rows = [[layer or "the network itself", *(cell(n, layer) for n in shown)] for layer in layers]
    return ["layer", *(n["name"] for n in shown)], rows


def _twice(value: Any) -> int | None:
    return 2 * value if isinstance(value, int) else None


def _with_ratios(values: list[Any]) -> Row:
    """The dense value, then each small one with dense / small."""
    dense = values[0]
    cells = [f"{v:,}" if isinstance(v, int) else "-" for v in values]
    for number, value in enumerate(values[1:], 1):
        if isinstance(dense, int) and isinstance(value, int) and value:
            cells[number] += f" ({times(dense / value)})"
    return cells


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _times(document: BenchDocument) -> tuple[Row, list[Row]]:
    """Every run: medians, quartiles, the speed-up and how much of the saved operations it realises."""
    head = ["run", "network", "dense, ms", "small, ms", "speed-up", "MAC reduction", "realised efficiency"]
    rows = []
    for c in comparisons(document):
        run = f"{c.what.replace('_', ' ')}, {ENGINE_NAMES[c.engine]}, batch {c.batch}"
        if c.failed:
            rows.append([run, c.network, _milliseconds(c.dense), _milliseconds(c.small), c.failed, "", ""])
            continue
        speed = f"{times(c.ratio)} ({times(c.low)} to {times(c.high)})" if c.significant else "not significant"
        realised = efficiency(document, c) if c.significant else math.nan
        reduction = times(mac_reduction(document, c.network, c.what))
        rows.append([run, c.network, _milliseconds(c.dense), _milliseconds(c.small), speed, reduction, _two(realised)])
    return head, rows


def _two(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _milliseconds(spread: tuple[float, float, float] | None) -> str:
    if spread is None:
        return "-"
    low, median, high = (f"{1000 * v:.4g}" for v in spread)
    return f"{median} ({low} to {high})"


def _memory(document: BenchDocument) -> tuple[Row, list[Row]]:
    """Peak memory of every run."""
    on_gpu = any("allocated" in m for m in document["memory"])
    head = ["run", "network", *(("allocated, MiB", "reserved, MiB") if on_gpu else ("peak, MiB", "above the libraries, MiB"))]
    rows = []
    for m in document["memory"]:
        run = f"{m['what'].replace('_', ' ')}, {ENGINE_NAMES[m['engine']]}, batch {m['batch']}"
        if m["failed"]:
            values = [m["failed"], ""]
        elif on_gpu:
            values = [_mib(m["allocated"]), _mib(m["reserved"])]
        else:
            values = [_mib(m["peak"]), _mib(m["peak"] - m["baseline"])]
        rows.append([run, m["network"], *values])
    return head, rows


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _paper_table(document: BenchDocument) -> Iterator[Any]:
    """Head and rows, or nothing."""
    found = list(paper_rows(document))
    if not found:
        return
    yield [
        "network", "method", "nodes removed", "weights removed", "FLOPs, inference", "time, inference", "time, training",
        "file *",
    ]  # fmt: skip
    rows = []
    for small in {id(s): s for s, _ in found}.values():
        dense, sparsity = dense_of(document), node_sparsity(document, small)
        best = {c.what: times(c.ratio) if c.significant else "not significant" for c in comparisons(document)
                if c.network == small["name"] and not c.failed and c.engine == "torch"}  # fmt: skip
        rows.append([
            small["name"], "ours", _percent(sparsity), _percent(_weights_removed(dense, small)),
            times(mac_reduction(document, small["name"])), best.get("inference", "-"), best.get("train_step", "-"),
            times(dense["bytes"] / small["bytes"]),
        ])  # fmt: skip
    for row in {json.dumps(r): r for _, r in found}.values():
        rows.append([
            f"{row['network']}, {row['data']}, {row['table']}", row["method"], f"{row['node_sparsity']}%",
            f"{row['weight_sparsity']}%", f"{row['flops_inference_x']}x", f"{row['time_inference_x']}x",
            f"{row['time_train_x']}x", f"{times(disk_meant(row))} (printed {row['disk_x_as_printed']:,.0f})",
        ])  # fmt: skip
    yield rows


def _weights_removed(dense: NetworkFacts, small: NetworkFacts) -> float | None:
    before, after = dense.get("weights"), small.get("weights")
    return 1 - after / before if before and after is not None else None


def _footnotes(document: BenchDocument, with_paper: bool) -> list[str]:
    uncounted = {n["name"]: n["macs"]["uncounted"] for n in document["networks"] if n["macs"]["uncounted"]}
    notes = [
        "Times are medians with quartiles; dense and small ran in turn. A speed-up is marked as not significant where the "
        "quartiles of the two overlap. Realised efficiency = speed-up / MAC reduction; for a train step, "
        "multiply-adds are those of forward and backward.",
        "A MAC is one multiply-add of a convolution, a linear layer, an attention or a recurrent cell; norms are not in it.",
    ]
    notes += [
        f"{name}: these operators may multiply and nobody counted them: {', '.join(ops)}." for name, ops in uncounted.items()
    ]
    if with_paper:
        notes.append(
            f"* {paper()['source']}. Its Disk column in Table 4 prints 10^(ln r) for the ratio r: "
            "all 12 rows fit their weight sparsity so; shown is r. In Table 1 it follows no rule that was found; shown is "
            "1 / (1 - weight sparsity). Our file is the network as stored, not in CSR."
        )
    return notes


def _environment(document: BenchDocument) -> list[Row]:
    e = document["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in e["packages"].items())
    return [
        ["processor", f"{e['processor']}, {e['threads']} threads of {e['cores']} cores"],
        ["device", f"{e['device']}, TF32 {'on' if e['tf32'] else 'off'}"],
        ["system", f"{e['system']}, Python {e['python']}"],
        ["packages", packages],
        ["data", f"{document['data']}, seed {document['seed']}, {document['rounds']} rounds"],
        ["commit", str(e["commit"])],
    ]
