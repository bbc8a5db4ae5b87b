"""Sweeps: trials, their records, and the tables made of them."""
