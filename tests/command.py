"""The command line in this process: as real as in another one, without the seconds that importing torch takes."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from compressor import cli


def main(capfd: pytest.CaptureFixture, cwd: Path, *arguments: object) -> CompletedProcess:
    """What `compress ARGUMENTS` prints and ends with in a folder."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    out, err = capfd.readouterr()
    code = end.value.code
    return CompletedProcess(sys.argv, code if isinstance(code, int) else 0, out, err)
