"""Training: a network, an optimizer and epochs of data. It knows neither methods nor plans."""

from __future__ import annotations

from compressor.training.history import Row, read_history, write_history
from compressor.training.trainer import Diverged, Trainer

__all__ = ["Diverged", "Row", "Trainer", "read_history", "write_history"]
