"""Reports: the data, and its renderings."""

from benchmarks.report.document import SCHEMA, make_document
from benchmarks.report.terminal import proof_line, show

__all__ = ["SCHEMA", "make_document", "proof_line", "show"]
