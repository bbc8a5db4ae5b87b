"""What networks are judged by, named and of the user's own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import BadInput, WrongUsage
from compressor.objective.metrics import METRICS, Metric, metric_named
from compressor.objective.objective import Objective, evaluate
from tests.command import run


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of different sizes, some labels ignored."""
    labels = torch.randint(7, (15,))
    labels[:2] = -100
    x = torch.randn(15, 6)
    return [(x[:10], labels[:10]), (x[10:], labels[10:])]


def by(metric: object, data: list | None = None) -> float:
    model = nn.Linear(6, 7)
    with torch.no_grad():
        model.weight.copy_(torch.arange(42.0).reshape(7, 6) / 42)
    found = evaluate(model, Objective(data or batches(), metric=metric_named(metric))).metric
    assert found is not None
    return found.value


def test_named_metrics_are_what_they_are_called() -> None:
    data = batches()
    model = nn.Linear(6, 7)
    with torch.no_grad():
        model.weight.copy_(torch.arange(42.0).reshape(7, 6) / 42)
    torch.manual_seed(0)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    told = y != -100
    torch.manual_seed(0)
    model = nn.Linear(6, 7)
    with torch.no_grad():
        model.weight.copy_(torch.arange(42.0).reshape(7, 6) / 42)
        logits = model(x[told])
    torch.manual_seed(0)
    assert by("accuracy", data) == pytest.approx(float((logits.argmax(1) == y[told]).float().mean()))
    torch.manual_seed(0)
    five = logits.topk(5, 1).indices
    assert by("top5", data) == pytest.approx(float((five == y[told][:, None]).any(1).float().mean()))
    torch.manual_seed(0)
    assert by("perplexity", data) == pytest.approx(math.exp(float(nn.functional.cross_entropy(logits, y[told]))), rel=1e-5)
    assert [METRICS[name].higher_is_better for name in ("accuracy", "top5", "perplexity")] == [True, True, False]


def lowest(outputs: torch.Tensor, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return outputs.min()


lowest.higher_is_better = False


def test_a_metric_of_ones_own_is_averaged_over_samples_and_has_a_direction() -> None:
    assert not metric_named(lowest).higher_is_better
    assert metric_named(Metric("mine", lowest)).higher_is_better
    assert by(lambda outputs, batch: len(outputs)) == pytest.approx((10 * 10 + 5 * 5) / 15)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda outputs, batch: outputs, "one finite number for each batch, not a tensor of shape"),
        (lambda outputs, batch: "good", "not 'good'"),
        (lambda outputs, batch: math.nan, "not nan"),
        (lambda outputs, batch: outputs.nowhere, "does not fit the network's outputs and the data"),
    ],
)
def test_what_is_no_number_is_refused(metric, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        by(metric)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(WrongUsage, match="no metric 'f1': choose accuracy, top5, perplexity"):
        metric_named("f1")
    with pytest.raises(WrongUsage, match="not a function"):
        metric_named("math:pi")


OWN = """
def error(outputs, batch):
    return float((outputs - batch[1].reshape(outputs.shape)).abs().mean())
error.higher_is_better = False
"""


@pytest.fixture
def regression(tmp_path: Path) -> Path:
    """A network that predicts one number, its data, and a metric in a file."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8)).astype(np.float32)
    y = x[:, :1] * 2 + 1
    np.savez(tmp_path / "data.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    (tmp_path / "own.py").write_text(
        f"from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))\n{OWN}"
    )
    return tmp_path


def test_everything_speaks_of_the_metric(regression: Path) -> None:
    """Training, pruning, its stages, bench and a sweep of a regression."""
    common = ("--data", "data.npz", "--loss", "mse", "--metric", "own.py:error")
    done = run(
        "train", "own.py:make", "--input", "8", *common, "--epochs", "30", "--batch-size", "16", "-o", "d.pt", cwd=regression
    )
    assert done.returncode == 0, done.stderr
    assert "trained: error 0." in done.stdout
    own = ("--network", "own.py:make")
    pruned = run("prune", "d.pt", *own, "--sparsity", "0.5", *common, "-o", "s.pt", cwd=regression)
    assert pruned.returncode == 0, pruned.stderr
    assert pruned.stdout.startswith("d.pt: error 0.")
    assert "error on 50 samples: 0." in pruned.stdout
    bench = run("bench", "d.pt", "s.pt", *own, *common, "--rounds", "2", "--no-memory", cwd=regression)
    assert bench.returncode == 0, bench.stderr
    assert "error on 50 samples" in bench.stdout
    (regression / "s.toml").write_text(
        'data = "data.npz"\nnetworks = ["d.pt"]\nloss = "mse"\nmetric = "own.py:error"\nnetwork = "own.py:make"\n'
        "sparsities = [0.5]\n"
        'methods = ["random", "l1-filters"]\nseeds = [0, 1]\nrecipe = { epochs = 1 }\n'
    )
    swept = run("sweep", "s.toml", "-o", "out", cwd=regression)
    assert swept.returncode == 0, swept.stderr
    page = run("report", "out", "-o", "page.md", cwd=regression)
    assert page.returncode == 0, page.stderr
    text = (regression / "page.md").read_text()
    assert "| error |" in text
    assert "error ahead of" in text
    other = (*common[:-1], "own.py:make")
    wrong = run("prune", "d.pt", *own, "--sparsity", "0.5", *other, "-o", "w.pt", cwd=regression)
    assert wrong.returncode == 1
    assert "the metric make does not fit" in wrong.stderr
