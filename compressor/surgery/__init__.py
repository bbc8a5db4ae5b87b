"""Removing nodes, and seeing which of them lie on no path."""
