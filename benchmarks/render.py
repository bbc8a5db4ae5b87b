"""A document of any kind as a page, as Markdown or as JSON; and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from compressor.benchmarks.experiments import tables
from compressor.benchmarks.report import page
from compressor.benchmarks.report.compare import check
from compressor.errors import BadInput, first_line

SUFFIXES = (".html", ".md", ".json")


def render(document: dict[str, Any], suffix: str) -> str:
    """The text of a file with that suffix: `.html`, `.md` or `.json`."""
    room: Any = tables if _is_experiments(document) else page
    forms: dict[str, Callable[[dict[str, Any]], str]] = {
        ".html": room.to_html, ".md": room.to_markdown, ".json": page.to_json,
    }  # fmt: skip
    return forms[suffix](document)


def read(text: str) -> dict[str, Any]:
    """A document that was written before, if all of it can be shown.

    Raises:
        BadInput: not a benchmark report, one of another schema version, or a damaged one.
    """
    try:
        raw = json.loads(text)
        document = raw if isinstance(raw, dict) and _is_experiments(raw) else check(raw)
        render(document, ".md")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError) as error:
        raise BadInput(f"not a report, or a damaged one ({type(error).__name__} {first_line(error)})") from error
    return document


def _is_experiments(raw: dict[str, Any]) -> bool:
    return raw.get("kind") == tables.KIND and raw.get("schema") == tables.SCHEMA
