"""What an event changes, in few words: most events of most plans change little, and a list of all that stays says it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AS_BEFORE = "as before"

Nodes = Mapping[str, tuple[int, ...]]
"""Group -> kept nodes, as rising indices into the original network."""


def changes_of(before: Nodes, now: Nodes) -> dict[str, Any]:
    """The entries `kept` and `removed` of an event's JSON, for the groups that it changed; the shorter list says it.

    Example:
        >>> changes_of({"a": (0, 1, 2), "b": (0, 1)}, {"a": (0, 2), "b": (0, 1)})
        {'kept': {}, 'removed': {'a': [1]}}
    """
    kept: dict[str, list[int]] = {}
    removed: dict[str, list[int]] = {}
    for name, nodes in now.items():
        if nodes == before.get(name):
            continue
        gone = sorted({*before.get(name, ())} - {*nodes})
        if len(gone) < len(nodes) and len(gone) + len(nodes) == len(before.get(name, ())):
            removed[name] = gone
        else:
            kept[name] = list(nodes)
    if now.keys() == before.keys() and not kept and not removed:
        return {"kept": AS_BEFORE}
    return {"kept": kept, "removed": removed} if removed else {"kept": kept}


def changed(before: Nodes, raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What stays after an event whose JSON is `raw`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: damaged. That the nodes are those of a pruning is not looked at.
    """
    if raw["kept"] == AS_BEFORE:
        if "removed" in raw:
            raise ValueError("an event that changes nothing removes nodes")
        return dict(before)
    kept, removed = raw["kept"], raw.get("removed", {})
    if twice := kept.keys() & removed.keys():
        raise ValueError(f"group {min(twice)}: both what stays and what goes")
    listed = {name: tuple(nodes) for name, nodes in kept.items()}
    after = dict(before) | {name: nodes for name, nodes in listed.items() if nodes != before.get(name)}
    for name, nodes in removed.items():
        gone = {node for node in nodes if type(node) is int}
        after[name] = tuple(node for node in before[name] if node not in gone)
        if len(nodes) != len(gone) or len(after[name]) + len(gone) != len(before[name]):
            raise ValueError(f"group {name}: a node goes that was not there")
    return after
