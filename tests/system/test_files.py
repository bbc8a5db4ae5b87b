"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compressor.errors import BadInput, WrongUsage
from compressor.system.files import check_target, staged


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
