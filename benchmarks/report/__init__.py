"""Reports: the data, and its renderings."""

from benchmarks.report.document import SCHEMA, make_document, training_document
from benchmarks.report.experiments import KIND as EXPERIMENTS
from benchmarks.report.experiments import experiments_document, render_experiments
from benchmarks.report.network import describe, show_structure
from benchmarks.report.page import SUFFIXES as PAGES
from benchmarks.report.page import headlines, read, render
from benchmarks.report.terminal import proof_line, show, show_training

__all__ = [
    "EXPERIMENTS",
    "PAGES",
    "SCHEMA",
    "describe",
    "experiments_document",
    "headlines",
    "make_document",
    "proof_line",
    "read",
    "render",
    "render_experiments",
    "show",
    "show_structure",
    "show_training",
    "training_document",
]
