"""Scores as pure functions of (model, structure, objective): one file per family."""
