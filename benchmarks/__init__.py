"""Clocks and memory: what a network really costs to run. A timer takes a callable and knows no method."""
