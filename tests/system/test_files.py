"""Files appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compressor.errors import BadInput, WrongUsage
from compressor.system.files import check_target, set_aside, staged
from tests.command import wait_for


def test_all_appear_together(tmp_path: Path) -> None:
    with staged(tmp_path / "a.txt", tmp_path / "b.txt") as [a, b]:
        a.write_text("1")
        b.write_text("2")
        assert not (tmp_path / "a.txt").exists()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "1", "b.txt": "2"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there_and_no_litter(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail() -> None:
        with staged(tmp_path / "a.txt") as [a]:
            a.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with staged(tmp_path / "link.txt") as [temporary]:
        temporary.write_text("1")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "1"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    with staged(tmp_path / "a.txt") as [a]:
        a.write_text("1")
    (tmp_path / "b.txt").write_text("2")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_targets_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for path, error, message in (
        (tmp_path / "x.bin", WrongUsage, "unknown suffix .bin"),
        (tmp_path / "x", WrongUsage, "unknown suffix"),
        (tmp_path / "no" / "x.onnx", BadInput, "does not exist"),
        (tmp_path / "folder.onnx", BadInput, "is a folder"),
    ):
        with pytest.raises(error, match=message):
            check_target(path, (".onnx",))
    check_target(tmp_path / "x.onnx", (".onnx",))
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="cannot write into"):
        check_target(tmp_path / "x.onnx", (".onnx",))


def test_a_folder_that_takes_no_files_is_refused() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc")
    with pytest.raises(BadInput, match="cannot write into"):
        check_target(Path("/proc/self/x.onnx"), (".onnx",))


KILLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell put us into the background
from pathlib import Path
from compressor.system import files
moment, real = int(sys.argv[1]), os.replace
done = []
def replaced(source, target):
    if len(done) == moment:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    real(source, target)
    done.append(target)
files.os.replace = replaced
with files.staged(*map(Path, "abcd")) as written:
    for file in written:
        file.write_text("new")
print("ended")
"""


@pytest.mark.parametrize("moment", range(4))
def test_killed_between_renames_all_appear(moment: int, tmp_path: Path) -> None:
    """Once the first file has its name, the others get theirs, whatever happens to the process."""
    for name in "abcd":
        (tmp_path / name).write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(moment), "SIGKILL"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done.stderr
    wait_for(lambda: len(list(tmp_path.iterdir())) == 4)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys("abcd", "new")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_wait_for_the_end_of_the_renames(name: str, tmp_path: Path) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))\n{KILLED}"
    done = subprocess.run([sys.executable, "-c", code, "1", name], cwd=tmp_path, capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    assert done.stdout == ""
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys("abcd", "new")


def test_a_signal_before_the_renames_leaves_nothing(tmp_path: Path) -> None:
    code = KILLED.replace("    for file in written:", "    os.kill(os.getpid(), signal.SIGINT)\n    for file in written:")
    done = subprocess.run([sys.executable, "-c", code, "9", "SIGINT"], cwd=tmp_path, capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    wait_for(lambda: not list(tmp_path.iterdir()))


def test_a_thread_may_write_too(tmp_path: Path) -> None:
    """Signals are the main thread's; others hold none."""

    def write() -> None:
        with staged(tmp_path / "a.txt") as [file]:
            file.write_text("new")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_file_has_a_second_name(tmp_path: Path, monkeypatch) -> None:
    """Also where the file system has no links."""
    (tmp_path / "state").write_text("one")
    set_aside(tmp_path / "state", "before")
    (tmp_path / "other").write_text("two")
    (tmp_path / "other").replace(tmp_path / "state")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"state": "two", "before": "one"}

    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    set_aside(tmp_path / "state", "before")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"state": "two", "before": "two"}
