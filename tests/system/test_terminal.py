"""Names in files are text on a terminal, whatever is in them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import networks, save
from compressor.model.origin import origin_of, set_origin
from compressor.system.terminal import LONGEST, one_line, printable
from tests.checkpoint.test_unpickle import with_pickle
from tests.command import run

EVIL = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\u202e", "\u2028", "\x7f"]


def test_only_what_a_terminal_obeys_is_written_out() -> None:
    assert printable("größer ≤ 3 µs, 模型, 🙂\n\t") == "größer ≤ 3 µs, 模型, 🙂\n\t"
    assert printable("a\x1b[31mb\u202ec\udcff") == r"a\x1b[31mb\u202ec\udcff"
    assert all(
        unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        for c in printable("".join(map(chr, range(0x3000))))
        if c not in "\n\t"
    )
    assert len(one_line("x\n" * 10**6)) < LONGEST + 10


def obeyed(text: str) -> list[str]:
    return [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_nothing_from_a_file_is_obeyed(evil: str, tmp_path: Path) -> None:
    """Names in a pickle, of tensors, entries, data and builders; in errors, in tables, in notes."""
    with_pickle(tmp_path / "named.pt", b"\x80\x02cos\n" + f"system{evil.replace(chr(13), '')}".encode() + b"\n)R.")
    torch.save({f"weights{evil}": 3}, tmp_path / "entry.pt")
    torch.save({"state_dict": {f"w{evil}": torch.zeros(2)}}, tmp_path / "tensor.pt")
    model = networks.build("lenet5", data=f"data{evil}")
    save(model, tmp_path / "data.pt")
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net.note = f"x{evil}"
    torch.save(net, tmp_path / "whole.pt")
    (tmp_path / "sweep.toml").write_text(f'"key{ascii(evil)[1:-1].replace(chr(92) + "x", chr(92) + "u00")}" = 1\n')
    (tmp_path / "report.json").write_text("{}")
    for words in (
        ("show", "named.pt"), ("show", "entry.pt"), ("show", "tensor.pt", "--network", "lenet5"), ("show", "data.pt"),
        ("snapit", "data.pt", "--sparsity", "0.5", "-o", "x.onnx"), ("show", "whole.pt", "--input", "3x8x8"),
        ("sweep", "sweep.toml", "-o", "folder"), ("report", "report.json", "-o", "x.html"),
    ):  # fmt: skip
        done = run(*words, cwd=tmp_path)
        assert not obeyed(done.stdout + done.stderr), words
        assert done.stdout + done.stderr


def test_notes_are_no_markup(tmp_path: Path) -> None:
    """rich would take brackets for styles."""
    model = networks.build("lenet5")
    origin = origin_of(model)
    assert origin is not None
    set_origin(model, origin)
    (folder := tmp_path / "[red]").mkdir()
    save(model, folder / "[bold]x.pt")
    assert "[red]/[bold]x.pt" in run("show", "[red]/[bold]x.pt", cwd=tmp_path).stdout


@pytest.mark.parametrize("command", [("show", "{}"), ("snapit", "{}", "--sparsity", "0.5", "-o", "x.pt"),
                                     ("new", "lenet5", "-o", "{}"), ("report", "{}", "-o", "x.html"),
                                     ("apply", "{}", "x.pt", "-o", "y.pt"), ("sweep", "{}", "-o", "folder"),
                                     ("verify", "{}", "{}"), ("bench", "{}", "x.pt"), ("train", "{}", "-o", "y.pt")],
                         ids=lambda words: words[0])  # fmt: skip
def test_names_that_cannot_be_opened_end_in_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "loop.pt").symlink_to("other.pt")
    (tmp_path / "other.pt").symlink_to("loop.pt")
    for name, words in (
        ("loop.pt", "Too many levels of symbolic links"),
        (b"latin\xe9.pt".decode(errors="surrogateescape"), "its name is not UTF-8; rename it"),
        ("x" * 300 + ".pt", "File name too long"),
    ):
        done = run(*(word.format(name) for word in command), cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


DEEP = {
    "lists.json": "[" * 200_000 + "]" * 200_000,
    "objects.json": '{"a":' * 200_000,
    "lists.toml": "a = " + "[" * 100_000,
    "tables.toml": "a = " + "{a = " * 100_000,
    "keys.toml": "a." * 5_000 + "a = 1",
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_nesting_without_end(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(DEEP[name])
    save(networks.build("lenet300100"), tmp_path / "net.pt")
    commands = [("sweep", name, "-o", "folder")] if name.endswith(".toml") else [
        ("report", name, "-o", "x.html"), ("apply", name, "net.pt", "-o", "x.pt")
    ]  # fmt: skip
    for words in commands:
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert name in done.stderr
