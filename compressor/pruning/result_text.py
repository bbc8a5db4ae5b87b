"""What came out of a pruning as text for people, from the plain data of `Result.as_dict` or of a report, which holds more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.options import spelled
from compressor.types.reason import kind_of

BAR = 40
"""Characters of a full bar."""
NAMED = 3
"""Layers of one reason that are named."""
NEAR = 0.01
"""A weight with a smaller share left than this is reported by name."""


def result_text(d: Mapping[str, Any]) -> str:
    """Costs, widths, proofs, and what the reader should know."""
    return "\n".join(_lines(d))


def _lines(d: Mapping[str, Any]) -> Iterator[str]:
    if paths := [file["path"] for file in d.get("files", ())]:
        yield f"{paths[0]} -> {', '.join(paths[1:])}"
    yield from _columns([("", "dense", "small", "dense / small"), *_cost_rows(d)], left=(0,))
    if d.get("search"):
        yield from search_lines(d["search"])
    if d.get("stages"):
        yield stages_line(d["stages"])
    if d.get("repair"):
        yield repair_line(d["repair"])
    if d.get("training"):
        yield training_line(d["training"])
    if d.get("ablation"):
        yield f"\nthis is a control, not the method itself: {d['ablation']}"
    if d.get("masks"):
        yield from _mask_lines(d["masks"])
    of_data = f", data {d['data']}" if "data" in d else ""
    yield (
        f"\nnode sparsity {d['node_sparsity']['reached']:.5f} reached, {_asked(d)}; "
        f"weight sparsity {d['weight_sparsity']:.5f}; {d['method']}, {len(d['events'])} events{of_data}"
    )
    yield from _share_lines({layer: (w["dense"], w["small"]) for layer, w in d["widths"].items()}, "nodes")
    yield from _frozen_lines(d["frozen"], {layer: w["dense"] for layer, w in d["widths"].items()})
    yield from map(proof_line, d["equivalence"])
    if d["near_collapse"]:
        named = ", ".join(f"{layer} ({left})" for layer, left in d["near_collapse"].items())
        yield f"near collapse, fewer than 4 nodes left: {named}; {spelled('floor', 'N')} keeps more"
    yield from d["notes"]


def search_lines(search: Mapping[str, Any]) -> Iterator[str]:
    """The path of a search, the largest network first."""
    of = f"{search['samples']:,} samples" if search["metric"] in ("accuracy", "top5") else f"{search['samples']:,} batches"
    yield (
        f"\nsearched for the fewest {search['unit']} at a drop of at most {search['max_drop']:g} points of {search['metric']}, "
        f"by {of}; dense {search['dense']:.2f}"
    )
    rows = [("left", "value", "drop", "")]
    for step in sorted(search["steps"], key=lambda step: -step["keep"]):
        if step["left"] is None:
            rows.append((f"{step['keep']:.1%}", "", "", "cannot be reached"))
            continue
        verdict = "kept" if step["kept"] else "may lose more" if step["drop"] <= search["max_drop"] else "loses more"
        rows.append((f"{step['left']:.1%}", f"{step['value']:.2f}", f"{step['drop']:.2f} ± {step['margin']:.2f}", verdict))
    yield from _columns(rows, left=(3,))
    if search["stopped"]:
        yield f"the search was stopped for time: {spelled('resume', True)} goes on with it"


def _frozen_lines(frozen: Mapping[str, str], nodes: Mapping[str, int]) -> Iterator[str]:
    """What stays whole and why; layers for which that is the same in one line, with their share of the nodes."""
    alike: dict[str, list[str]] = {}
    for layer, reason in frozen.items():
        alike.setdefault(kind_of(reason), []).append(layer)
    for layers in alike.values():
        more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
        held = sum(nodes.get(layer, 0) for layer in layers)
        share = f" ({held / sum(nodes.values()):.1%} of the nodes)" if held else ""
        yield f"stays whole  {', '.join(layers[:NAMED])}{more}{share}: {frozen[layers[0]]}"


def _cost_rows(d: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Label, dense, small, and how many times as much the dense network has."""
    for label, key in (("nodes", "nodes"), ("MACs per sample", "macs"), ("parameters", "parameters"),
                       ("conv and linear weights", "weights")):  # fmt: skip
        yield _cost_row(label, d[key]["dense"], d[key]["small"])
    if files := d.get("files"):
        for file in files[1:]:
            yield _cost_row(f"bytes of {Path(file['path']).name}", files[0]["bytes"], file["bytes"])
    else:
        yield _cost_row("bytes of its tensors", d["tensor_bytes"]["dense"], d["tensor_bytes"]["small"])
    if metric := d.get("metric"):
        of = f"{metric['name']} on {metric['samples']:,} samples"
        yield of, f"{metric['dense']:.4g}", f"{metric['small']:.4g}", ""
    elif accuracy := d.get("accuracy"):
        dense = f"{accuracy['dense']:.1%}{' as it came' if d.get('training') else ''}"
        yield f"accuracy on {accuracy['samples']:,} samples", dense, f"{accuracy['small']:.1%}", ""
    elif loss := d.get("loss"):
        yield f"loss on {loss['samples']:,} samples", f"{loss['dense']:.4g}", f"{loss['small']:.4g}", ""


def _cost_row(label: str, dense: int, small: int) -> tuple[str, str, str, str]:
    return label, f"{dense:,}", f"{small:,}", f"{dense / small:,.1f}x" if small else "-"


def _mask_lines(m: Mapping[str, Any]) -> Iterator[str]:
    """What became of single weights."""
    reached, effective = (1 - m[key] / m["total"] for key in ("left", "on_a_path"))
    yield (
        f"\nweights set to zero: {reached:.5f} reached, {m['asked']:g} asked; {effective:.5f} with those on no path from "
        f"input to output; {m['dead_nodes']:,} nodes on no path are gone"
    )
    yield from _share_lines({name: (w["dense"], w["left"]) for name, w in m["layers"].items()}, "weights")
    few = [f"{name} ({w['left']:,} of {w['dense']:,})" for name, w in m["layers"].items() if w["left"] < NEAR * w["dense"]]
    if few:
        yield f"near collapse, fewer than {NEAR:.0%} of the weights left: {', '.join(few)}"
    if m["silent_outputs"]:
        yield f"{m['silent_outputs']} outputs no longer depend on the input"


def training_line(t: Mapping[str, Any]) -> str:
    """What a training came to, in one line."""
    test = t["test"]
    epochs = len(t["history"])
    done = f"{epochs} epoch{'' if epochs == 1 else 's'}, {t['seconds']:,.0f} s, {2 * t['macs']:.2e} FLOPs"
    if test is None:
        last = f"training loss {t['history'][-1]['train_loss']:.4g}, no test data; " if t["history"] else ""
        return f"\ntrained: {last}{done}"
    return f"\ntrained: {quality_text(test, 2)} on all {test['samples']:,} test samples after {done}"


def stages_line(stages: Sequence[Mapping[str, Any]]) -> str:
    """How well the network does dense, as pruned, and so on, in one line."""
    what = quality_text(stages[0]).rpartition(" ")[0]
    parts = [f"{quality_text(seen).rpartition(' ')[2]} {seen['stage']}" for seen in stages]
    return f"\n{what} on {stages[0]['samples']:,} samples: {', '.join(parts)}"


def quality_text(seen: Mapping[str, Any], digits: int = 1) -> str:
    """How well a network does, in two words: by the metric of the user's choice, else the accuracy, else the loss."""
    if (metric := seen.get("metric")) is not None:
        return f"{metric['name']} {metric['value']:.4g}"
    return f"loss {seen['loss']:.4g}" if seen["accuracy"] is None else f"accuracy {seen['accuracy']:.{digits}%}"


def repair_line(r: Mapping[str, Any]) -> str:
    """What was done to what is left, and how near it brought the outputs to the dense network's, in one line."""
    if not r["distance"]:
        return f"repair: none, {r['why']}"
    distances = ", ".join(f"{distance:.3g} {way}" for way, distance in r["distance"].items())
    judged = f" on {r['aside']:,} kept aside" if r["aside"] else ""
    return (
        f"repair: {r['kept']}, from {r['samples']:,} {'random inputs' if r['noise'] else 'samples'}, {r['seconds']:.0f} s; "
        f"distance to the dense outputs{judged}: {distances}"
    )


def _asked(d: Mapping[str, Any]) -> str:
    """What the pruning aimed at."""
    if d.get("masks"):
        return "weights were asked for"
    if d["node_sparsity"]["asked"] is not None:
        return f"{d['node_sparsity']['asked']:g} asked"
    b = d["budget"]
    return f"{b['asked']:,.0f} {b['unit']} asked, {b['reached']:,.0f} reached"


def _share_lines(shares: Mapping[str, tuple[int, int]], what: str) -> list[str]:
    """Every layer's nodes or weights before and after, with a bar for the share that is left."""
    rows = [("layer", what, "left", "")]
    for layer, (dense, left) in shares.items():
        bar = "#" * (max(1, round(BAR * left / dense)) if left else 0)
        rows.append((layer, f"{dense:,}", f"{left:,}", bar.ljust(BAR, ".")))
    return _columns(rows, left=(0, 3))


def _columns(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Cells below each other, those of the columns in `left` at their left edge."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]


def proof_line(proof: Mapping[str, Any]) -> str:
    """One proof in one line: verdict, difference, the tolerance that would have been needed."""
    verdict = "equivalent" if proof["equivalent"] else "NOT EQUIVALENT"
    if proof.get("kind", "samples") != "samples":
        return f"{verdict}  {proof['what']}"
    agreement = proof["argmax_agreement"]
    same = "" if agreement is None else f", arg-max {agreement:.0%} of {proof['samples_with_clear_margin']} clear samples"
    return (
        f"{verdict}  {proof['what']}: difference {proof['max_difference']:.1e}, "
        f"{proof['needed_tolerance']:.1e} of the range ({proof['tolerance']:.0e} allowed){same}"
        if proof["max_difference"] is not None
        else f"{verdict}  {proof['what']}: other shapes, or values that are not finite"
    )
