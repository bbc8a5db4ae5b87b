"""`compress prune`: a trained network in, a small one that is nearly as accurate out; on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor import load, networks, save
from tests.command import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with lenet5, trained on digits for a little."""
    folder = tmp_path_factory.mktemp("prune")
    done = run("train", "lenet5", "--data", "digits", "--epochs", "4", "--batch-size", "64", "-o", "dense.pt", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_one_command_keeps_the_accuracy(trained: Path) -> None:
    done = run("prune", "dense.pt", "--target-macs", "0.3", "-o", "small.onnx", "--report", "r.json", cwd=trained)
    assert done.returncode == 0, done.stderr
    report = json.loads((trained / "r.json").read_text())
    assert done.stdout.startswith("dense.pt: accuracy 9")
    assert "before anything is pruned" in done.stdout.splitlines()[0]
    dense, pruned, repaired = (seen["accuracy"] for seen in report["stages"])
    assert [seen["stage"] for seen in report["stages"]] == ["dense", "as pruned", "repaired"]
    assert dense > 0.9
    assert dense - repaired < 0.05 < dense - pruned
    assert report["accuracy"]["small"] == repaired
    assert report["repair"]["kept"].startswith("least squares")
    assert report["asked"]["repair"] == "least-squares"
    assert (report["method"], report["asked"]["allocate"]) == ("l-obs", "sensitivity")
    assert all(proof["equivalent"] for proof in report["equivalence"])
    [weights] = [proof["what"] for proof in report["equivalence"] if proof["kind"] == "weights"]
    assert weights.endswith("bit for bit, when they were cut; repaired since")
    assert "repair: least squares" in done.stdout
    assert "The network is trained, as its checkpoint says" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "next: the same command with --finetune 10, or compress bench dense.pt small.onnx --data digits"
    )


def test_its_choices_can_be_overruled(trained: Path) -> None:
    options = ("--target-macs", "0.5", "-o", "other.pt", "--json")
    named = json.loads(
        run("prune", "dense.pt", "--method", "random", "--method-option", "scope=global", *options, cwd=trained).stdout
    )
    assert (named["method"], named["repair"], named["options"]["scope"]) == ("random", None, "global")
    plain = json.loads(run("prune", "dense.pt", "--repair", "none", *options, cwd=trained).stdout)
    assert (plain["method"], plain["repair"], plain["stages"]) == ("l-obs", None, [])
    fresh = json.loads(run("prune", "dense.pt", "--state", "fresh", "--samples", "256", *options, cwd=trained).stdout)
    assert (fresh["method"], fresh["repair"]) == ("snapit", None)
    by_method = json.loads(run("l1-filters", "dense.pt", "--repair", "norms", *options, cwd=trained).stdout)
    assert by_method["repair"]["kept"] in ("norms", "as pruned")


def test_a_fresh_network_is_pruned_by_snapit(tmp_path: Path) -> None:
    assert run("new", "lenet5", "-o", "fresh.pt", cwd=tmp_path).returncode == 0
    done = run("prune", "fresh.pt", "--sparsity", "0.5", "-o", "small.pt", "--samples", "256", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The network is fresh, for its batch norms never saw data: pruned by snapit, repair: none." in done.stdout
    assert "before anything is pruned" not in done.stdout


def test_fine_tuning_has_its_own_numbers_and_a_teacher(trained: Path) -> None:
    tuning = ("--finetune", "1", "--lr", "0.005", "--batch-size", "32", "--teacher", "dense", "--temperature", "2")
    done = run("prune", "dense.pt", "--target-macs", "0.2", *tuning, "-o", "tuned.onnx", "--report", "t.json", cwd=trained)
    assert done.returncode == 0, done.stderr
    report = json.loads((trained / "t.json").read_text())
    recipe = report["training"]["recipe"]
    assert (recipe["lr"], recipe["batch_size"], recipe["schedule"], recipe["epochs"]) == (0.005, 32, "cosine", 1)
    assert [seen["stage"] for seen in report["stages"]] == ["dense", "as pruned", "repaired", "fine-tuned"]
    assert len({seen["samples"] for seen in report["stages"]}) == 1
    assert report["stages"][3]["accuracy"] == report["training"]["test"]["accuracy"]
    [weights] = [proof["what"] for proof in report["equivalence"] if proof["kind"] == "weights"]
    assert weights.endswith("repaired and trained since")
    again = run("prune", "dense.pt", "--target-macs", "0.2", *tuning, "-o", "tuned.onnx", "--resume", cwd=trained)
    assert again.returncode == 0, again.stderr
    assert any("repaired, " in line for line in again.stdout.splitlines() if line.startswith("accuracy on"))
    other = run(
        "prune", "dense.pt", "--target-macs", "0.2", *tuning[:-2], "--temperature", "3", "-o", "tuned.onnx", "--resume",
        cwd=trained,
    )  # fmt: skip
    assert "made with temperature 2.0, now it is 3.0" in other.stderr


def test_portions_prune_a_part_at_a_time(trained: Path) -> None:
    often = ("--finetune", "3", "--portions", "3")
    done = run("prune", "dense.pt", "--target-macs", "0.2", *often, "-o", "slow.pt", "--report", "s.json", cwd=trained)
    assert done.returncode == 0, done.stderr
    report = json.loads((trained / "s.json").read_text())
    macs = [row["macs"] for row in report["training"]["history"]]
    assert macs[0] > macs[1] > macs[2] == report["macs"]["small"]
    assert len(report["events"]) == 3
    assert report["macs"]["small"] <= 0.21 * report["macs"]["dense"]
    assert report["stages"][-1]["accuracy"] > 0.9
    few = run("prune", "dense.pt", "--target-macs", "0.2", "--finetune", "2", "--portions", "3", "-o", "slow.pt", cwd=trained)
    assert "--portions 3: each is followed by an epoch at least, and there are 2" in few.stderr


def test_accuracy_near_chance_names_the_likely_cause(trained: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (200, 28, 28), dtype=np.uint8)
    np.savez(trained / "wrong.npz", x_train=x, y_train=np.arange(200) % 10, x_test=x, y_test=np.arange(200) % 10)
    done = run("prune", "dense.pt", "--target-macs", "0.5", "--data", "wrong.npz", "-o", "w.pt", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "near chance: look whether the images are normalised as they were in its training (--mean, --std)" in done.stderr
    assert "near chance" in done.stdout, "in the report's notes as well"


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 7))

    def forward(self, x):
        return self.net(x)


BAD = {
    "a number of a training without one": (("--lr", "0.1"), 2, "--lr is for a training: give --finetune EPOCHS, too"),
    "a teacher without a training": (("--teacher", "dense"), 2, "--teacher is for a training"),
    "portions without a training": (("--portions", "2"), 2, "--portions is for a training"),
    "a temperature without a teacher": (
        ("--finetune", "1", "--temperature", "2"), 2, "--temperature is for a teacher: name a --teacher",
    ),
    "an option of no method": (("--method-option", "steps=3"), 2, "name that with --method"),
    "no such repair": (("--repair", "magic"), 2, "none"),
    "no such method": (("--method", "magic"), 2, "no method 'magic'"),
    "single weights": (("--method", "snip", "--repair", "norms"), 2, "for methods that remove whole nodes"),
    "no such teacher": (("--finetune", "1", "--teacher", "nobody.pt"), 1, "nobody.pt: no such file"),
    "a teacher of other outputs": (
        ("--finetune", "1", "--teacher", "seven.pt"), 1, "the teacher gives 7 for a sample, the network 10",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, trained: Path) -> None:
    options, code, words = BAD[case]
    if "seven.pt" in options:
        save(networks.build("lenet5", classes=7), trained / "seven.pt")
    done = run("prune", "dense.pt", "--sparsity", "0.5", *options, "-o", "bad.pt", cwd=trained)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (trained / "bad.pt").exists()


def test_a_plan_of_a_repaired_network_only_cuts_and_says_so(trained: Path) -> None:
    pruned = run("prune", "dense.pt", "--target-macs", "0.5", "-o", "p.pt", "--plan", "plan.json", cwd=trained)
    assert pruned.returncode == 0, pruned.stderr
    done = run("apply", "plan.json", "dense.pt", "-o", "cut.pt", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "this one is only cut, and not as accurate" in done.stdout
    assert run("verify", "p.pt", "cut.pt", cwd=trained).returncode == 1
    plain = run("l1-filters", "dense.pt", "--target-macs", "0.5", "-o", "n.pt", "--plan", "plain.json", cwd=trained)
    assert plain.returncode == 0, plain.stderr
    assert "only cut" not in run("apply", "plain.json", "dense.pt", "-o", "cut.pt", cwd=trained).stdout
    assert run("verify", "n.pt", "cut.pt", cwd=trained).returncode == 0


def test_the_repaired_file_is_the_repaired_network(trained: Path) -> None:
    done = run("prune", "dense.pt", "--target-macs", "0.5", "-o", "a.pt", "-o", "a.onnx", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert run("verify", "a.pt", "a.onnx", cwd=trained).returncode == 0
    assert load(trained / "a.pt").origin.trained is True
    assert torch.isfinite(torch.cat([p.flatten() for p in load(trained / "a.pt").parameters()])).all()
