"""Data and networks by name."""
