"""The command line on files that someone else made, and on every kind of bad input: real processes, one line each."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compressor import load, networks, save
from tests.checkpoint.test_foreign import FACTORY
from tests.command import COMMAND, run

MINE = (
    FACTORY
    + """
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(30, 6), nn.Linear(6, 12), nn.Linear(8, 12)
        self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, ids, mask):
        x = torch.relu(self.a(self.words(ids).mean(1))) + torch.relu(self.b(mask.float()))
        return self.one(x), self.two(x)

def two():
    return Two()

def two_batches():
    g = torch.Generator().manual_seed(0)
    return [({"ids": torch.randint(30, (8, 5), generator=g), "mask": torch.randint(2, (8, 8), generator=g)},
             torch.randint(3, (8,), generator=g)) for _ in range(3)]

def two_loss(outputs, batch):
    return nn.functional.cross_entropy(outputs[0], batch[1]) + outputs[1].square().mean()

def zero_loss(outputs, batch):
    return 0 * outputs.sum()

def nan_loss(outputs, batch):
    return outputs.sum() * float("nan")

class FailsInEval(Net):
    def forward(self, x):
        if not self.training:
            raise RuntimeError("only for training")
        return super().forward(x)

def fails():
    return FailsInEval()

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(x.flatten(1))

def one_layer():
    return Whole()

def exits(outputs, batch):
    raise SystemExit(7)

def exit_now():
    raise SystemExit(7)

def regression():
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, 8, 8, generator=generator), torch.randn(8, 5, generator=generator)) for _ in range(3)]
    return {"train": batches, "test": batches}

def late():
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"train": [(images, torch.arange(8) % 5)], "test": [(images, torch.arange(8))]}

def nan_batches():
    return [(torch.full((4, 3, 8, 8), float("nan")), torch.arange(4))]

def no_samples():
    return [(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))]

def endless():
    while True:
        yield torch.randn(8, 3, 8, 8), torch.arange(8) % 5

class Scalar(Net):
    def forward(self, x):
        return super().forward(x)[:, 0]

def scalar():
    return Scalar()
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights of several networks, none of which says whose they are."""
    path = tmp_path_factory.mktemp("foreign")
    (path / "mine.py").write_text(MINE)
    torch.manual_seed(0)
    for name in ("net", "two", "fails", "one_layer", "scalar"):
        torch.save(networks.unfilled(f"{path}/mine.py:{name}", {})[0].state_dict(), path / f"{name}.pth")
    torch.save(networks.build("lenet5").half().state_dict(), path / "half.ckpt")
    broken = networks.build("lenet5").state_dict()
    broken["features.0.weight"][0] = float("inf")
    torch.save(broken, path / "infinite.pt")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (60, 10, 10, 3), dtype=np.uint8)
    np.savez(path / "images.npz", x=images, y=np.arange(60) % 5)
    np.savez(path / "many.npz", x=images, y=np.arange(60) % 12)
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5)), path / "whole.pt")
    sequential = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 10))
    torch.save(sequential.state_dict(), path / "sequential.pt")
    np.savez(path / "negative.npz", x=images, y=np.arange(60) % 3 - 1)
    net = networks.unfilled(f"{path}/mine.py:net", {})[0]
    with warnings.catch_warnings(action="ignore"):  # torch deprecates both
        torch.jit.save(torch.jit.trace(net.eval(), torch.randn(2, 3, 8, 8)), path / "script.pt")
        quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    torch.save(quantised, path / "quantised.pt")
    torch.save(quantised.state_dict(), path / "quantised_state.pt")
    of_ultralytics = type("DetectionModel", (nn.Module,), {"__module__": "ultralytics.nn.tasks"})
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["ultralytics.nn.tasks"].DetectionModel = of_ultralytics
        torch.save({"model": of_ultralytics()}, path / "yolo.pt")
    for name in ("single/a/0", "single/a/1", "broken/a/0", "broken/a/1", "broken/b/0", "broken/b/1"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[0]).save(path / f"{name}.png")
    (path / "broken/b/0.png").write_bytes(b"no image")
    save(networks.build("lenet300100", image_size=8), path / "ours.pt")
    ours = torch.load(path / "ours.pt")
    newer = json.loads(ours["compressor"]) | {"schema": 2}
    torch.save(ours | {"compressor": json.dumps(newer)}, path / "newer.pt")
    arguments = ("snap", "ours.pt", "--sparsity", "0.5", "-o", "ours_small.pt", "--plan", "plan.json", "--quiet")
    done = run(*arguments, cwd=path)
    assert done.returncode == 0, done.stderr
    return path


NET = ("net.pth", "--network", "mine.py:net", "--input", "3x8x8")


def test_a_factory_with_npz_and_every_output(folder: Path, tmp_path: Path) -> None:
    outputs = [part for suffix in ("onnx", "pt2", "safetensors", "pt") for part in ("-o", tmp_path / f"small.{suffix}")]
    chosen = ("--mean", "0.5", "--std", "0.25", "--data", "images.npz", "--plan", tmp_path / "plan.json", "--json")
    done = run("snapit", *NET, "--sparsity", "0.5", *outputs, *chosen, cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["equivalence"]) == 8
    assert report["accuracy"]["samples"] == 12
    assert report["loss"]["dense"] > 0
    assert "Images were normalised with mean 0.5, std 0.25." in report["notes"]
    assert "Images of 3x10x10 were converted to the network's input of 3x8x8." in report["notes"]
    applied = run("apply", tmp_path / "plan.json", *NET, "-o", tmp_path / "again.onnx", "--data", "images.npz", cwd=folder)
    assert applied.returncode == 0, applied.stderr
    same = run("verify", tmp_path / "again.onnx", tmp_path / "small.pt2", "--input", "3x8x8", "--trust-pickle", cwd=folder)
    assert same.returncode == 0, same.stdout + same.stderr
    untrusted = run("verify", tmp_path / "again.onnx", tmp_path / "small.pt2", "--input", "3x8x8", cwd=folder)
    assert untrusted.returncode == 2
    assert "if you trust it, --trust-pickle" in untrusted.stderr
    refused = run("apply", tmp_path / "plan.json", "half.ckpt", "-o", tmp_path / "no.onnx", cwd=folder)
    assert refused.returncode == 1
    assert "another architecture" in refused.stderr
    assert not (tmp_path / "no.onnx").exists()


def test_a_program_runs_without_this_package(folder: Path, tmp_path: Path, monkeypatch) -> None:
    done = run("random", *NET, "--sparsity", "0.5", "-o", tmp_path / "small.pt2", "-o", tmp_path / "small.pt", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.pt2").stat().st_size < 100_000
    assert str(folder) not in (tmp_path / "small.pt2").read_bytes().decode("latin1")
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(x, tmp_path / "x.pt")
    code = (
        f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r})\n"
        "try:\n    import compressor; sys.exit('compressor is here')\nexcept ImportError: pass\n"
        "import torch\n"
        "program = torch.export.load('small.pt2').module()\n"
        "y = program(torch.load('x.pt')); assert program(torch.load('x.pt')[:1]).shape == (1, 5)\n"
        "torch.save(y, 'y.pt')\n"
    )  # -S: no .pth file is read, so an editable install is not seen
    outside = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert outside.returncode == 0, outside.stderr
    monkeypatch.chdir(folder)
    model = load(tmp_path / "small.pt", network="mine.py:net").eval()
    assert torch.allclose(model(x), torch.load(tmp_path / "y.pt"), atol=1e-6)


def test_several_named_inputs_with_a_loss_of_ones_own(folder: Path, tmp_path: Path) -> None:
    done = run(
        "snapit", "two.pth", "--network", "mine.py:two", "--input", "ids:int64:5", "--input", "mask:int64:8",
        "--data", "mine.py:two_batches", "--loss", "mine.py:two_loss", "--sparsity", "0.4",
        "-o", tmp_path / "two.onnx", "-o", tmp_path / "two.pt2", "--json", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(proof["equivalent"] for proof in json.loads(done.stdout)["equivalence"])


def test_endless_data_ends_at_the_samples_asked_for(folder: Path, tmp_path: Path) -> None:
    outputs = ("-o", tmp_path / "small.pt", "--report", tmp_path / "report.json", "--quiet")
    done = run("snap", *NET, "--data", "mine.py:endless", "--samples", "20", "--sparsity", "0.5", *outputs, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["samples_per_event"] == 24


def test_a_failure_while_evaluating_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    told = ("--plan", tmp_path / "plan.json", "--report", tmp_path / "report.json")
    done = run("snap", *NET, "--data", "mine.py:late", "--sparsity", "0.5", "-o", tmp_path / "small.pt", *told, cwd=folder)
    assert done.returncode == 1
    assert "labels run from 0 to 7" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_plan_is_replayed_with_the_loss_of_its_data(folder: Path, tmp_path: Path) -> None:
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    done = run("snap", *NET, "--sparsity", "0.5", "-o", tmp_path / "a.pt", "--plan", plan, "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    arguments = ("--data", "mine.py:regression", "--loss", "mse", "--report", report, "--quiet")
    done = run("apply", plan, *NET, "-o", tmp_path / "b.pt", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["accuracy"] is None
    assert json.loads(report.read_text())["loss"]["dense"] > 0


def test_networks_of_different_inputs_are_not_compared(folder: Path) -> None:
    save(networks.build("lenet5"), folder / "lenet5.pt")
    done = run("verify", "ours.pt", "lenet5.pt", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "ours.pt = lenet5.pt: Classifier: does not run on the inputs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_recognised_state_dict_is_told(folder: Path, tmp_path: Path) -> None:
    done = run("random", "half.ckpt", "--sparsity", "0.5", "-o", tmp_path / "small.pt", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Recognised by its tensors as lenet5, input 1x28x28; where that is wrong, --network names another." in done.stdout
    assert "Recognised by its tensors as lenet5" in run("show", "half.ckpt", cwd=folder).stdout


def test_half_precision_comes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    outputs = ("-o", tmp_path / "small.safetensors", "-o", tmp_path / "small.onnx")
    done = run("snapit", "half.ckpt", "--sparsity", "0.5", *outputs, "--data", "digits", "--samples", "320", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "saved in the precision it came in" in done.stdout
    assert load(tmp_path / "small.safetensors").features[0].weight.dtype == torch.float16


def test_show_says_who_is_coupled_with_whom(folder: Path) -> None:
    done = run("show", *NET, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    groups = {g["name"]: g for g in found["groups"]}
    assert groups["c"]["produce"] == ["c"]
    assert groups["c"]["read"] == ["fc"]
    assert groups["fc"]["frozen"] == "it is the network's output"
    assert found["prunable_nodes"] == 8
    tree = run("show", *NET, cwd=folder).stdout
    assert "c  8 nodes  8 can be removed" in tree
    assert "read by fc" in tree


def test_the_opset_is_as_asked(folder: Path, tmp_path: Path) -> None:
    import onnx

    done = run("random", *NET, "--sparsity", "0.5", "-o", tmp_path / "a.onnx", "--opset", "20", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [o.version for o in onnx.load(tmp_path / "a.onnx").opset_import if o.domain == ""] == [20]


BAD = {
    "no input shape": (("net.pth", "--network", "mine.py:net"), 1, "input shape is not known; add --input 3x224x224"),
    "no builder": (("net.pth",), 1, "name its builder: --network"),
    "another builder": (("net.pth", "--network", "vgg16"), 1, "the state dict lacks tensors"),
    "a bad shape": (("net.pth", "--network", "mine.py:net", "--input", "3,8,8"), 2, "a shape is sizes"),
    "a bad argument": ((*NET, "--network-arg", "width"), 2, "write KEY=VALUE"),
    "too wide": ((*NET, "--network-arg", "width=4"), 1, "has shape (8, 3, 3, 3), the network at most (4, 3, 3, 3)"),
    "infinite weights": (("infinite.pt",), 1, "features.0.weight has NaN or infinite values"),
    "too many classes": ((*NET, "--data", "many.npz"), 1, "has 12 classes, the network 5 outputs"),
    "an unknown loss": ((*NET, "--loss", "bec"), 2, "no loss 'bec'"),
    "a loss of zero": ((*NET, "--data", "images.npz", "--loss", "mine.py:zero_loss"), 1, "the loss is 0 on every sample"),
    "a loss of NaN": ((*NET, "--data", "images.npz", "--loss", "mine.py:nan_loss"), 1, "the loss is nan"),
    "a loss that does not fit": ((*NET, "--data", "images.npz", "--loss", "mse"), 1, "do not fit the network's outputs"),
    "fails in eval mode": (("fails.pth", "--network", "mine.py:fails", "--input", "3x8x8"), 1, "only for training"),
    "nothing prunable": (("one_layer.pth", "--network", "mine.py:one_layer", "--input", "12"), 1, "nothing can be pruned"),
    "a size that does not fit": (("half.ckpt", "--image-size", "8"), 1, "does not run in eval mode"),
    "a std of zero": ((*NET, "--data", "images.npz", "--mean", "0", "--std", "0"), 2, "must be positive"),
    "no such data": ((*NET, "--data", "./nowhere"), 1, "no such folder"),
    "labels below zero": ((*NET, "--data", "negative.npz"), 1, "label"),
    "TorchScript": (("script.pt",), 1, "script.pt: a TorchScript file"),
    "a quantised network": (("quantised.pt",), 1, "quantised.pt: a quantised network; prune the float network first"),
    "quantised weights": (("quantised_state.pt",), 1, "a quantised network; prune the float network first"),
    "Ultralytics": (("yolo.pt",), 1, "yolo.pt: an Ultralytics file; save its weights there"),
    "a folder of one class": ((*NET, "--data", "single"), 1, "has one class (a)"),
    "an unreadable image": ((*NET, "--data", "broken"), 1, "broken/b/0.png: not a readable image"),
    "a newer checkpoint": (("newer.pt",), 1, "made by a newer version (schema 2); update compressor"),
    "a late label that is too large": ((*NET, "--data", "mine.py:late"), 1, "labels run from 0 to 7"),
    "regression targets for classes": ((*NET, "--data", "mine.py:regression"), 1, "for regression use --loss mse"),
    "NaN in the data": ((*NET, "--data", "mine.py:nan_batches"), 1, "the data holds NaN or infinite values"),
    "data without samples": ((*NET, "--data", "mine.py:no_samples"), 1, "yields no batch, or an empty one first"),
    "a loss that exits": ((*NET, "--data", "images.npz", "--loss", "mine.py:exits"), 1, "SystemExit: 7"),
    "a builder that exits": (("net.pth", "--network", "mine.py:exit_now", "--input", "3x8x8"), 2, "SystemExit: 7"),
    "data that exits": ((*NET, "--data", "mine.py:exit_now"), 1, "SystemExit: 7"),
    "a huge input": (("net.pth", "--network", "mine.py:net", "--input", "3x9999999x9999999"), 1, "does not fit in memory"),
    "an argument in words": (("half.ckpt", "--network", "lenet5", "--network-arg", "classes=abc"), 2, "are whole numbers"),
    "an argument without a builder": (("half.ckpt", "--network-arg", "classes=5"), 2, "name it, or leave it out"),
    "a key of our own checkpoint": (("ours.pt", "--key", "model"), 2, "needs neither --network-arg nor --key"),
    "a builder of a whole network": (("whole.pt", "--network", "mine.py:net"), 2, "holds a whole network; leave --network out"),
    "tensors that fit by chance": (("sequential.pt",), 1, "their names say nothing of what lies between them"),
    "a name twice": ((*NET[:3], "--input", "x:3x8x8", "--input", "x:3x8x8"), 2, "x is named twice"),
    "a device in words": ((*NET, "--device", "cpu:banana"), 2, "choose cpu, cuda or cuda:1"),
    "a huge seed": ((*NET, "--seed", "99999999999999999999"), 2, "is not in the range"),
    "too many threads": ((*NET, "--threads", "999999"), 2, "is not in the range"),
    "one number for classes": (("scalar.pth", "--network", "mine.py:scalar", "--input", "3x8x8"), 1, "choose mse or bce"),
    "two targets": ((*NET, "--target-macs", "0.5"), 2, "--sparsity and --target-macs: give one of them"),
    "a multiple in words": ((*NET, "--round-to", "eight"), 2, "must be auto, or a whole number"),
    "a mean in words": ((*NET, "--mean", "grey"), 2, "write numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, folder: Path, tmp_path: Path) -> None:
    arguments, code, words = BAD[case]
    (tmp_path / "small.onnx").write_bytes(b"old")
    targets = ("-o", tmp_path / "small.onnx")
    done = run("snapit", *arguments, "--sparsity", "0.5", *targets, "--samples", "64", cwd=folder)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("compress: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("small.onnx", b"old")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda kept: kept + kept[-1:], "indices must rise, each once"),
        (lambda kept: [*kept, 300], "index out of range for its 300 nodes"),
        (lambda kept: [], "no node would be left"),
    ],
)
def test_a_plan_that_no_pruning_made(change, words: str, folder: Path, tmp_path: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    kept = plan["events"][-1]["kept"]
    kept["1"] = change(kept["1"])
    (tmp_path / "bad.json").write_text(json.dumps(plan))
    done = run("apply", tmp_path / "bad.json", "ours.pt", "-o", tmp_path / "small.pt", cwd=folder)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "small.pt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [("--help",), ("show", "ours.pt"), pytest.param(("show", "ours.pt", "--json"), marks=pytest.mark.slow)]
)
def test_no_room_for_what_is_printed(arguments: tuple[str, ...], folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert (done.returncode, done.stderr) == (1, "compress: standard output: No space left on device\n")


def test_bfloat16_has_no_onnx_but_a_way_out(folder: Path, tmp_path: Path) -> None:
    torch.save(networks.build("lenet5").bfloat16().state_dict(), tmp_path / "net.pt")
    kept = ("-o", "small.pt", "-o", "small.safetensors", "-o", "small.pt2")
    refused = run("random", "net.pt", "--sparsity", "0.5", *kept, "-o", "small.onnx", cwd=tmp_path)
    assert refused.returncode == 1
    assert "few operators in bfloat16: write .safetensors" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]
    done = run("random", "net.pt", "--sparsity", "0.5", *kept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "small.safetensors").features[0].weight.dtype == torch.bfloat16


def test_more_than_an_onnx_file_holds() -> None:
    from compressor.errors import UnsupportedNetwork
    from compressor.exporters.onnx import check_size

    with pytest.raises(UnsupportedNetwork, match=r"2\.0 GiB, one ONNX file holds less than 2; write \.safetensors"):
        check_size(nn.Linear(23_200, 23_200, device="meta"))
