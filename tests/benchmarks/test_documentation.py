"""The documentation's tables are what the records say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.benchmarks.documentation import DOCUMENTS, MARKED, TABLES, fill, write_pages
from compressor.benchmarks.experiments.records import read_study
from compressor.benchmarks.render import read, render
from compressor.benchmarks.studies.results import RESULTS, text_of, write
from compressor.errors import BadInput

TEXTS = [document.read_text() for document in DOCUMENTS]


def test_every_table_stands_in_the_documentation() -> None:
    assert sorted(name for text in TEXTS for name, _ in MARKED.findall(text)) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_the_documentation_says_what_the_records_say(name: str) -> None:
    """`make tables` was run after the last measurement."""
    [printed] = [table.strip() for text in TEXTS for found, table in MARKED.findall(text) if found == name]
    assert printed == TABLES[name]()


def test_a_changed_number_is_written_anew() -> None:
    text = "Before.\n\n<!-- table: one -->\n\n| 1 |\n\n<!-- end -->\n\nAfter, and\n<!-- table: two -->\n<!-- end -->\n"
    filled = fill(text, {"one": lambda: "| 2 |", "two": lambda: "| 3 |"})
    assert filled == text.replace("| 1 |", "| 2 |").replace("two -->\n", "two -->\n\n| 3 |\n\n")
    assert fill(filled, {"one": lambda: "| 2 |", "two": lambda: "| 3 |"}) == filled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- table: one -->\n<!-- end -->\n", "no table one; there are two"),
        ("<!-- table: two -->\n| 1 |\n", "1 tables begin and 0 end"),
        ("<!-- table: two -->\n| 1 |\n<!-- table: two -->\n<!-- end -->\n", "2 tables begin and 1 end"),
        ("Here: <!-- table: two -->\n| 1 |\n<!-- end -->\n", "0 do both"),
    ],
)
def test_markers_that_do_not_match_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        fill(text, {"two": lambda: ""})


def test_a_page_of_each_study(tmp_path: Path) -> None:
    for name in ("mnist_snip", "cifar_vgg16_gains"):
        shutil.copytree(RESULTS / name, tmp_path / "results" / name)
    write_pages(tmp_path / "results", tmp_path / "pages")
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {
        "mnist_snip.md", "mnist_snip.html", "cifar_vgg16_gains.md", "cifar_vgg16_gains.html",
    }  # fmt: skip
    text = (tmp_path / "pages" / "mnist_snip.md").read_text()
    assert text == render(read_study(RESULTS / "mnist_snip"), ".md")
    assert "| SNIP | 0.95 | 3 | 97.31 ± 0.08 (t: 0.19) | 12.58 | 95.08 |" in text
    assert (tmp_path / "pages" / "mnist_snip.html").read_text().count("<svg") == 2


def test_raw_values_are_a_line_for_each_row(tmp_path: Path) -> None:
    document = {"schema": 1, "empty": [], "rows": [{"a": [1.5, 2]}, {"a": None}], "named": {"x y": {"b": "\n"}}, "list": [1, 2]}
    assert text_of(document).splitlines() == [
        "{", '"schema": 1,', '"empty": [],', '"rows": [', '{"a": [1.5, 2]},', '{"a": null}', "],", '"named": {',
        r'"x y": {"b": "\n"}', "},", '"list": [1, 2]', "}",
    ]  # fmt: skip
    write(document, tmp_path / "made" / "x.json")
    assert json.loads((tmp_path / "made" / "x.json").read_text()) == document


def test_our_raw_values_are_written_so() -> None:
    files = sorted(RESULTS.glob("*.json"))
    assert len(files) >= 9
    for file in files:
        assert file.read_text() == text_of(json.loads(file.read_text())), file
    assert read((RESULTS / "bench_vgg16.json").read_text())["networks"][0]["name"] == "vgg16.pt"
