"""`compress bench` on real networks, and on all that does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import main

from compressor import networks, save

COMMAND = [sys.executable, "-m", "cli"]


def run(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dense network, a small one in two formats, and some that do not belong to them."""
    path = tmp_path_factory.mktemp("bench")
    save(networks.build("lenet5", data="digits"), path / "dense.pt")
    outputs = ("-o", "small.onnx", "-o", "small.safetensors")
    done = run("snapit", "dense.pt", "--sparsity", "0.7", *outputs, "--quiet", cwd=path)
    assert done.returncode == 0, done.stderr
    save(networks.build("lenet5", classes=7), path / "seven.pt")
    done = run("random", "seven.pt", "--sparsity", "0.1", "-o", "seven.onnx", "--quiet", cwd=path)
    assert done.returncode == 0, done.stderr
    save(networks.build("lenet300100", image_size=8), path / "other_inputs.pt")
    done = run("random", "other_inputs.pt", "--sparsity", "0.1", "-o", "other_inputs.onnx", "--quiet", cwd=path)
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(0).integers(0, 255, (24, 28, 28), dtype=np.uint8)
    np.savez(path / "many.npz", x=images, y=np.arange(24) % 12)
    (path / "report.json").write_text(json.dumps({"kind": "bench", "schema": 99}))
    (path / "damaged.json").write_text(json.dumps({"kind": "bench", "schema": 1, "networks": [{}]}))
    return path


@pytest.fixture(scope="module")
def document(folder: Path) -> dict:
    """One measured report."""
    files = ("dense.pt", "small.onnx", "small.safetensors")
    outputs = ("-o", "page.html", "-o", "page.md", "-o", "page.json")
    done = run("bench", *files, *outputs, "--rounds", "3", "--threads", "1", "--batch", "2", "--batch", "16", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "written: page.html, page.md, page.json"
    return json.loads((folder / "page.json").read_text())


def test_everything_is_measured(document: dict) -> None:
    dense, onnx, small = document["networks"]
    assert dense["macs"]["total"] == dense["macs_by_fvcore"] == dense["macs_by_thop"] == 497_160
    assert onnx["macs"]["total"] == small["macs"]["total"] == sum(small["macs"]["by_layer"].values())
    assert small["training_macs"] > 2 * small["macs"]["total"]
    assert dense["nodes"] == 226
    assert small["nodes"] == 68
    assert onnx["quality"]["samples"] == small["quality"]["samples"] == 359
    assert onnx["quality"]["accuracy"] == small["quality"]["accuracy"]
    assert set(small["csr_bytes"]) == {"2", "4", "8", "int32"}
    runs = {(t["network"], t["what"], t["engine"], t["batch"]) for t in document["times"]}
    assert len(runs) == len(document["times"]) == 2 * (2 + 3 + 2)
    assert all(len(t["values"]) == 3 and min(t["values"]) > 0 and t["unit"] == "s" for t in document["times"])
    assert len(document["memory"]) == len(document["times"])
    assert all(m["peak"] > 50 * 2**20 for m in document["memory"])
    assert document["environment"]["threads"] == 1
    assert not any(key in json.dumps(document) for key in ("ratio", "speedup", "speed_up"))


def test_nothing_is_left_beside_the_reports(folder: Path, document: dict) -> None:
    assert {p.name for p in folder.iterdir() if p.name.startswith((".", "page"))} == {"page.html", "page.md", "page.json"}


def test_onnx_files_alone(folder: Path) -> None:
    done = run("bench", "small.onnx", "small.onnx", "--rounds", "2", "--no-memory", "--batch", "2", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(t["network"], t["engine"]) for t in found["times"]] == [
        ("small.onnx", "onnxruntime"),
        ("small.onnx (2)", "onnxruntime"),
    ]
    assert found["networks"][0]["quality"] is None
    assert any("noise" in note for note in found["notes"])


def test_a_batch_that_does_not_fit_is_said_and_the_rest_goes_on(folder: Path) -> None:
    batches = ("--batch", "4", "--batch", str(10**9))
    done = run("bench", "dense.pt", "small.safetensors", *batches, "--rounds", "2", "--no-memory", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    for t in json.loads(done.stdout)["times"]:
        assert t["failed"] == (None if t["batch"] == 4 else "does not fit in memory")
        assert len(t["values"]) == (2 if t["batch"] == 4 else 0)


BAD = {
    "answers in other shapes": (("seven.pt",), 1, "seven.pt: answers 7 for a sample, dense.pt answers 10"),
    "an ONNX file that answers in other shapes": (("seven.onnx",), 1, "seven.onnx: answers 7 for a sample"),
    "other inputs": (("other_inputs.pt",), 1, "other_inputs.pt: does not run on the inputs of this comparison"),
    "an ONNX file of other inputs": (("other_inputs.onnx",), 1, "other_inputs.onnx: does not run on the inputs"),
    "no such file": (("none.onnx",), 1, "none.onnx: no such file"),
    "not an ONNX file": (("damaged.json.onnx",), 1, "not an ONNX file"),
    "an exported program": (("small.pt2",), 1, "exported programs are not measured"),
    "data that does not fit": (("small.onnx", "--data", "many.npz"), 1, "12 classes"),
    "a GPU that is not there": (("small.onnx", "--device", "cuda"), 3, "no CUDA device"),
    "nothing to compare": ((), 2, "SMALL"),
    "a report of another kind": (("small.onnx", "-o", "page.pdf"), 2, ".html, .md, .json"),
    "a report over a network": (("small.onnx", "-o", "missing/page.md"), 1, "the folder missing does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, folder: Path, capfd) -> None:
    arguments, code, words = BAD[case]
    (folder / "damaged.json.onnx").write_bytes(b"no")
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = main(capfd, folder, "bench", "dense.pt", *arguments, "--rounds", "2", "--no-memory")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("report.json", "report schema 99, this version shows 1"),
        ("damaged.json", "not a report, or a damaged one"),
        ("dense.pt", "can't decode"),
        ("none.json", "no such file"),
    ],
)
def test_reports_that_cannot_be_shown(name: str, words: str, folder: Path, capfd) -> None:
    done = main(capfd, folder, "report", name, "-o", "again.html")
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert not (folder / "again.html").exists()


def test_a_report_is_rendered_again(folder: Path, document: dict) -> None:
    done = run("report", "page.json", "-o", "again.md", "-o", "again.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "again.md").read_text() == (folder / "page.md").read_text()
    assert (folder / "again.html").read_text() == (folder / "page.html").read_text()
