"""A document of any kind as a page, as Markdown, as JSON or as lines of it; and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from compressor.benchmarks.experiments import tables
from compressor.benchmarks.experiments.documents import (
    EXPERIMENTS,
    SCHEMA,
    STUDY,
    ExperimentsDocument,
    Study,
    check_experiments,
)
from compressor.benchmarks.experiments.records import LINES, study_text
from compressor.benchmarks.measure.bench_document import BenchDocument, check_bench
from compressor.benchmarks.measure.typed import json_of
from compressor.benchmarks.report import page
from compressor.errors import BadInput, WrongUsage

SUFFIXES = (".html", ".md", ".json")
"""Of the files that any document can be rendered as; a study can be lines as well."""


__all__ = ["LINES", "SUFFIXES", "read", "render", "titled"]


def render(document: Mapping[str, Any], suffix: str) -> str:
    """The text of a file with that suffix: `.html`, `.md` or `.json`; of a sweep's study also `.jsonl`."""
    if document["kind"] == STUDY:
        study = cast(Study, document)
        return study_text(study) if suffix == LINES else render(tables.document_of(study), suffix)
    if suffix == ".json":
        return page.to_json(document)
    if document["kind"] == EXPERIMENTS:
        shown = cast(ExperimentsDocument, document)
        return tables.to_html(shown) if suffix == ".html" else tables.to_markdown(shown)
    measured = cast(BenchDocument, document)
    return page.to_html(measured) if suffix == ".html" else page.to_markdown(measured)


def read(text: str) -> dict[str, Any]:
    """A document that was written before as JSON, if all of it can be shown.

    Raises:
        BadInput: not a report, one of another schema version, or a damaged one; one line that names what is wrong.
    """
    try:
        raw = json_of(text)
    except BadInput as error:
        raise BadInput(f"not a report, or a damaged one: {error}") from error
    if isinstance(raw, dict) and raw.get("kind") == EXPERIMENTS and raw.get("schema") == SCHEMA:
        return cast(dict[str, Any], check_experiments(raw))
    return cast(dict[str, Any], check_bench(raw))


def titled(document: dict[str, Any], title: str | None) -> dict[str, Any]:
    """The document with another title, where one is given.

    Raises:
        WrongUsage: a report of `compress bench`, whose title says what was compared.
    """
    if title is None:
        return document
    if document["kind"] != EXPERIMENTS:
        raise WrongUsage("--title is for the page of a sweep; that of `compress bench` says what was compared")
    return {**document, "title": title}
