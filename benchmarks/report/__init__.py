"""Reports: the data, and its renderings."""

from benchmarks.report.document import SCHEMA, make_document
from benchmarks.report.network import describe, show_structure
from benchmarks.report.terminal import proof_line, show

__all__ = ["SCHEMA", "describe", "make_document", "proof_line", "show", "show_structure"]
