"""The command line as users meet it: real processes, real files, exit codes and one-line errors."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from compressor import load, networks, save
from tests.command import COMMAND, run, wait_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A fresh LeNet5 and a pruned one, made by the commands themselves."""
    path = tmp_path_factory.mktemp("cli")
    made = run("new", "lenet5", "-o", "net.pt", cwd=path)
    assert made.returncode == 0, made.stderr
    outputs = ("-o", "small.onnx", "-o", "small.safetensors", "--report", "report.json")
    pruned = run("snapit", "net.pt", "--sparsity", "0.9", *outputs, "--samples", "320", cwd=path)
    assert pruned.returncode == 0, pruned.stderr
    (path / "stdout.txt").write_text(pruned.stdout)
    return path


def refused(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    """One line on stderr, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("compress: ")
    for word in words:
        assert word in done.stderr


def test_the_report_holds_what_is_promised(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["schema"] == 1
    assert report["node_sparsity"]["asked"] == 0.9
    assert abs(report["node_sparsity"]["reached"] - 0.9) * 226 < 1
    assert report["weight_sparsity"] > 0.95
    assert report["macs"]["dense"] == 497_160
    assert report["macs"]["small"] < 497_160
    assert {Path(f["path"]).name: f["bytes"] for f in report["files"]} == {
        name: (folder / name).stat().st_size for name in ("net.pt", "small.onnx", "small.safetensors")
    }
    assert report["widths"]["features.8"]["dense"] == 120
    assert all(proof["equivalent"] for proof in report["equivalence"])
    kinds = [proof["kind"] for proof in report["equivalence"]]
    assert kinds == ["structure", "weights", "samples", "samples", "samples", "samples"]
    assert 0 <= report["accuracy"]["small"] <= 1
    assert report["accuracy"]["samples"] == 359
    assert report["environment"]["packages"]["torch"] == torch.__version__
    assert report["environment"]["threads"] >= 1
    assert any("expected to be poor" in note for note in report["notes"])
    assert report["events"][0]["sparsity"] == 0.5


def test_what_people_see(folder: Path) -> None:
    text = (folder / "stdout.txt").read_text()
    for part in (
        "MACs per sample",
        "497,160",
        "bytes of small.onnx",
        "node sparsity 0.89823 reached, 0.9 asked",
        "equivalent",
        "expected to be poor",
    ):
        assert part in text
    assert "NOT" not in text


def test_the_written_network_is_the_reported_one(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    small = load(folder / "small.safetensors")
    assert small.features[0].out_channels == report["widths"]["features.0"]["small"]
    assert sum(p.numel() for p in small.parameters()) == report["parameters"]["small"]


def test_verify_is_a_gate(folder: Path) -> None:
    good = run("verify", "small.safetensors", "small.onnx", cwd=folder)
    assert good.returncode == 0
    assert good.stdout.startswith("equivalent")
    bad = run("verify", "net.pt", "small.onnx", "--json", cwd=folder)
    assert bad.returncode == 1
    document = json.loads(bad.stdout)
    assert document["equivalent"] is False
    assert document["needed_tolerance"] > document["tolerance"]
    assert document["environment"]["packages"]["torch"]
    tolerant = run("verify", "net.pt", "small.onnx", "--tolerance", "1e9", "--quiet", cwd=folder)
    assert tolerant.stdout == ""


def test_two_onnx_files_can_be_compared(folder: Path) -> None:
    assert run("verify", "small.onnx", "small.onnx", cwd=folder).returncode == 0


def test_json_goes_to_stdout_and_quiet_says_nothing(folder: Path, tmp_path: Path) -> None:
    said = run("random", folder / "net.pt", "--sparsity", "0.5", "-o", tmp_path / "a.safetensors", "--json")
    assert json.loads(said.stdout)["method"] == "random"
    assert said.stderr == ""
    silent = run("random", folder / "net.pt", "--sparsity", "0.5", "-o", tmp_path / "b.safetensors", "--quiet")
    assert silent.returncode == 0
    assert silent.stdout + silent.stderr == ""


def test_synthetic_data_is_said(folder: Path, tmp_path: Path) -> None:
    done = run(
        "snap",
        folder / "net.pt",
        "--sparsity",
        "0.5",
        "-o",
        tmp_path / "a.onnx",
        "--data",
        "synthetic",
        "--json",
        "--samples",
        "64",
    )
    document = json.loads(done.stdout)
    assert document["data"] == "synthetic"
    assert document["accuracy"] is None
    assert any("synthetic noise" in note for note in document["notes"])


def test_new_follows_its_options(tmp_path: Path) -> None:
    done = run(
        "new", "lenet5", "-o", "x.safetensors", "--image-size", "32", "--in-channels", "3", "--classes", "12", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    model = load(tmp_path / "x.safetensors")
    assert model.features[0].in_channels == 3
    assert model.classifier[-1].out_features == 12
    five = run("new", "lenet5", "-o", "y.pt", "--in-channels", "5", cwd=tmp_path)
    assert "data none" in five.stdout


@pytest.mark.parametrize(("sparsity", "words"), [("93", "0.93"), ("1.0", "[0, 1)"), ("-0.5", "[0, 1)"), ("nan", "number")])
def test_senseless_sparsities(folder: Path, tmp_path: Path, sparsity: str, words: str) -> None:
    done = run("snapit", folder / "net.pt", f"--sparsity={sparsity}", "-o", tmp_path / "x.onnx")
    refused(done, 2, "sparsity", words)
    assert not list(tmp_path.iterdir())


def test_unreachable_sparsity(folder: Path, tmp_path: Path) -> None:
    refused(run("snapit", folder / "net.pt", "--sparsity", "0.999", "-o", tmp_path / "x.onnx"), 1, "the highest is 0.98")
    done = run("snapit", folder / "net.pt", "--sparsity", "0.97", "--floor", "6", "-o", tmp_path / "x.onnx")
    refused(done, 1, "keeps 6", "the highest is 0.89")
    assert not list(tmp_path.iterdir())


def bad_models(tmp_path: Path, good: bytes) -> dict[str, tuple[bytes | None, str]]:
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'trace'}",))

    torch.save(Evil(), tmp_path / "evil.pt")
    nan = networks.build("lenet5", data="digits")
    with torch.no_grad():
        nan.features[0].weight[0] = float("nan")
    save(nan, tmp_path / "nan.pt")
    return {
        "missing.pt": (None, "no such file"),
        "empty.pt": (b"", "is empty"),
        "cut.pt": (good[: len(good) // 2], "cut short"),
        "text.pt": (b"not a network", "not a PyTorch checkpoint"),
        "pickle.pt": (pickle.dumps({"a": 1}), "not a PyTorch checkpoint"),
        "evil.pt": ((tmp_path / "evil.pt").read_bytes(), "system"),
        "nan.pt": ((tmp_path / "nan.pt").read_bytes(), "features.0.weight has NaN"),
    }


def test_bad_models(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "x.onnx"
    target.write_bytes(b"old")
    for name, (content, words) in bad_models(tmp_path, (folder / "net.pt").read_bytes()).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        refused(run("snap", tmp_path / name, "--sparsity", "0.5", "-o", target), 1, words)
        assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [("x.onnx", b"old")]
    assert not (tmp_path / "trace").exists()


def test_bad_targets_and_data(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    net = folder / "net.pt"
    for arguments, code, words in (
        (("-o", tmp_path / "x.bin"), 2, "unknown suffix .bin"),
        (("-o", tmp_path / "no" / "x.onnx"), 1, "does not exist"),
        (("-o", net), 2, "different files"),
        (("-o", tmp_path / "x.onnx", "--data", tmp_path / "empty"), 1, "is empty"),
        (("-o", tmp_path / "x.onnx", "--data", tmp_path / "nowhere"), 1, "no such folder"),
        (("-o", tmp_path / "x.onnx", "--loss", "hinge"), 2, "no loss"),
        (("-o", tmp_path / "x.onnx", "--device", "tpu"), 2, "choose cpu, cuda"),
        (("-o", tmp_path / "x.onnx", "--report", tmp_path / "r.txt"), 2, "unknown suffix .txt"),
        (("-o", tmp_path / "x.onnx", "--gate", "front"), 2, "--gate"),
    ):
        refused(run("snapit", net, "--sparsity", "0.5", *arguments), code, words)
    refused(run("snappit", net, "--sparsity", "0.5"), 2, "no command or method 'snappit': did you mean snapit")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_exit_3(folder: Path, tmp_path: Path) -> None:
    done = run("snap", folder / "net.pt", "--sparsity", "0.5", "-o", tmp_path / "x.onnx", "--device", "cuda")
    refused(done, 3, "no CUDA device here; use --device cpu")


def test_too_many_classes_for_the_network(tmp_path: Path) -> None:
    save(networks.build("lenet5", classes=4, data="digits"), tmp_path / "four.pt")
    done = run("snap", tmp_path / "four.pt", "--sparsity", "0.5", "-o", tmp_path / "x.onnx")
    refused(done, 1, "10 classes, the network 4 outputs")


SLOW_DATA = """
import torch
from pathlib import Path

def batches():
    while True:
        Path("begun").touch()
        yield torch.randn(8, 1, 28, 28), torch.arange(8)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(folder: Path, tmp_path: Path, number: int, code: int) -> None:
    """In a process of its own, while it scores samples that do not end."""
    (tmp_path / "x.onnx").write_bytes(b"old")
    (tmp_path / "slow.py").write_text(SLOW_DATA)
    arguments = ("snapit", folder / "net.pt", "--sparsity", "0.9", "-o", "x.onnx", "--data", "slow.py:batches")
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--samples", str(10**9)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in a shell's background ignores it
        cwd=tmp_path,
    )  # fmt: skip
    wait_for((tmp_path / "begun").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"x.onnx", "slow.py", "begun"}
    assert (tmp_path / "x.onnx").read_bytes() == b"old"


def test_a_budget_and_round_widths(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ("--target-macs", "150K", "--round-to", "8", "--report", str(report))
    done = run("snap", str(folder / "net.pt"), *arguments, "-o", str(tmp_path / "small.onnx"))
    assert done.returncode == 0, done.stderr
    assert "150,000 macs asked" in done.stdout
    found = json.loads(report.read_text())
    assert found["budget"]["unit"] == "macs"
    assert found["budget"]["reached"] == found["macs"]["small"]
    assert found["node_sparsity"]["asked"] is None
    assert found["round_to"] == 8
    assert all(
        w["small"] % 8 == 0 or w["small"] == 4 for w in found["widths"].values() if w["dense"] >= 8 and w["small"] < w["dense"]
    )
