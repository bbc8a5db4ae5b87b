"""What `compress bench` measures, by the names that its reports use."""

from __future__ import annotations

SCHEMA = 1
KIND = "bench"
INFERENCE, TRAIN_STEP = "inference", "train_step"
