"""`python -m compressor` does what `compress` does."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _leave_working_folder() -> None:
    """Take the working folder, which `python -m` puts first, off the path: `compress` does not import what lies there either.

    A checkout that is not installed stays: this package itself comes from there.
    """
    here, home = Path.cwd(), Path(__file__).resolve().parent.parent
    if sys.path and not sys.flags.safe_path and sys.path[0] in ("", os.fspath(here)) and here != home:
        del sys.path[0]


if __name__ == "__main__":  # processes that a sweep starts import this file, too
    _leave_working_folder()
    from compressor.cli import main

    main()
