"""Showing that a smaller network is the dense one without what was removed."""
