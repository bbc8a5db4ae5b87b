"""The tests: a folder for each room of the tree; `whole/` holds those of everything together."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: where commands of it run."""

SHARED = ROOT.parent / "shared"
"""The project's folder of data and papers; it lies beside most checkouts, not all."""
