"""The search for the smallest network that does well enough: against a full search, on made-up curves and on a real network."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor import compress, train
from compressor.data import Columns, Rows
from compressor.errors import BadInput, UnreachableSparsity, WrongUsage
from compressor.objective.objective import Objective
from compressor.objective.paired import drop, outcomes
from compressor.pruning.search import NEAR, RUNG, Search, Step, smallest
from compressor.training.recipe import Recipe

MADE_UP = {
    "falls steadily": lambda keep: 2 * (1 - keep) / keep,
    "falls at a cliff": lambda keep: 0.1 if keep > 0.21 else 30.0,
    "dips at half": lambda keep: 9.0 if 0.45 < keep < 0.55 else 4 * (1 - keep),
    "loses at once": lambda keep: 1.4 if keep < 0.9 else 0.5,
    "loses nothing": lambda keep: 0.0,
}


def searched(curve, max_drop: float = 1.0, lowest: float = 0.0) -> Search:
    search = Search(max_drop, "macs", "accuracy", 90.0, 1000)
    while (keep := search.following()) is not None:
        if keep < lowest:
            step = Step(keep, None, None, None, None, False, 0.0)
        else:
            step = Step(keep, keep, 90 - curve(keep), curve(keep), 0.0, curve(keep) <= max_drop, 0.0)
        search = replace(search, steps=(*search.steps, step))
        assert len(search.steps) < 40
    return search


@pytest.mark.parametrize("name", sorted(MADE_UP))
@pytest.mark.parametrize("max_drop", [0.6, 1.0, 2.5])
def test_the_search_ends_near_the_best_of_all(name: str, max_drop: float) -> None:
    """Of ten thousand budgets: the smallest below which all lose more, or two rungs of the ladder do."""
    curve = MADE_UP[name]
    search = searched(curve, max_drop)
    best = search.best
    fine = [n / 10_000 for n in range(20, 9_600) if curve(n / 10_000) <= max_drop]
    if best is None:
        assert all(keep > 0.85 for keep in fine)
        return
    assert curve(best.keep) <= max_drop
    missed = [keep for keep in fine if keep < NEAR * best.keep]
    assert all(step.kept is False for step in search.steps if step.keep < best.keep)
    if name == "loses nothing":
        assert best.keep < 0.0015
        return
    below = [RUNG**n for n in range(1, 20) if RUNG**n < best.keep - 1e-6][:2]
    assert not missed or all(curve(keep) > max_drop for keep in below)


def test_what_cannot_be_reached_ends_the_way_down() -> None:
    search = searched(lambda keep: 0.0, lowest=0.3)
    assert search.best is not None
    assert 0.3 <= search.best.keep <= 0.3 / NEAR
    assert sum(step.left is None for step in search.steps) >= 1


class Net(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24)]
        super().__init__(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 4))


def columns(count: int, seed: int) -> Columns:
    """Images whose brightest quarter is their class, now and then."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    for n, label in enumerate(labels.tolist()):
        x[n, :, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.5
    return Columns(x, labels)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return train(Net(), columns(1024, 0), Recipe(epochs=6, batch_size=64, flip=0.0)).model


@pytest.fixture
def how(trained: nn.Module) -> dict[str, Any]:
    data = Rows(columns(512, 1), 512, 64, None)

    def attempt(keep: float):
        asked.append(keep)
        return compress(trained, "l1-filters", data, target_macs=keep, repair="least-squares")

    asked: list[float] = []
    attempt.asked = asked  # type: ignore[attr-defined]
    return {"dense": trained, "attempt": attempt, "judge": Objective(Rows(columns(2000, 2), 2000, 250, None)), "max_drop": 2.0}


def test_of_a_real_network_no_smaller_one_does_well_enough(trained: nn.Module, how) -> None:
    """Against a search of all budgets, a hundredth apart."""
    before = copy.deepcopy(trained.state_dict())
    result, search = smallest(**how)
    best = search.best
    assert best is not None
    dense = outcomes(trained, how["judge"])
    assert drop(dense, outcomes(result.model, how["judge"])).most <= 2.0
    kept = [0.01 * n for n in range(3, 100) if _does(how, dense, 0.01 * n)]
    assert best.keep <= min(kept) / NEAR + 0.01
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def _does(how, dense, keep: float) -> bool:
    try:
        result = how["attempt"](keep)
    except UnreachableSparsity:
        return False
    return drop(dense, outcomes(result.model, how["judge"])).most <= how["max_drop"]


def test_an_interrupted_search_goes_on(how, tmp_path: Path) -> None:
    """Where it stopped, and to the same end; nothing is tried twice, but for the winner, which is made anew."""
    whole, path = smallest(**how)
    times, at = len(how["attempt"].asked), 4
    how["attempt"].asked.clear()

    def until(what: str, done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smallest(**how, folder=tmp_path, progress=until, identity={"model": "net"})
    again, rest = smallest(**how, folder=tmp_path, resume=True, identity={"model": "net"})
    strip = [replace(step, seconds=0.0) for step in path.steps]
    assert [replace(step, seconds=0.0) for step in rest.steps] == strip
    assert len(how["attempt"].asked) <= times + 1
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in whole.model.state_dict().items())


def test_a_folder_is_of_one_search(how, tmp_path: Path) -> None:
    smallest(**how, folder=tmp_path, identity={"model": "net", "seed": 0}, minutes=0)
    with pytest.raises(WrongUsage, match="holds a search; resume=True goes on with it"):
        smallest(**how, folder=tmp_path, identity={"model": "net", "seed": 0})
    with pytest.raises(WrongUsage, match="holds a search that differs in seed"):
        smallest(**how, folder=tmp_path, identity={"model": "net", "seed": 1}, resume=True)
    _, looser = smallest(
        **{**how, "max_drop": 8.0}, folder=tmp_path, identity={"model": "net", "seed": 0}, resume=True, minutes=0
    )
    assert len(looser.steps) == 1, "the steps are as good for another limit"
    for damaged in ("{}", "[]", '{"schema": 1, "identity": [1], "search": {"steps": []}}', '{"schema": 1, "search": 3}'):
        (tmp_path / "search.json").write_text(damaged)
        with pytest.raises(BadInput, match="no search that can be gone on with"):
            smallest(**how, folder=tmp_path, resume=True)


def test_time_ends_it_with_the_best_so_far(how) -> None:
    result, search = smallest(**how, minutes=0)
    assert (len(search.steps), search.stopped) == (1, True)
    assert search.best is not None
    assert search.best.keep == RUNG
    assert result.summary.after.macs < result.summary.before.macs


def test_the_nearest_is_named_where_all_lose_too_much(how) -> None:
    with pytest.raises(BadInput, match=r"no network that was tried loses at most 0 points of accuracy: the nearest lost"):
        smallest(**{**how, "max_drop": 0.0})
    few = Objective(Rows(columns(40, 2), 40, 20, None))
    with pytest.raises(BadInput, match=r"40 samples leave the interval too wide; give val_data of [\d,]+ or more"):
        smallest(**{**how, "judge": few, "max_drop": 1.0})
