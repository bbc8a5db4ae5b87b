"""A network's structure, as data and as a tree: who produces, passes on and reads each group, and what stays whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree
from torch import Tensor, nn

from compressor.model.cost import cost, stored_bytes
from compressor.model.inputs import Inputs, precision_of
from compressor.model.origin import origin_of
from compressor.system.terminal import printable
from compressor.types.structure import Group, Role, Structure, total_by_layer

SCHEMA = 1
WIDE = 500
"""Columns where no terminal sets a limit."""

ROLES: dict[Role, str] = {"produce": "produced by", "pass": "passed on by", "carry": "carried by", "read": "read by",
                          "size": "remembered by"}  # fmt: skip


def describe(path: Path, model: nn.Module, found: Structure, working: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What `compress show --json` prints.

    Args:
        model: as it came; `working` is what it was examined in (float32), on `inputs`.
    """
    origin, size = origin_of(model), cost(working, inputs)
    nodes = total_by_layer(found)
    return {
        "schema": SCHEMA,
        "file": {"path": str(path), "bytes": stored_bytes(path, model)},
        "network": origin.network if origin else None,
        "class": type(model).__name__,
        "arguments": dict(origin.arguments) if origin else {},
        "inputs": [str(spec) for spec in origin.inputs] if origin else [],
        "data": origin.data if origin else None,
        "notes": list(origin.notes) if origin else [],
        "precision": str(precision_of(model)).removeprefix("torch."),
        "parameters": size.parameters,
        "macs": size.macs,
        "nodes": found.nodes,
        "prunable_nodes": sum(g.width * g.multiplicity for g in found.prunable),
        "events": len(origin.plan.events) if origin and origin.plan else 0,
        "found_by": found.found_by,
        "untraceable": found.untraceable,
        "layers": [
            {"name": name, "kind": type(_part(model, name)).__name__, "nodes": width, "output": name in found.outputs}
            for name, width in {**nodes, **{name: _width(model, name) for name in sorted(found.outputs)}}.items()
        ],
        "groups": [_group(g) for g in found.groups],
    }


def _group(group: Group) -> dict[str, Any]:
    reads: dict[str, list[str]] = {role: list(group.layers(role)) for role in ROLES}
    return {"name": group.name, "width": group.width, "multiplicity": group.multiplicity, "frozen": group.frozen, **reads}


def _part(model: nn.Module, name: str) -> Any:
    """The layer or parameter of a name."""
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute) if name else model


def _width(model: nn.Module, layer: str) -> int:
    weight = getattr(part := _part(model, layer), "weight", part)
    return len(weight) if isinstance(weight, Tensor) else 0


def show_structure(d: dict[str, Any]) -> None:
    """Write a described network to stdout, as a tree."""
    what = d["network"] or d["class"]
    tree = Tree(
        plain(
            f"{d['file']['path']}: {what}, input {', '.join(d['inputs'])}, {d['precision']}, {d['parameters']:,} parameters, "
            f"{d['macs']:,} MACs, {d['nodes']:,} nodes, {d['prunable_nodes']:,} of them can be removed"
        )
    )
    for group in d["groups"]:
        state = f"stays whole: {group['frozen']}" if group["frozen"] else f"{group['width']:,} can be removed"
        branch = tree.add(plain(f"{group['name']}  {group['width']:,} nodes  {state}"))
        for role, words in ROLES.items():
            layers = [layer or "the network itself" for layer in group[role] if layer != group["name"]]
            if layers:
                branch.add(plain(f"{words} {', '.join(layers)}"))
    out = console()
    out.print(tree)
    for note in d["notes"]:
        out.print(plain(note))
    if d["untraceable"]:
        out.print(plain(f"The groups come from {d['found_by']}."))


def console() -> Console:
    """Standard output, as wide as it is needed where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def plain(text: str) -> str:
    """Text of a file's or of a layer's, that is no markup."""
    return escape(printable(text))
