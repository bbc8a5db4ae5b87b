"""The page as people see it: in a real headless browser."""

from __future__ import annotations

import copy
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.benchmarks.render import read, render
from compressor.benchmarks.report.compare import comparisons, disk_meant, mac_reduction, paper, paper_rows, times
from compressor.benchmarks.report.page import headlines
from compressor.errors import BadInput
from tests.damage import JUNK, places

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLOTS = ("widths", "batch", "speedup", "memory")


def measured(**changes) -> dict:
    """A document with round numbers: the small network does 4x fewer MACs, and takes half and a quarter of the time."""

    def network(name: str, share: float) -> dict:
        macs, n = int(356_229_120 * share), int(1000 * share)
        return {
            "name": name, "path": name, "bytes": 100 * n, "network": "vgg16", "inputs": ["3x32x32"], "parameters": n,
            "weights": n, "tensor_bytes": 4 * n, "csr_bytes": {"2": n, "4": n, "8": n, "int32": n},
            "macs": {"total": macs, "by_operator": {}, "by_layer": {}, "norms": 1, "uncounted": []}, "macs_by_fvcore": macs,
            "macs_by_thop": {"failed": "no"}, "training_macs": 3 * macs,
            "widths": {"features.0": 64, "features.3": int(64 * share)},
            "nodes": int(12928 * (1 if share == 1 else 0.07)), "nodes_by_layer": {},
            "quality": {"loss": 2.3, "accuracy": 0.1, "samples": 100},
        }  # fmt: skip

    def run(name: str, what: str, engine: str, batch: int, *values: float, failed: str | None = None) -> dict:
        return {
            "network": name,
            "what": what,
            "engine": engine,
            "batch": batch,
            "unit": "s",
            "values": list(values),
            "failed": failed,
        }

    document = {
        "schema": 1, "kind": "bench", "data": "digits", "loss": "cross-entropy", "rounds": 3, "seed": 0,
        "networks": [network("dense.pt", 1), network("small.pt", 0.25)],
        "times": [
            run("dense.pt", "inference", "torch", 1, 0.4, 0.41, 0.42), run("small.pt", "inference", "torch", 1, 0.2, 0.2, 0.2),
            run("dense.pt", "inference", "torch", 64, 4.0, 4.0, 4.1), run("small.pt", "inference", "torch", 64, 1.0, 1.0, 1.1),
            run("dense.pt", "train_step", "torch", 64, 9.0, 8.0, 10), run("small.pt", "train_step", "torch", 64, 7.0, 9.0, 8.5),
            run("dense.pt", "train_step", "torch", 1, failed="needs two"), run("small.pt", "train_step", "torch", 1, 1.0, 1.0),
        ],
        "memory": [
            {"network": "dense.pt", "what": "inference", "engine": "torch", "batch": 1, "unit": "bytes", "peak": 500 * 2**20,
             "baseline": 300 * 2**20, "failed": None},
            {"network": "small.pt", "what": "inference", "engine": "torch", "batch": 1, "unit": "bytes", "peak": 310 * 2**20,
             "baseline": 300 * 2**20, "failed": None},
        ],
        "environment": {"python": "3.11", "system": "Linux", "packages": {"torch": "2"}, "commit": None, "device": "cpu",
                        "processor": "one <b>&", "threads": 1, "cores": 2, "onnxruntime": ["1"], "tf32": False},
        "notes": ["A note with <script>alert(1)</script> in it."],
    }  # fmt: skip
    return document | changes


def test_headlines_and_speedups_come_from_the_raw_values() -> None:
    document = measured()
    assert list(headlines(document)["small.pt"]) == [
        "4.00x fewer MACs", "4.00x faster inference", "training time not significantly different", "4.00x smaller file",
    ]  # fmt: skip
    found = {(c.what, c.batch): c for c in comparisons(document)}
    assert found["inference", 1].ratio == pytest.approx(2.05)
    assert found["inference", 1].significant
    assert not found["train_step", 64].significant
    assert found["train_step", 1].failed == "dense.pt: needs two"
    text = render(document, ".md")
    assert (
        "| train step, PyTorch, batch 64 | small.pt | 9000 (8500 to 9500) | 8500 (7750 to 8750) | not significant | 4.00x | - |"
        in text
    )
    assert "| 4.00x (" in text
    assert "dense.pt: needs two" in text


def test_a_slower_network_is_said_to_be_slower() -> None:
    document = measured()
    document["networks"].reverse()
    assert list(headlines(document)["dense.pt"])[:2] == ["4.00x more MACs", "4.00x slower inference"]


def test_the_papers_rows_stand_beside_ours() -> None:
    document = measured()
    found = [(small["name"], row["method"], row["node_sparsity"]) for small, row in paper_rows(document)]
    assert found == [("small.pt", "snapit", 93)]
    other = copy.deepcopy(document)
    other["networks"][0]["network"] = "resnet18"
    assert not list(paper_rows(other))
    text = render(document, ".md")
    assert "119x (printed 60,000)" in text
    assert "10^(ln r)" in text
    assert "Beside the paper" not in render(other, ".md")


def test_the_disk_column_means_what_the_weights_say() -> None:
    """10^(ln r) for the ratio r of a CSR with 2 index bits: all rows of Table 4 agree with their (rounded) weight sparsity."""
    rows = [row for row in paper()["rows"] if row["table"] == "Table 4"]
    assert len(rows) == 12
    for row in rows:
        low, high = (32 / 34 / (1 - (row["weight_sparsity"] + d) / 100) for d in (-0.6, 0.6))
        assert low * 0.85 < disk_meant(row) < high * 1.15, row


def test_the_numbers_of_the_package_are_the_papers(shared: Path) -> None:
    printed = json.loads((shared / "papers" / "results.json").read_text())
    ours = {(r["network"], r["table"], r["method"]): r for r in paper()["rows"]}
    for table in (printed["structured_cifar10"], printed["structured_imagenette"]):
        for network in ("vgg16", "alexnet"):
            for row in table[network]["rows"]:
                assert row.items() <= ours[network, table["source"].split(", ")[1], row["method"]].items()


class Text(html.parser.HTMLParser):
    """What the browser made of the page: the text of its headlines."""

    def __init__(self) -> None:
        super().__init__()
        self.headlines: list[str] = []
        self.strong = False

    def handle_starttag(self, tag, attrs) -> None:
        self.strong = tag == "strong"

    def handle_data(self, data) -> None:
        if self.strong:
            self.headlines.append(data)
            self.strong = False


def browse(*arguments: str, page: Path) -> subprocess.CompletedProcess:
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
    home = ("--host-resolver-rules=MAP * 0.0.0.0", f"--user-data-dir={page.parent / 'profile'}")
    return subprocess.run([CHROMIUM, *fixed, *home, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120)


def test_in_a_browser(tmp_path: Path) -> None:
    document = measured()
    page = tmp_path / "page.html"
    page.write_text(render(document, ".html"), encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!#)""", page.read_text()), "everything is in the one file"
    assert "<script" not in page.read_text()

    done = browse("--dump-dom", page=page)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    text = Text()
    text.feed(done.stdout)
    assert text.headlines == list(headlines(document)["small.pt"])
    assert text.headlines[0] == f"{times(mac_reduction(document, 'small.pt'))} fewer MACs"

    boxes = tmp_path / "boxes.html"
    tell = """
      document.title = JSON.stringify([...document.querySelectorAll("figure svg")].map(svg => {
        const box = svg.getBoundingClientRect(); return [svg.parentElement.id, box.x, box.y, box.width, box.height] }))
    """
    boxes.write_text(page.read_text().replace("</body>", f"<script>{tell}</script></body>"), encoding="utf-8")
    size = "--window-size=1100,4000"
    title = re.search(r"<title>(.*?)</title>", browse("--dump-dom", size, page=boxes).stdout)
    assert title
    places = json.loads(title[1])
    assert [place[0] for place in places] == [f"plot-{name}" for name in PLOTS]
    picture = tmp_path / "page.png"
    assert browse(f"--screenshot={picture}", size, page=page).returncode == 0
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    for name, x, y, width, height in places:
        shown = pixels[int(y) : int(y + height), int(x) : int(x + width)]
        assert min(shown.shape[:2]) > 80, name
        coloured = (shown.max(2) - shown.min(2) > 40).mean()
        assert coloured > 0.005, f"{name} shows nothing"


def test_it_prints_as_pages(tmp_path: Path) -> None:
    page, paper_copy = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(render(measured(), ".html"), encoding="utf-8")
    assert browse(f"--print-to-pdf={paper_copy}", page=page).returncode == 0
    assert paper_copy.read_bytes().startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", paper_copy.read_bytes())) <= 6


def test_names_of_every_kind_are_shown(tmp_path: Path) -> None:
    document = measured()
    for old, new in (("dense.pt", "a$\\foo$<b>&.pt"), ("small.pt", "_小さい.pt")):
        document = json.loads(json.dumps(document).replace(json.dumps(old), json.dumps(new)))
    text = render(document, ".html")
    assert "<b>" not in text.replace("one &lt;b&gt;", "")
    assert text.count("_小さい.pt") > 5
    assert "a$\\foo$&lt;b&gt;&amp;.pt" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["times"][0].update(batch=0), "a time is not a positive number"),
        (lambda d: d["times"][0].update(batch="two"), "a time is not a positive number"),
        (lambda d: d["times"][0].update(values=[float("inf")]), "a time is not a positive number"),
        (lambda d: d.update(notes="hello"), "its notes are not sentences"),
        (lambda d: d.update(schema=True), "report schema True"),
        (lambda d: d["networks"].pop(), "two networks or more"),
        (lambda d: d["networks"][1].update(name="dense.pt"), "each with a name of its own"),
        (lambda d: d.pop("environment"), "damaged one: lacks environment"),
        (lambda d: d["times"][0].update(engine="tpu"), r"damaged one: times\[0\].engine: Invalid enum value 'tpu'"),
        (lambda d: d["times"][0].update(network="other.pt"), "a time or a memory of 'other.pt', which is none of its networks"),
        (lambda d: d["networks"][1].update(bytes=0), r"networks\[1\].bytes: expected int >= 1"),
        (lambda d: d["networks"][0]["macs"].update(total="many"), r"networks\[0\].macs.total: expected int, got str"),
        (lambda d: d["memory"][0].pop("peak"), "the memory of 'dense.pt' lacks baseline or peak"),
        (lambda d: d["memory"][0].update(allocated=1, reserved=1), "the memory of 'small.pt' lacks allocated or reserved"),
    ],
)
def test_damaged_reports_are_refused(change, words: str) -> None:
    document = measured()
    change(document)
    with pytest.raises(BadInput, match=words):
        read(json.dumps(document))


def refused(text: str) -> bool:
    """Whether it is, in one line."""
    try:
        read(text)
    except BadInput as error:
        return "\n" not in str(error)
    return False


def test_whatever_is_read_can_be_shown() -> None:
    """Something unexpected in any one place is refused in one line, or does no harm; what is nowhere declared may be there."""
    document = measured()
    shown = 0
    for number, path in enumerate(list(places(document))[1:]):
        for junk in (*JUNK[number % 3 :: 3], 10**400, 1e-300):
            changed = copy.deepcopy(document)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = junk
            if not refused(json.dumps(changed)):
                assert render(read(json.dumps(changed)), ".md")
                shown += 1
    assert shown > 50
    assert read(json.dumps(document | {"later": 1})) == document | {"later": 1}


def test_training_is_judged_by_its_own_multiply_adds() -> None:
    document = measured()
    document["networks"][1]["training_macs"] = document["networks"][0]["training_macs"] // 2
    assert mac_reduction(document, "small.pt", "train_step") == pytest.approx(2)
    assert mac_reduction(document, "small.pt") == pytest.approx(4)
