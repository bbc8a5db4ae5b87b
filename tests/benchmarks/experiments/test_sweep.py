"""Sweeps in real processes on real digits: interrupted, continued, with trials that fail and workers that die."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from compressor import load
from compressor.benchmarks.experiments import sweep as sweeps
from compressor.benchmarks.experiments.cells import cells_of, harmonic_mean
from compressor.benchmarks.experiments.records import read_records
from compressor.benchmarks.experiments.sweep import read_sweep, record_path, run_sweep
from compressor.benchmarks.experiments.tables import differences, experiments_document, paper_row, tables
from compressor.benchmarks.render import read, render
from compressor.data import Preprocessing, hold, open_data
from compressor.errors import BadInput, WrongUsage
from compressor.objective.intervals import normal_interval, t_interval
from compressor.system.user_code import object_named
from tests import ROOT
from tests.benchmarks import probes
from tests.command import COMMAND, FORKS, run, wait_for

SWEEP = """
data = "few.npz"
networks = ["lenet5"]
methods = [
    "dense",
    { method = "snapit", label = "SNAP-it", options = { steps = 0 }, sparsities = [0.5, 0.7] },
    { method = "random", label = "random", macs = [0.4] },
    { method = "imp", label = "IMP", interval = 1, options = { steps = 1 }, sparsities = [0.9] },
]
seeds = [0, 1]
samples = 64

[recipe]
epochs = 2
batch_size = 16
"""


@pytest.fixture
def sweep(few_folder: Path, monkeypatch) -> Path:
    """A folder with a sweep, whose workers are real processes, and begin as copies of one that has imported torch."""
    monkeypatch.setattr(sweeps, "multiprocessing", SimpleNamespace(get_context=lambda _: FORKS))
    (few_folder / "sweep.toml").write_text(SWEEP)
    return few_folder


def test_a_sweeps_file_is_its_trials(sweep: Path) -> None:
    trials = read_sweep(sweep / "sweep.toml")
    assert len(trials) == 2 * (1 + 2 + 1 + 1)
    assert [t.seed for t in trials] == [0] * 5 + [1] * 5
    assert [t.target for t in trials[:5]] == ["dense", "0.5", "0.7", "macs 0.4", "0.9"]
    assert trials[4].pruning == {"interval": 1, "steps": 1}
    assert trials[4].numbers == {"epochs": 2, "batch_size": 16}
    assert len({t.key for t in trials}) == 10
    relabelled = SWEEP.replace('label = "SNAP-it"', 'label = "ours"')
    (sweep / "other.toml").write_text(relabelled)
    assert [t.key for t in read_sweep(sweep / "other.toml")] == [t.key for t in trials]


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("seeds =", "seads =", BadInput, r"unknown key 'seads'; did you mean seeds\?"),
        ("label = ", "lable = ", BadInput, r"methods: unknown key 'lable'; did you mean label\?"),
        ("epochs", "epoch", WrongUsage, r"sweep.toml: a recipe has no option 'epoch': did you mean epochs\?"),
        ("steps = 0", "step = 0", WrongUsage, r"sweep.toml: snapit has no option 'step': did you mean steps\?"),
        ('"lenet5"', '"lenet6"', WrongUsage, "no network 'lenet6'"),
        ('"snapit"', '"snap-it"', WrongUsage, "no method 'snap-it'"),
        ("[0.5, 0.7]", "[0.5, 7]", WrongUsage, "7"),
        ("[0.5, 0.7]", "[0.5, 0.5]", BadInput, "lenet5-SNAP-it-0.5-seed0 is there twice"),
        ("macs = [0.4]", "macs = [0.4], sparsities = [0.5]", BadInput, "random has sparsities and macs; give one"),
        ("macs = [0.4]", "interval = true", BadInput, "interval = True: must be a whole number"),
        ("interval = 1", "interval = 0", BadInput, "interval = 0: must be a whole number, at least 1"),
        ("interval = 1", 'stage = "befor"', BadInput, "stage = 'befor': choose before, during, after"),
        ("steps = 0", 'steps = "0"', WrongUsage, "steps = '0': must be a whole number"),
        ("macs = [0.4]", 'macs = ["40M"]', BadInput, "macs are numbers above 0, not '40M'"),
        ("samples = 64", "threads = 0", BadInput, "threads = 0: must be a whole number, at least 1"),
        ("[0, 1]", '["a"]', BadInput, "seeds are whole numbers"),
        ('"dense"', '{ method = "dense", stage = "after" }', BadInput, "dense prunes nothing: leave out stage"),
        ("samples = 64", 'loss = "mea"', WrongUsage, "no loss 'mea'"),
        ("samples = 64", 'network = "net.py:make"', BadInput, "network is for the networks of files; lenet5 is none"),
        ("interval = 1", "steps = 3", BadInput, r"steps is an option of the method's own: options = \{ steps = ... \}"),
        ("samples = 64", "input = [3]", BadInput, "input = \\[3\\]: must be a list, each entry text"),
        ('["lenet5"]', '"lenet5"', BadInput, "networks is a text, it must be a list"),
        ('data = "few.npz"', "", BadInput, "says nothing of data"),
        ("seeds = [0, 1]", "seeds = ", BadInput, "cannot be read"),
    ],
)
def test_a_sweeps_file_is_checked_before_anything_runs(sweep: Path, old, new, kind, words) -> None:
    (sweep / "sweep.toml").write_text(SWEEP.replace(old, new, 1))
    with pytest.raises(kind, match=words):
        read_sweep(sweep / "sweep.toml")


def test_our_own_sweeps_can_be_read(tmp_path: Path) -> None:
    """Networks that one trains first, as those files say, need only be there."""
    root = tmp_path / "benchmarks" / "sweeps"
    shutil.copytree(ROOT / "benchmarks" / "sweeps", root)
    (tmp_path / "checkpoints").mkdir()
    for seed in range(3):
        (tmp_path / "checkpoints" / f"vgg16-{seed}.safetensors").write_bytes(b"")
    files = sorted(root.glob("*.toml"))
    assert len(files) >= 8
    assert all(len(read_sweep(file)) >= 3 for file in files)


def test_a_sweep_starts_from_files_of_networks(sweep: Path) -> None:
    """A network of each seed, as `compress train` wrote it: each trial starts with its weights."""
    (sweep / "sweep.toml").write_text("""
data = "few.npz"
networks = ["trained-{seed}.safetensors"]
methods = [
    "dense",
    { method = "l1-filters", prune_at = 0, sparsities = [0.3] },
    { method = "snapit", stage = "before", options = { steps = 0 }, sparsities = [0.3] },
]
seeds = [0, 1]
samples = 64
recipe = { epochs = 0 }
""")
    train = "train", "lenet5", "--data", "few.npz", "--epochs", "2", "--batch-size", "16", "--quiet"
    made = run(*train, "-o", "trained-0.safetensors", cwd=sweep)
    assert made.returncode == 0, made.stderr
    with pytest.raises(WrongUsage, match=r"no network 'trained-\{seed\}.safetensors', nor a file of that name for seed 1"):
        read_sweep(sweep / "sweep.toml")
    assert run(*train, "--seed", "1", "-o", "trained-1.safetensors", cwd=sweep).returncode == 0
    done = run("sweep", "sweep.toml", "-o", "results", cwd=sweep)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    records = read_records(sweep / "results")
    assert len(records) == 6
    for seed in (0, 1):
        model = load(sweep / f"trained-{seed}.safetensors").eval()
        data = open_data(str(sweep / "few.npz"))
        held = hold(data.test, model.origin.input_shape, Preprocessing())
        with torch.inference_mode():
            right = (model(held.inputs).argmax(1) == held.targets).float().mean().item()
        dense = next(r for r in records if (r["trial"]["seed"], r["trial"]["method"]) == (seed, None))
        assert dense["document"]["training"]["test"]["accuracy"] == pytest.approx(right)
    keys = [trial.key for trial in read_sweep(sweep / "sweep.toml")]
    (sweep / "trained-1.safetensors").write_bytes((sweep / "trained-0.safetensors").read_bytes())
    again = [trial.key for trial in read_sweep(sweep / "sweep.toml")]
    assert [a == b for a, b in zip(keys, again, strict=True)] == [True] * 3 + [False] * 3  # other weights, other trials
    cells = cells_of(experiments_document(records, ""))
    assert [(c.network, c.builder, c.label, c.seeds) for c in cells] == [
        ("trained-{seed}.safetensors", "lenet5", label, 2) for label in ("dense", "l1-filters", "snapit")
    ]


def test_networks_of_a_sweep_are_seen_through_their_own_normalisation(sweep: Path) -> None:
    """Files in another folder, too; and a new label costs no training."""
    inner = sweep / "inner"
    inner.mkdir()
    new = "new", "lenet300100", "--data", "digits"
    assert run(*new, "-o", "a.pt", cwd=sweep).returncode == 0
    assert run(*new, "--mean", "0.9", "--std", "0.1", "-o", "b.pt", cwd=sweep).returncode == 0
    text = 'data = "digits"\nnetworks = ["../a.pt", "../b.pt"]\nmethods = ["dense"]\nrecipe = { epochs = 1 }\n'
    (inner / "both.toml").write_text(text)
    (inner / "one.toml").write_text(text.replace('"../a.pt", ', ""))
    for name in ("both", "one"):
        assert run_sweep(read_sweep(inner / f"{name}.toml"), inner / name, inner).failed == 0
    both, one = ({r["trial"]["network"]: r["document"]["training"] for r in read_records(inner / n)} for n in ("both", "one"))
    assert both["../b.pt"]["history"][0]["train_loss"] == one["../b.pt"]["history"][0]["train_loss"]
    assert both["../b.pt"]["history"][0]["train_loss"] != both["../a.pt"]["history"][0]["train_loss"]
    (inner / "one.toml").write_text(
        (inner / "one.toml").read_text().replace('["dense"]', '[{ method = "dense", label = "whole" }]')
    )
    again = run_sweep(read_sweep(inner / "one.toml"), inner / "one", inner)
    assert (again.done, again.skipped) == (0, 1)
    assert [r["trial"]["label"] for r in read_records(inner / "one")] == ["whole"]
    assert [path.name.partition("-seed")[0] for path in (inner / "one" / "trials").iterdir()] == ["b-whole-dense"]


OWN = """
import torch
from torch import nn
from torch.nn import functional as F
def make(): return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
def data():
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    pairs = [*zip(x.split(16), x[:, :2].split(16))]
    return {"train": pairs[:4], "test": pairs[4:]}
def error(outputs, batch): return F.l1_loss(outputs, batch[1])
"""


def test_a_sweep_of_ones_own_network_data_and_loss(sweep: Path) -> None:
    (sweep / "own.py").write_text(OWN)
    inner = sweep / "inner"
    inner.mkdir()
    torch.save(object_named(f"{sweep / 'own.py'}:make", "--network")().state_dict(), sweep / "own.pt")
    text = (
        'data = "../own.py:data"\nnetworks = ["../own.pt"]\nnetwork = "../own.py:make"\nsparsities = [0.5]\n'
        'methods = ["dense", "snap"]\nrecipe = { epochs = 1 }\n'
    )
    losses = []
    for number, loss in enumerate(("mse", "../own.py:error")):
        (inner / "sweep.toml").write_text(f'loss = "{loss}"\n{text}')
        assert run_sweep(read_sweep(inner / "sweep.toml"), inner / str(number), inner).errors == {}
        records = read_records(inner / str(number))
        losses.append({r["trial"]["label"]: r["document"]["training"]["test"]["loss"] for r in records})
        document = experiments_document(records, "own")
        [(_, head, rows)] = tables(cells_of(document))
        assert "accuracy, %" not in head
        assert {row[0]: row[head.index("loss")] for row in rows} == {k: f"{v:.4f}" for k, v in losses[-1].items()}
        page = render(document, ".html")
        assert "test loss" in page
        assert "test accuracy, %" not in page
    assert losses[0].keys() == {"dense", "snap"}
    (sweep / "own.py").write_text(OWN.replace("l1_loss", "smooth_l1_loss"))
    again = run_sweep(read_sweep(inner / "sweep.toml"), inner / "1", inner)
    assert (again.done, again.skipped, again.failed) == (2, 0, 0)
    assert all(losses[0][name] != losses[1][name] for name in losses[0])


@pytest.mark.parametrize(
    ("network", "fresh"),
    [
        ("own.py:make", False),
        *(pytest.param(*how, marks=pytest.mark.slow) for how in (("own.pt", False), ("own.py:make", True))),
    ],
)
def test_networks_of_ones_own_are_measured_too(sweep: Path, network: str, fresh: bool, monkeypatch) -> None:
    """By the loss that was said, and by the builder: after hours of training is no time to find that neither is known.

    The slow one measures memory in fresh processes, as users do.
    """
    if not fresh:
        monkeypatch.setattr(sweeps, "serve", probes.serve)
    (sweep / "own.py").write_text(OWN)
    torch.manual_seed(0)
    whole = object_named(f"{sweep / 'own.py'}:make", "--network")()
    torch.save(whole, sweep / "own.pt")
    (sweep / "sweep.toml").write_text(
        f'data = "own.py:data"\nnetworks = ["{network}"]\nloss = "mse"\nmethods = ["snap"]\nsparsities = [0.5]\nrounds = 2\n'
        'input = "4"\nrecipe = { epochs = 1 }\n'
    )
    assert run_sweep(read_sweep(sweep / "sweep.toml"), sweep / "results", sweep).errors == {}
    [record] = read_records(sweep / "results")
    assert "bench_failed" not in record, record["bench_failed"]
    assert str(sweep) not in json.dumps(record)
    [(_, head, [row])] = tables(cells_of(experiments_document([record], "own")))
    for name in ("inference, PyTorch", "inference, ONNX Runtime", "train step", "train memory"):
        assert row[head.index(name)].endswith("x"), name


def test_what_could_not_be_measured_is_measured_by_the_next_call(sweep: Path, monkeypatch) -> None:
    """The network was trained by then: that is not done again. The reason is said whole, however long the path before it."""
    monkeypatch.setattr(sweeps, "serve", probes.serve)
    sweep /= "long" * 40
    sweep.mkdir()
    code = "from pathlib import Path\n" + OWN.replace("def make(): return", "def whole(): return")
    busy = "    if (here := Path(__file__).parent) / 'busy' in here.glob('*') and any(here.glob('results/runs/*/state.pt')):\n"
    (sweep / "own.py").write_text(f"{code}def make():\n{busy}        raise RuntimeError('busy')\n    return whole()\n")
    (sweep / "sweep.toml").write_text(
        'data = "own.py:data"\nnetworks = ["own.py:make"]\nloss = "mse"\nmethods = ["snap"]\nsparsities = [0.5]\nrounds = 2\n'
        'input = "4"\nrecipe = { epochs = 1 }\n'
    )
    (sweep / "busy").touch()
    trials = read_sweep(sweep / "sweep.toml")
    assert run_sweep(trials, sweep / "results", sweep).done == 1
    [before] = read_records(sweep / "results")
    assert before["bench_failed"].endswith("own.py:make: cannot be built (RuntimeError: busy)")
    code = (sweep / "own.py").read_text()
    (sweep / "own.py").write_text(f"{code}# changed\n")
    assert run_sweep(trials, sweep / "results", sweep).failed == 1
    assert read_records(sweep / "results") == [before]
    (sweep / "own.py").write_text(code)
    (sweep / "busy").unlink()
    assert run_sweep(trials, sweep / "results", sweep).done == 1
    [after] = read_records(sweep / "results")
    assert "bench_failed" not in after, after["bench_failed"]
    assert after["bench"]["times"]
    assert after["document"]["training"]["history"] == before["document"]["training"]["history"]  # with its times: the same run
    assert run_sweep(trials, sweep / "results", sweep).skipped == 1
    assert [p.name for p in (sweep / "results" / "runs").iterdir()] == []


def test_ones_own_network_sees_images_of_the_size_that_the_sweep_says(sweep: Path) -> None:
    (sweep / "own.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    torch.save(object_named(f"{sweep / 'own.py'}:make", "--network")().state_dict(), sweep / "own.pt")
    text = 'data = "digits"\nnetworks = ["own.pt"]\nnetwork = "own.py:make"\nmethods = ["dense"]\nrecipe = { epochs = 1 }\n'
    (sweep / "sweep.toml").write_text(f'input = "1x8x8"\n{text}')
    assert run_sweep(read_sweep(sweep / "sweep.toml"), sweep / "results", sweep).errors == {}
    (sweep / "sweep.toml").write_text(text.replace('["own.pt"]', '["own.py:make"]').replace('network = "own.py:make"\n', ""))
    assert run_sweep(read_sweep(sweep / "sweep.toml"), sweep / "fresh", sweep).errors == {}
    (sweep / "sweep.toml").write_text(f'input = "1xx"\n{text}')
    with pytest.raises(WrongUsage, match=r"sweep.toml: .*1xx"):
        read_sweep(sweep / "sweep.toml")


def test_two_sweeps_do_not_work_in_one_folder(sweep: Path) -> None:
    (sweep / "results" / "runs").mkdir(parents=True)
    with FileLock(sweep / "results" / "runs" / "lock"), pytest.raises(BadInput, match="another sweep is at work in it"):
        run_sweep(read_sweep(sweep / "sweep.toml"), sweep / "results", sweep)


def test_rows_of_one_label_are_told_apart_and_seeds_that_change_nothing_are_named() -> None:
    records = [a_record(pruning={"steps": steps}, seed=seed) for steps in (1, 3) for seed in (0, 1)]
    broken = {"key": "abc", "status": "failed", "trial": a_record()["trial"], "error": "out of memory"}
    document = experiments_document([*records, broken], "t")
    assert [c.label for c in cells_of(document)] == ["SNIP (steps 1)", "SNIP (steps 3)"]
    page = render(document, ".md")
    assert "SNIP (steps 3) 0.96: all seeds gave the same" in page
    assert "Failed: mlp5 SNIP 0.96 seed 0 (abc): out of memory" in page
    assert "measured in turn" not in page


def test_records_of_before_stand_beside_those_of_today(tmp_path: Path) -> None:
    """Those that do not say what was no choice then."""
    (tmp_path / "trials").mkdir()
    for seed, more in ((0, {}), (1, {"loss": "cross-entropy", "builder": None, "files": None, "inputs": []})):
        record = {"schema": 1} | a_record(seed=seed, **more)
        (tmp_path / "trials" / f"{seed}.json").write_text(json.dumps(record))
    [cell] = cells_of(experiments_document(read_records(tmp_path), "t"))
    assert (cell.label, cell.seeds) == ("SNIP", 2)


def test_a_fresh_network_sees_colour(sweep: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    for part in ("train", "test"):
        for number, image in enumerate(pixels):
            place = sweep / "colour" / part / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.png")
    made = run("new", "mlp5", "--data", "colour", "-o", "mlp5.pt", cwd=sweep)
    assert "input 3x28x28" in made.stdout, made.stderr
    (sweep / "sweep.toml").write_text(
        'data = "colour"\nnetworks = ["mlp5"]\nmethods = ["dense"]\nimage_size = 32\nrecipe = { epochs = 1 }\n'
    )
    assert run_sweep(read_sweep(sweep / "sweep.toml"), sweep / "results", sweep).errors == {}
    [record] = read_records(sweep / "results")
    assert record["document"]["cost"]["parameters"] > 3 * 32 * 32 * 512
    assert not any("converted" in note for note in record["document"]["notes"])


def test_a_sweep_that_is_interrupted_goes_on_and_is_rendered(sweep: Path) -> None:
    command = [*COMMAND, "sweep", "sweep.toml", "-o", "results", "-j", "2", "--json"]
    running = subprocess.Popen(command, cwd=sweep, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    trials = sweep / "results" / "trials"
    wait_for(lambda: len(list(trials.glob("lenet5*.json"))) >= 2, running)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    before = {path: path.stat().st_mtime_ns for path in trials.glob("lenet5*.json")}
    assert 2 <= len(before) < 10
    done = run(*command[len(COMMAND) :], cwd=sweep)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["skipped"] == len(before)
    assert outcome["done"] == 10 - len(before)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert not list((sweep / "results" / "runs").iterdir())
    pages = ("page.html", "page.md", "page.json")
    rendered = run("report", "results", *(x for page in pages for x in ("-o", page)), "--title", "Digits", cwd=sweep)
    assert rendered.returncode == 0, rendered.stderr
    again = run("report", "page.json", "-o", "again.md", cwd=sweep)
    assert again.returncode == 0, again.stderr
    assert (sweep / "again.md").read_text() == (sweep / "page.md").read_text()
    check_tables(read_records(sweep / "results"), (sweep / "page.md").read_text())
    page = (sweep / "page.html").read_text()
    assert page.count("<svg") == 2
    assert not re.findall(r"""(?:src|href|url\()=?["']?http""", page)
    assert "<script" not in page


def check_tables(records: list[dict], page: str) -> None:
    """Every number of the tables, again from the raw records, by other code."""
    for label, sparsity, macs in (("SNAP-it", 0.5, None), ("SNAP-it", 0.7, None), ("random", None, 0.4), ("IMP", 0.9, None)):
        mine = [
            r["document"] for r in records
            if (r["trial"]["label"], r["trial"]["sparsity"], r["trial"]["macs"]) == (label, sparsity, macs)
        ]  # fmt: skip
        assert len(mine) == 2
        accuracies = [100 * d["training"]["history"][-1]["test_accuracy"] for d in mine]
        assert accuracies == [100 * d["training"]["test"]["accuracy"] for d in mine]
        normal = 1.96 * stdev(accuracies) / math.sqrt(2)
        student = 12.7062 * stdev(accuracies) / math.sqrt(2)  # t of one degree of freedom at 97.5 %
        asked = f"{sparsity:g}" if macs is None else f"{macs:g} of macs left"
        row = next(line for line in page.splitlines() if line.startswith(f"| {label} | {asked} | 2 |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[3] == f"{mean(accuracies):.2f} ± {normal:.2f} (t: {student:.2f})"
        weights = [1 - d["weights"]["small"] / d["weights"]["dense"] for d in mine]
        assert cells[5] == f"{100 * mean(weights):.2f}"
        hm = [2 / (1 / (a / 100) + 1 / w) for a, w in zip(accuracies, weights, strict=True)]
        assert float(cells[6]) == pytest.approx(100 * mean(hm), abs=0.006)
        ratio = mean(d["macs"]["dense"] / d["macs"]["small"] for d in mine)
        assert cells[7] == f"{ratio:,.1f}x"


@pytest.mark.slow
def test_a_sweep_measures_time_and_memory_where_it_is_asked(sweep: Path) -> None:
    (sweep / "sweep.toml").write_text(SWEEP.replace("samples = 64", "samples = 64\nrounds = 2").replace("[0, 1]", "[0]"))
    trials = read_sweep(sweep / "sweep.toml")
    dense, small = (next(t for t in trials if t.label == label) for label in ("dense", "random"))
    assert run_sweep([dense, small], sweep / "results", sweep).failed == 0
    records = {r["trial"]["label"]: r for r in read_records(sweep / "results")}
    assert "bench" not in records["dense"]
    bench = records["random"]["bench"]
    assert str(sweep) not in json.dumps(bench)
    assert [n["path"] for n in bench["networks"]] == ["dense.safetensors", "small.safetensors"]
    times = {(t["network"].partition(".")[0], t["what"], t["engine"]): t["values"] for t in bench["times"]}
    assert {len(values) for values in times.values()} == {2}
    head, row = tables(cells_of(experiments_document(records.values(), "t")))[0][1:]
    of_random = dict(zip(head, row[1], strict=True))
    for column, run_of in (
        ("inference, PyTorch", ("inference", "torch")),
        ("inference, ONNX Runtime", ("inference", "onnxruntime")),
        ("train step", ("train_step", "torch")),
    ):
        ratio = sum(times["dense", *run_of]) / sum(times["small", *run_of])  # the median of two is their mean
        assert of_random[column] == f"{ratio:,.1f}x"
    own = {m["network"]: m["peak"] - m["baseline"] for m in bench["memory"] if m["what"] == "train_step"}
    assert own["dense.safetensors"] > 0
    assert of_random["train memory"].endswith("x")
    assert row[0][head.index("train step")] == ""
    plain = [t for t in read_sweep(sweep / "sweep.toml") if t.label == "random"]
    (sweep / "plain.toml").write_text((sweep / "sweep.toml").read_text().replace("rounds = 2", ""))
    unmeasured = [t for t in read_sweep(sweep / "plain.toml") if t.label == "random"]
    assert plain[0].key != unmeasured[0].key


def test_data_of_a_sweep_is_found_from_its_file(sweep: Path, monkeypatch) -> None:
    (sweep / "data").mkdir()
    (sweep / "data" / "mine.py").write_text(
        "import torch\n\ndef noise():\n    torch.manual_seed(0)\n"
        "    return [(torch.randn(16, 1, 28, 28), torch.arange(16) % 10) for _ in range(2)]\n"
    )
    text = SWEEP.replace('"few.npz"', '"data/mine.py:noise"').replace("seeds = [0, 1]", "seeds = [0]")
    (sweep / "sweep.toml").write_text(text)
    (sweep / "elsewhere").mkdir()
    monkeypatch.chdir(sweep / "elsewhere")
    outcome = run_sweep(read_sweep(sweep / "sweep.toml")[:1], sweep / "results", sweep)
    assert (outcome.done, outcome.errors) == (1, {})


def test_a_trial_that_fails_and_a_worker_that_dies_are_recorded(sweep: Path, monkeypatch) -> None:
    """A worker as the sweep itself starts it."""
    monkeypatch.setattr(sweeps, "multiprocessing", multiprocessing)
    text = SWEEP.replace(
        '{ method = "imp"', '{ method = "snapit", label = "too much", sparsities = [0.9999] },\n    { method = "imp"'
    )
    (sweep / "sweep.toml").write_text(text.replace("[0, 1]", "[0]").replace("epochs = 2", "epochs = 40"))
    trials = [t for t in read_sweep(sweep / "sweep.toml") if t.label in ("dense", "too much")]
    killed = []

    def kill(said: str, *_: int) -> None:
        if "epoch 2 of 40" in said and not killed:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            for child in map(int, children):
                if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                    killed.append(child)
                    os.kill(child, signal.SIGKILL)

    if not Path("/proc/self/task").is_dir():
        pytest.skip("finds its worker in /proc")
    outcome = run_sweep(trials, sweep / "results", sweep, progress=kill)
    assert killed
    assert (outcome.done, outcome.failed) == (0, 2)
    records = {r["trial"]["label"]: r for r in read_records(sweep / "results")}
    assert records["dense"]["error"] == "the worker process died (exit code -9); out of memory?"
    assert "cannot be reached" in records["too much"]["error"]
    again = run_sweep(trials[:1], sweep / "results", sweep)  # goes on from the epoch that was kept
    assert (again.done, again.failed, again.skipped) == (1, 0, 0)
    record = json.loads(record_path(trials[0], sweep / "results").read_text())
    assert len(record["document"]["training"]["history"]) == 40


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    with pytest.raises(BadInput, match="holds no records"):
        read_records(tmp_path)
    for text in ("", "{}", '{"schema": 9, "status": "done"}', '{"schema": 1, "status": "done", "trial": {"network": 1}}'):
        (tmp_path / "trials" / "x.json").write_text(text)
        with pytest.raises(BadInput, match=r"x\.json: not a trial's record"):
            read_records(tmp_path)


def test_intervals_and_means_by_hand() -> None:
    values = [0.1, 0.2, 0.3]
    assert normal_interval(values) == pytest.approx(1.96 * 0.1 / math.sqrt(3))
    assert t_interval(values) == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert normal_interval([0.1]) is t_interval([0.1]) is None
    assert harmonic_mean(0.96, 0.98) == pytest.approx(0.969897)
    assert harmonic_mean(0.0, 0.0) == 0


def a_record(**changes) -> dict:
    trial = {"network": "mlp5", "data": "x/mnist", "label": "SNIP", "seed": 0, "method": "snip", "sparsity": 0.96, "macs": None,
             "parameters": None, "pruning": {}}  # fmt: skip
    row = {"test_accuracy": 0.96, "train_seconds": 2.0}
    document = {
        "method": "snip", "macs": {"dense": 10, "small": 5}, "parameters": {"dense": 10, "small": 5},
        "weights": {"dense": 100, "small": 4}, "tensor_bytes": {"dense": 10, "small": 5},
        "node_sparsity": {"reached": 0.1}, "weight_sparsity": 0.96,
        "training": {"macs": 100, "seconds": 3.0, "stage": "before", "history": [row], "test": {"accuracy": 0.96}},
        "environment": {"processor": "x", "device": "cpu", "threads": 1, "python": "3", "system": "y", "commit": "z",
                        "packages": {"torch": "2"}},
        "masks": {"left": 4}, "notes": ["Images were grey."],
    }  # fmt: skip
    return {"key": "k", "status": "done", "trial": trial | changes, "document": document}


def test_the_papers_number_stands_beside_ours() -> None:
    document = experiments_document([a_record()], "t")
    [cell] = cells_of(document)
    row = paper_row(cell)
    assert (row["table"], row["accuracy"], row["ci95"], row["weight_sparsity"]) == ("SNIP-it, table 3", 96, 0.3, 96)
    [(title, _, [line])] = tables([cell])
    assert title == "mlp5 on mnist, 1 epoch"
    assert line[-1] == "96 ± 0.3 at 96 % (SNIP-it, table 3)"
    structured = a_record(network="vgg16", data="cifar10", label="SNAP-it", method="snapit", sparsity=0.93)
    structured["document"]["node_sparsity"]["reached"] = 0.93
    structured["document"]["masks"] = None
    [(_, _, [line])] = tables(cells_of(experiments_document([structured], "t")))
    assert line[-1] == "85 ± 0.6 at 93 %, 11x fewer FLOPs, 5x inference, 2x train (SNIP-it, table 4)"
    [late] = cells_of(experiments_document([a_record(network="trained.pt", weights="1f") | {"builder": "mlp5"}], "t"))
    assert paper_row(late) is None, "the paper prunes before any training"
    [other] = cells_of(experiments_document([a_record(data="digits")], "t"))
    assert paper_row(other) is None
    assert paper_row(dataclasses.replace(cell, unit="node")) is None, "the paper's row is about single weights"
    page = render(experiments_document([a_record(), structured], "t"), ".html")
    for name, count in (("mlp5-mnist-weight_sparsity", 1), ("vgg16-cifar10-macs_x", 1)):
        picture = page.partition(f'id="{name}')[2].partition("</svg>")[0]
        assert len(re.findall(r'id="[\w-]*paper-\d+-\d+"', picture)) == count, name


def test_methods_of_one_target_are_compared_seed_by_seed() -> None:
    """The best first; seeds that only one of two has count for neither."""

    def trained(label: str, *accuracies: float, sparsity: float | None = 0.9) -> list[dict]:
        records = [a_record(label=label, seed=seed, sparsity=sparsity) for seed in range(len(accuracies))]
        for record, accuracy in zip(records, accuracies, strict=True):
            record["document"]["training"]["test"]["accuracy"] = accuracy
        return records

    one, other = trained("one", 0.90, 0.95, 0.94), trained("other", 0.89, 0.92, 0.93, 0.10)
    document = experiments_document([*other, *one, *trained("alone", 0.5, 0.6, sparsity=0.8)], "t")
    [(title, head, rows)] = differences(cells_of(document))
    assert title == "mlp5 on mnist, 1 epoch, at 0.9 of the weights: points ahead of"
    assert head == ["method", "other"]
    half = 4.302653 * stdev([1, 3, 1]) / math.sqrt(3)
    assert rows == [["one", f"{5 / 3:.2f} ± {half:.2f}"]]
    for suffix in (".md", ".html"):
        page = render(document, suffix)
        assert f"{5 / 3:.2f} ± {half:.2f}" in page
        assert page.count("do not tell the two apart") == 1
    lone = experiments_document([*trained("one", 0.9), *trained("other", 0.8)], "t")
    assert differences(cells_of(lone)) == []
    assert "do not tell the two apart" not in render(lone, ".md")
    losses = [*trained("one", 0.9, 0.9), *trained("other", 0.9, 0.9)]
    for record, loss in zip(losses, (0.1, 0.2, 0.4, 0.6), strict=True):
        record["document"]["training"]["test"] = {"accuracy": None, "loss": loss}
    [(title, head, rows)] = differences(cells_of(experiments_document(losses, "t")))
    assert title.endswith(": loss ahead of")
    assert (head[1], rows[0][0], rows[0][1][:6]) == ("other", "one", "0.3500")


def test_a_seed_whose_file_was_made_anew_does_not_count_twice() -> None:
    """The records of the file of before are still there: a row each."""
    made = [a_record(network="{seed}.pt", seed=seed, weights=f"{weights}{seed}" * 16) for weights in "ab" for seed in (0, 1)]
    cells = cells_of(experiments_document([record | {"builder": "mlp5"} for record in made], "t"))
    assert [c.seeds for c in cells] == [1] * 4
    assert sorted(c.label for c in cells) == [f"SNIP (weights {one})" for one in ("a0a0a0", "a1a1a1", "b0b0b0", "b1b1b1")]
    [cell] = cells_of(experiments_document([record | {"builder": "mlp5"} for record in made[:2]], "t"))
    assert (cell.label, cell.seeds) == ("SNIP", 2)


def test_nodes_and_weights_are_not_one_target() -> None:
    """0.9 of the nodes leaves another network than 0.9 of the weights."""
    nodes = [a_record(seed=seed, method="snapit", label="SNAP-it") for seed in (0, 1)]
    for record in nodes:
        record["document"]["masks"] = None
    weights = [a_record(seed=seed) for seed in (0, 1)]
    assert differences(cells_of(experiments_document([*nodes, *weights], "t"))) == []
    rounds = [a_record(seed=seed, rounds=9) for seed in (0, 1)]
    labels = [c.label for c in cells_of(experiments_document([*rounds, *weights], "t"))]
    assert sorted(labels) == ["SNIP", "SNIP (rounds 9)"]


def test_what_could_not_be_measured_is_said() -> None:
    page = render(experiments_document([a_record() | {"bench_failed": "ONNX Runtime does not run here"}], "t"), ".md")
    assert "Times and memory were not measured: ONNX Runtime does not run here (1 of 1 trials)" in page


def test_times_are_compared_only_where_they_were_made_alike() -> None:
    def dense(**environment: object) -> dict:
        record = a_record(label="dense", method=None, sparsity=None)
        document = record["document"]
        del document["method"]
        document["cost"] = {"macs": 10, "parameters": 10, "weights": 100, "tensor_bytes": 10}
        document["training"] |= {"macs": 400, "history": [{"test_accuracy": 0.97, "train_seconds": 10.0}]}
        document["environment"] |= environment
        return record

    def gains(*records: dict) -> list[str]:
        [(_, head, rows)] = tables(cells_of(experiments_document(records, "t")))
        snip = dict(zip(head, next(row for row in rows if row[0] == "SNIP"), strict=True))
        return [snip.get(name, "") for name in ("training FLOPs", "training time")]

    assert gains(a_record(), dense()) == ["4.0x", "5.0x"]
    assert gains(a_record(), dense(threads=8)) == ["4.0x", ""]
    other = dense()
    other["trial"]["numbers"] = {"batch_size": 64}
    assert gains(a_record(), other) == ["", ""]
    assert "Images were grey. (1 of 1 trials)" in render(experiments_document([a_record()], "t"), ".md")


def test_a_page_can_be_read_back_and_damage_is_refused() -> None:
    document = experiments_document([a_record(), a_record(seed=1)], "t")
    assert read(render(document, ".json")) == document
    assert "SNIP" in render(document, ".md")
    assert "<svg" in render(document, ".html")
    damaged = json.loads(render(document, ".json"))
    del damaged["trials"][0]["measures"]
    with pytest.raises(BadInput, match="not a report, or a damaged one"):
        read(json.dumps(damaged))


@pytest.mark.slow
def test_a_sweep_killed_twenty_times_loses_doubles_and_tears_nothing(sweep: Path) -> None:
    """Killed at random moments with two workers; what was done before is done once, and as in a sweep that ran through."""
    command = [*COMMAND, "sweep", "sweep.toml", "-o", "results", "-j", "2"]
    trials, draw, kills = sweep / "results" / "trials", random.Random(0), 0
    before: dict[Path, str] = {}
    while kills < 20:
        running = subprocess.Popen(
            command, cwd=sweep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(6 + 6 * draw.random())
        if running.poll() is None:
            stop = os.kill if kills % 2 else os.killpg  # alone, or with its workers
            stop(running.pid, signal.SIGKILL)
            kills += 1
        running.wait()
        there = {path: path.read_text() for path in trials.glob("*.json")}
        assert before.items() <= there.items()
        assert all("error" not in json.loads(text) for text in there.values())
        before = there
        if len(there) == 10 and kills < 20:  # all done: from the start again
            shutil.rmtree(sweep / "results")
            before = {}
    assert run(*command[len(COMMAND) :], cwd=sweep).returncode == 0
    records = read_records(sweep / "results")
    assert len(records) == len({json.dumps(r["trial"], sort_keys=True) for r in records}) == 10
    again = run_sweep(read_sweep(sweep / "sweep.toml"), sweep / "whole", sweep)
    assert (again.done, again.failed) == (10, 0)
    both = [{json.dumps(r["trial"], sort_keys=True): r for r in found} for found in (records, read_records(sweep / "whole"))]
    assert both[0].keys() == both[1].keys()
    for key, record in both[0].items():
        mine, other = (d["document"]["training"]["test"] for d in (record, both[1][key]))
        assert mine == other
