"""The raw values of the studies: where they lie, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.system.files import staged

RESULTS = Path(__file__).parents[1] / "results"


def write(document: Mapping[str, Any], path: Path) -> None:
    """As JSON with a line for each row, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path) as [temporary]:
        temporary.write_text(text_of(document), encoding="utf-8")


def text_of(document: Mapping[str, Any]) -> str:
    """JSON that can be read and compared line by line: one for each field, and one for each row of a field that holds rows."""
    fields = [f"{json.dumps(name)}: {_field(value)}" for name, value in document.items()]
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in value.items()) + "\n}"
    return json.dumps(value)
