"""`compress train`, and fine-tuning after a pruning: runs that are killed and go on; on real digits."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor import load
from compressor.cli import cli as command_line
from compressor.errors import BadInput, WrongUsage
from compressor.system.user_code import object_named
from compressor.training.history import read_history
from tests.blocks import same_state
from tests.command import COMMAND, run, wait_for


def test_one_command_trains_and_prunes(few_folder: Path) -> None:
    arguments = ("--method", "snapit", "--sparsity", "0.5", "--epochs", "3", "--batch-size", "16", "--threads", "1")
    done = run(
        "train",
        "lenet5",
        "--data",
        "few.npz",
        *arguments,
        "-o",
        "small.onnx",
        "-o",
        "small.safetensors",
        "--json",
        cwd=few_folder,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["training"]["stage"] == "before"
    assert len(told["training"]["history"]) == 3
    assert told["training"]["test"]["accuracy"] > 0.3
    assert all(proof["equivalent"] for proof in told["equivalence"])
    assert len(told["equivalence"]) == 6
    [weights] = [proof["what"] for proof in told["equivalence"] if proof["kind"] == "weights"]
    assert weights.endswith("bit for bit, when they were cut; trained since")
    assert [row.epoch for row in read_history(few_folder / "small.run" / "history.csv")] == [1, 2, 3]
    again = run("train", "small.safetensors", "--epochs", "2", "--threads", "1", "-o", "tuned.safetensors", cwd=few_folder)
    assert again.returncode == 0, again.stderr
    assert "trained: accuracy" in again.stdout
    tuned = load(few_folder / "tuned.safetensors")
    assert tuned.origin.plan is not None
    assert sum(p.numel() for p in tuned.parameters()) == told["parameters"]["small"]


def test_a_log_gets_a_line_now_and_then(few_folder: Path, monkeypatch) -> None:
    """As in a cluster's job, where stderr is a file: hours of silence look like a hang."""
    arguments = ("train", "lenet5", "--data", "few.npz", "--epochs", "2", "--batch-size", "64", "--threads", "1")
    short = run(*arguments, "-o", "short.safetensors", cwd=few_folder)
    assert (short.returncode, short.stderr) == (0, "")
    monkeypatch.setattr("compressor.system.progress.SECONDS_PER_LINE", 0)
    long = run(*arguments, "-o", "long.safetensors", cwd=few_folder)
    assert re.search(r"^epoch 1 of 2, loss \d\.\d{3} \(1 of 3\)$", long.stderr, re.MULTILINE)
    assert re.search(r"^epoch 2 of 2, loss .*, test accuracy .*, \d+ s left \(3 of 3\)$", long.stderr, re.MULTILINE)
    silent = run(*arguments, "-o", "silent.safetensors", "--quiet", cwd=few_folder)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")


def test_one_command_prunes_and_fine_tunes(few_folder: Path) -> None:
    assert (
        run(
            "train", "lenet5", "--data", "few.npz", "--epochs", "4", "--batch-size", "16", "-o", "net.pt", cwd=few_folder
        ).returncode
        == 0
    )
    asked = ("l1-filters", "net.pt", "--sparsity", "0.5", "-o", "small.onnx", "--threads", "1", "--json")
    bare, tuned = (run(*asked, *more, cwd=few_folder) for more in ((), ("--finetune", "2")))
    assert tuned.returncode == 0, tuned.stderr
    one, other = (json.loads(done.stdout) for done in (bare, tuned))
    assert one["nodes"] == other["nodes"]
    assert other["training"]["test"]["accuracy"] > one["accuracy"]["small"]
    assert not any("not trained afterwards" in note for note in other["notes"])


TRAIN = ["train", "lenet5", "--data", "few.npz", "--method", "snapit", "--method-option", "steps=0", "--stage", "during",
         "--interval", "2", "--sparsity", "0.6", "--epochs", "12", "--batch-size", "8", "--threads", "1"]  # fmt: skip


def test_a_run_that_is_really_killed_goes_on_bit_by_bit(few_folder: Path) -> None:
    whole = run(*TRAIN, "-o", "whole.safetensors", cwd=few_folder)
    assert whole.returncode == 0, whole.stderr
    folder = few_folder / "killed.run"
    for moment in (2, 6):
        command = [*COMMAND, *TRAIN, "-o", "killed.safetensors", "--resume"]
        running = subprocess.Popen(command, cwd=few_folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for(lambda moment=moment: epochs_of(folder) >= moment, running)
        running.kill()
        running.communicate()
        assert running.returncode == -signal.SIGKILL
        assert not (few_folder / "killed.safetensors").exists()
        wait_for(lambda: {path.name for path in folder.iterdir()} <= KEPT)  # by the watcher
    resumed = run(*TRAIN, "-o", "killed.safetensors", "--resume", cwd=few_folder)
    assert resumed.returncode == 0, resumed.stderr
    assert same_state(load(few_folder / "whole.safetensors"), load(few_folder / "killed.safetensors"))


KEPT = {"state.pt", "state.before.pt", "history.csv", "lock"}
"""What a run's folder holds; a process that is killed leaves the file of its lock, though not the lock."""

LEARN = ("--data", "few.npz", "--epochs", "8", "--batch-size", "8", "--threads", "1", "--sparsity", "0.6")
TWICE = ("--interval", "2", "--method-option")
STAGES = {
    "before": ("train", "lenet5", *LEARN, "--method", "snapit", "--method-option", "steps=0"),
    "during, nodes": ("train", "lenet5", *LEARN, "--method", "snapit", "--stage", "during", *TWICE, "steps=0"),
    "during, weights": ("train", "lenet5", *LEARN, "--method", "snipit", "--stage", "during", *TWICE, "steps=0"),
    "after": ("train", "lenet5", *LEARN, "--method", "l1-filters", "--prune-at", "4"),
    "imp": ("train", "lenet5", *LEARN, "--method", "imp", *TWICE, "steps=2"),
    "finetune": ("l1-filters", "net.safetensors", *LEARN[:2], "--sparsity", "0.3", "--threads", "1", "--finetune", "8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_ten_times_at_random_moments_it_goes_on_bit_by_bit(stage: str, few_folder: Path) -> None:
    """At whatever it does: loading, scoring, training, keeping its state, proving."""
    assert run("new", "lenet5", "-o", "net.safetensors", cwd=few_folder).returncode == 0
    started = time.monotonic()
    whole = subprocess.run(
        [*COMMAND, *STAGES[stage], "-o", "whole.safetensors"], cwd=few_folder, capture_output=True, text=True
    )
    duration, draw, kills = time.monotonic() - started, random.Random(0), 0
    assert whole.returncode == 0, whole.stderr
    command = [*COMMAND, *STAGES[stage], "-o", "killed.safetensors", "--resume"]
    while kills < 10:
        running = subprocess.Popen(command, cwd=few_folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=duration * (0.3 + 0.7 * draw.random()))
        running.kill()
        _, said = running.communicate()
        if running.returncode == 0:  # it was faster: from the start again
            shutil.rmtree(few_folder / "killed.run")
            (few_folder / "killed.safetensors").unlink()
            continue
        assert running.returncode == -signal.SIGKILL, said
        kills += 1
    resumed = run(*command[len(COMMAND) :], cwd=few_folder)
    assert resumed.returncode == 0, resumed.stderr
    assert same_state(load(few_folder / "whole.safetensors"), load(few_folder / "killed.safetensors"))


def epochs_of(folder: Path) -> int:
    """Epochs that a run has done."""
    return len(read_history(folder / "history.csv")) if (folder / "history.csv").is_file() else 0


def test_tensorboard_can_follow(few_folder: Path) -> None:
    command = ("train", "lenet5", "--data", "few.npz", "--epochs", "2", "--batch-size", "64", "--threads", "1", "-o", "x.pt")
    done = run(*command, "--tensorboard", "events", cwd=few_folder)
    if done.returncode == 3:
        assert "pip install tensorboard" in done.stderr
        pytest.skip("tensorboard is not installed")
    assert done.returncode == 0, done.stderr
    with warnings.catch_warnings(action="ignore"):  # of what it imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(few_folder / "events")).Reload().Scalars("train_loss")
    rows = read_history(few_folder / "x.run" / "history.csv")
    assert [(event.step, event.value) for event in events] == [(r.epoch, pytest.approx(r.train_loss, abs=1e-4)) for r in rows]


def test_fine_tuning_goes_on_too(few_folder: Path) -> None:
    """An export that fails after hours of it must not cost them."""
    assert run("new", "lenet5", "-o", "net.safetensors", cwd=few_folder).returncode == 0
    command = ("l1-filters", "net.safetensors", "--data", "few.npz", "--sparsity", "0.3", "--threads", "1")
    command = (*command, "--schedule", "steps", "--finetune")
    assert run(*command, "1", "-o", "small.safetensors", cwd=few_folder).returncode == 0
    assert [row.epoch for row in read_history(few_folder / "small.run" / "history.csv")] == [1]
    further = run(*command, "3", "-o", "small.safetensors", "--resume", cwd=few_folder)
    assert further.returncode == 0, further.stderr
    whole = run(*command, "3", "-o", "whole.safetensors", "--run", "elsewhere", cwd=few_folder)
    assert whole.returncode == 0, whole.stderr
    assert (few_folder / "elsewhere" / "state.pt").is_file()
    one, other = (load(few_folder / f"{name}.safetensors").state_dict() for name in ("small", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    refused = run("l1-filters", "net.safetensors", "--sparsity", "0.3", "-o", "x.safetensors", "--resume", cwd=few_folder)
    assert (refused.returncode, refused.stderr) == (2, "compress: --resume is for a training: give --finetune EPOCHS, too\n")


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("vgg17",), WrongUsage, "vgg17: neither a file nor a network; did you mean vgg"),
        (("none.pt",), BadInput, "none.pt: no such file"),
        (("lenet5", "--sparsity", "0.5"), WrongUsage, "--sparsity is for pruning: name a --method"),
        (("lenet5", "--stage", "after"), WrongUsage, "name a --method"),
        (("lenet5", "--method", "snapit"), WrongUsage, "give one of --sparsity"),
        (("lenet5", "--method", "snap-it", "--sparsity", "0.5"), WrongUsage, "no method 'snap-it'"),
        (("lenet5", "--lr", "-1"), WrongUsage, r"--lr -1\.0: must be a number, at least 0"),
        (("lenet5", "--key", "ema"), WrongUsage, "--key is for files; lenet5 is a fresh network"),
        (
            ("lenet5", "--method", "snip", "--sparsity", "0.5", "--stage", "during", "--epochs", "1"),
            WrongUsage,
            "1 events, one",
        ),
        (("lenet5", "--data", "synthetic"), BadInput, "synthetic"),
        (("lenet5", "--data", f"{__file__}:once"), BadInput, "is an iterator, and training reads it in every epoch"),
    ],
)
def test_train_refuses_in_one_line(tmp_path: Path, arguments, kind, words) -> None:
    targets = ["-o", str(tmp_path / "x.pt")]
    with pytest.raises(kind, match=words) as error:
        command_line.main(["train", *arguments, *targets], standalone_mode=False)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def once():
    return iter([(torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.long))])


def test_an_image_input_has_a_name(few, tmp_path) -> None:
    """Of a network of the user's own: scored and trained by that name."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def forward(self, x):\n        return super().forward(x)\n\n"
        "def make():\n    return Net(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    torch.save(object_named(f"{tmp_path / 'mine.py'}:make", "--network")().state_dict(), tmp_path / "mine.pt")
    done = run(
        "train", "mine.pt", "--network", "mine.py:make", "--input", "x:float32:1x28x28", "--data", "digits", "--epochs", "3",
        "--method", "snapit", "--method-option", "steps=0", "--sparsity", "0.5", "--stage", "during", "--interval", "1",
        "-o", "small.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "node sparsity 0.50000 reached" in done.stdout


def test_a_network_of_ones_own_remembers_the_data_it_was_trained_on(tmp_path) -> None:
    whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    torch.save(whole, tmp_path / "whole.pt")
    first = run("train", "whole.pt", "--input", "1x8x8", "--data", "digits", "--epochs", "1", "-o", "one.pt", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "Scored on" not in first.stdout
    second = run("train", "one.pt", "--epochs", "1", "--resume", "-o", "two.pt", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "two.run: there is no run to go on with; this one begins anew" in second.stderr
    assert load(tmp_path / "two.pt").origin.data == "digits"
    arrays = {"x": np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32), "y": np.arange(40) % 10}
    np.savez(tmp_path / "few.npz", **arrays)
    assert run("train", "one.pt", "--data", "few.npz", "--epochs", "1", "-o", "far.pt", cwd=tmp_path).returncode == 0
    (tmp_path / "elsewhere").mkdir()  # the data is found from any folder
    again = run("train", "../far.pt", "--epochs", "1", "-o", "again.pt", cwd=tmp_path / "elsewhere")
    assert again.returncode == 0, again.stderr


def test_a_network_of_ones_own_code_is_trained_from_the_start(tmp_path) -> None:
    """By its builder: what it takes follows from the data, its weights from the seed."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make(width=16):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    made = run("new", "net.py:make", "--network-arg", "width=24", "-o", "new.pt", cwd=tmp_path)
    assert "input 1x8x8, data digits" in made.stdout, made.stderr
    again = run("train", "new.pt", "--network", "net.py:make", "--epochs", "1", "-o", "new.safetensors", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    weights = []
    for seed in ("0", "0", "1"):
        done = run(
            "train", "net.py:make", "--method", "snapit", "--sparsity", "0.5", "--epochs", "1", "--seed", seed,
            "--threads", "1", "-o", "small.safetensors", cwd=tmp_path,
        )  # fmt: skip
        assert "node sparsity 0.50000 reached" in done.stdout, done.stderr
        weights.append(load(tmp_path / "small.safetensors", network=f"{tmp_path / 'net.py'}:make").state_dict()["3.bias"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    for wrong, words in (
        (("net.py:nope",), "net.py has no nope"),
        (("net.py:make", "--classes", "20"), "give what it takes with --network-arg"),
        (("lenet5", "--network-arg", "a=1"), "--network-arg is for a builder elsewhere"),
    ):
        refused = run("new", *wrong, "-o", "z.pt", cwd=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr
