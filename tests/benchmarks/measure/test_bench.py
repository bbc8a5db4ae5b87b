"""`compress bench` on real networks, and on all that does not fit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compressor import networks, save
from compressor.benchmarks.measure.bench import bench
from compressor.benchmarks.measure.networks import open_network, source_of
from compressor.benchmarks.render import read, render
from compressor.benchmarks.report.page import headlines
from tests.benchmarks import probes
from tests.command import run


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


@pytest.fixture(autouse=True, scope="module")
def _probes() -> Iterator[None]:
    """Memory is measured in real processes that need not import torch; `test_memory.py` has those of users."""
    with pytest.MonkeyPatch.context() as patch:
        probes.use(patch)
        yield


@pytest.fixture(scope="module")
def document(folder: Path) -> dict:
    """One measured report."""
    files = ("dense.pt", "small.onnx", "small.safetensors")
    outputs = ("-o", "page.html", "-o", "page.md", "-o", "page.json")
    done = run("bench", *files, *outputs, "--rounds", "3", "--threads", "1", "--batch", "16", cwd=folder)
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
    assert len(runs) == len(document["times"]) == 2 + 3 + 2
    assert all(len(t["values"]) == 3 and min(t["values"]) > 0 and t["unit"] == "s" for t in document["times"])
    assert len(document["memory"]) == len(document["times"])
    assert all(m["peak"] > 50 * 2**20 for m in document["memory"])
    assert document["environment"]["threads"] == 1
    assert not any(key in json.dumps(document) for key in ("ratio", "speedup", "speed_up"))


def test_nothing_is_left_beside_the_reports(folder: Path, document: dict) -> None:
    assert {p.name for p in folder.iterdir() if p.name.startswith((".", "page"))} == {"page.html", "page.md", "page.json"}


def test_measuring_draws_no_random_numbers(tmp_path: Path) -> None:
    """Two of a baseline's drawn inputs may lie so near that the proof of its file refuses; that was one run in a hundred."""
    save(networks.build("lenet300100", data="digits"), tmp_path / "dense.pt")
    network = open_network(tmp_path / "dense.pt")
    assert network.module is not None
    source = source_of([network.module], [], "digits", [], samples=4, seed=0)
    before = torch.get_rng_state()
    assert len(bench([network], source, batches=(2,), rounds=1, threads=1)["memory"]) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_onnx_files_alone(folder: Path) -> None:
    batches = ("--batch", "2", "--batch", "16")
    done = run("bench", "small.onnx", "small.onnx", "--rounds", "2", "--no-memory", *batches, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(t["network"], t["engine"], t["batch"]) for t in found["times"]] == [
        (name, "onnxruntime", batch) for batch in (2, 16) for name in ("small.onnx", "small.onnx (2)")
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
def test_bad_input_is_one_line(case: str, folder: Path) -> None:
    arguments, code, words = BAD[case]
    (folder / "damaged.json.onnx").write_bytes(b"no")
    (folder / "small.pt2").write_bytes(b"no")
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run("bench", "dense.pt", *arguments, "--rounds", "2", "--no-memory", cwd=folder)
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
def test_reports_that_cannot_be_shown(name: str, words: str, folder: Path) -> None:
    done = run("report", name, "-o", "again.html", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert not (folder / "again.html").exists()


def test_a_report_is_rendered_again(folder: Path, document: dict) -> None:
    done = run("report", "page.json", "-o", "again.md", "-o", "again.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "again.md").read_text() == (folder / "page.md").read_text()
    assert (folder / "again.html").read_text() == (folder / "page.html").read_text()


NETS = """
import torch
from torch import nn

class Grow(nn.Module):
    def __init__(self, w=32):
        super().__init__()
        self.c, self.d = nn.Conv2d(1, w, 3), nn.Linear(w, 10)
    def forward(self, x):
        return self.d(torch.relu(self.c(x)).mean((2, 3)))

class Rec(nn.Module):
    def __init__(self, w=16):
        super().__init__()
        self.r, self.d = nn.LSTM(8, w, batch_first=True), nn.Linear(w, 10)
    def forward(self, x):
        return self.d(self.r(x)[0][:, -1])

def nan():
    return {"train": [(torch.randn(8, 1, 9, 9), torch.arange(8))], "test": [(torch.full((8, 1, 9, 9), 1e38), torch.arange(8))]}
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """ONNX files of others: open sizes, a fixed batch, a side-car file, weights listed as inputs, a recurrent cell."""
    path = tmp_path_factory.mktemp("odd")
    (path / "nets.py").write_text(NETS)
    made = {}
    exec(NETS, made)
    torch.manual_seed(0)
    grow, x = made["Grow"]().eval(), torch.randn(2, 1, 9, 9)
    torch.save(grow.state_dict(), path / "grow.pth")
    torch.save(made["Grow"](8).half().state_dict(), path / "half.pth")
    batch, size = torch.export.Dim("batch"), torch.export.Dim("size", min=4)
    open_sizes = ({0: batch, 2: size, 3: size},)
    rec = made["Rec"]().eval()
    torch.save(rec.state_dict(), path / "rec.pth")
    for name, net, inputs, sizes in (
        ("open", grow, x, open_sizes), ("fixed", grow, x, None), ("any", grow, x, ({0: batch},)),
        ("rec", rec, torch.randn(2, 5, 8), ({0: batch},)),
    ):  # fmt: skip
        with warnings.catch_warnings(action="ignore"):  # of the exporter's own calls
            program = torch.onnx.export(
                net, (inputs,), dynamo=True, external_data=False, input_names=["x"], verbose=False, dynamic_shapes=sizes
            )
        onnx.save(program.model_proto, path / f"{name}.onnx")
    model = onnx.load(path / "any.onnx")
    onnx.save(model, path / "beside.onnx", save_as_external_data=True, location="beside.data")
    model = onnx.load(path / "any.onnx")
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, path / "old.onnx")
    return path


GROW = ("--network", "nets.py:Grow", "--input", "1x9x9", "--rounds", "2", "--batch", "2", "--no-memory", "--json")
MACS = 32 * 9 * 49 + 32 * 10


@pytest.mark.parametrize("name", ["open", "any", "old", "beside"])
def test_onnx_files_of_others_are_counted(name: str, odd: Path) -> None:
    done = run("bench", "grow.pth", f"{name}.onnx", *GROW, cwd=odd)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["networks"]
    assert [n["macs"]["total"] for n in found] == [MACS, MACS]
    assert [n["macs"]["uncounted"] for n in found] == [[], []]
    files = [odd / f"{name}.onnx", *([odd / "beside.data"] if name == "beside" else [])]
    assert found[1]["bytes"] == sum(file.stat().st_size for file in files)


def test_a_fixed_batch_is_refused_with_the_way_out(odd: Path) -> None:
    done = run("bench", "grow.pth", "fixed.onnx", *GROW, cwd=odd)
    assert done.returncode == 1
    assert done.stderr == "compress: fixed.onnx: takes batches of exactly 2; export it again with a dynamic batch\n"


def test_what_nobody_counts_is_named_and_no_reduction_is_claimed(odd: Path) -> None:
    arguments = ("--network", "nets.py:Rec", "--input", "5x8", *GROW[4:])
    done = run("bench", "rec.pth", "rec.onnx", *arguments, cwd=odd)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["networks"][0]["macs"]["total"] == 5 * 4 * 16 * (8 + 16) + 16 * 10
    assert document["networks"][0]["weights"] == 4 * 16 * (8 + 16) + 16 * 10
    assert document["networks"][1]["macs"]["uncounted"] == ["Gemm", "LSTM"]  # what comes behind has no shape
    assert not any("MACs" in said for said in headlines(document)["rec.onnx"])
    assert "nobody counted them: Gemm, LSTM" in render(document, ".md")
    assert read(done.stdout) == document


def test_half_precision_is_measured_as_it_is(odd: Path) -> None:
    done = run("bench", "half.pth", "half.pth", *GROW, "--network-arg", "w=8", cwd=odd)
    assert done.returncode == 0, done.stderr
    dense, again = json.loads(done.stdout)["networks"]
    entries = 8 * 9 + 8 + 8 * 10 + 10
    assert dense["tensor_bytes"] == 2 * entries
    assert dense["csr_bytes"]["int32"] == (2 + 4) * (8 * 9 + 8 * 10) + 4 * (9 + 11)
    assert [dense["name"], again["name"]] == ["half.pth", "half.pth (2)"]


def test_numbers_that_are_none_are_null(odd: Path) -> None:
    done = run("bench", "grow.pth", "any.onnx", *GROW, "--data", "nets.py:nan", cwd=odd)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert document["networks"][0]["quality"] is None or document["networks"][0]["quality"]["loss"] is None
    assert read(done.stdout) == document
    render(document, ".html")
