"""Reports: the data, and its renderings."""

from benchmarks.report.document import SCHEMA, make_document, training_document
from benchmarks.report.network import describe, show_structure
from benchmarks.report.page import SUFFIXES as PAGES
from benchmarks.report.page import headlines, read, render
from benchmarks.report.terminal import proof_line, show, show_training

__all__ = [
    "PAGES",
    "SCHEMA",
    "describe",
    "headlines",
    "make_document",
    "proof_line",
    "read",
    "render",
    "show",
    "show_structure",
    "show_training",
    "training_document",
]
