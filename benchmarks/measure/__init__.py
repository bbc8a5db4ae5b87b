"""Instruments: clocks, memory, and what `compress bench` measures with them."""
