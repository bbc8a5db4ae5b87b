"""The training loop: against torch's own steps written out, its moments, its refusals."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.coupling import structure
from compressor.data import Columns, Rows
from compressor.errors import BadInput, UnsupportedNetwork, WrongUsage
from compressor.objective.objective import Objective
from compressor.selection.schedule import placed
from compressor.surgery.shrink import shrink, sliced
from compressor.training.history import Row, read_history, write_history
from compressor.training.recipe import Recipe, recipe_named
from compressor.training.trainer import Diverged, Trainer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3))


def columns(samples: int = 50) -> Columns:
    generator = torch.Generator().manual_seed(1)
    return Columns(torch.randn(samples, 1, 8, 8, generator=generator), torch.randint(3, (samples,), generator=generator))


def trained(model: nn.Module, recipe: Recipe, data, epochs: int = 1, **how) -> Trainer:
    trainer = Trainer(model, recipe, Objective(()), how.pop("flip", 0.0))
    for number in range(epochs):
        trainer.epoch(data, number, 7, **how)
    return trainer


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_epoch_is_torchs_own_steps(optimizer: str) -> None:
    """Coupled L2, clipping, and the learning rate of the epoch, on batches of an order that the seed gives."""
    recipe = Recipe(optimizer=optimizer, lr=0.01, weight_decay=0.1, clip=0.5, batch_size=16, decay_every=1)
    rows = Rows(columns(), 50, 16, 7)
    mine, theirs = network(), network()
    trained(mine, recipe, rows, epochs=2)
    kinds = {
        "adam": lambda p: torch.optim.Adam(p, weight_decay=0.1, fused=False, foreach=False),
        "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1, foreach=False),
    }
    steps = kinds[optimizer](theirs.parameters())
    for number in range(2):
        torch.manual_seed(7 * 1_000_003 + number)
        steps.param_groups[0]["lr"] = 0.01 * 0.1**number
        rows.skip_to(number)
        for x, y in rows:
            steps.zero_grad()
            F.cross_entropy(theirs.train()(x), y).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            steps.step()
    for one, other in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides() -> None:
    rows = Rows(columns(), 50, 50, 3)
    first, second = (next(iter(rows))[1] for _ in range(2))
    rows.skip_to(0)
    assert torch.equal(next(iter(rows))[1], first)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_what_is_held_gets_no_gradient_and_stays_zero() -> None:
    """Also in channels_last, where moments lie otherwise in memory than masks."""
    model, mask = network(), torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        model[0].weight.mul_(mask)
    objective = Objective(())
    objective.example = (torch.zeros(2, 1, 8, 8),)
    trainer = Trainer(model, Recipe(batch_size=16), objective)
    for number in range(3):
        trainer.epoch(Rows(columns(), 50, 16, 7), number, 7, held={"0.weight": mask})
    assert bool((model[0].weight[~mask] == 0).all())
    assert bool((model[0].weight[mask] != 0).all())
    assert bool((trainer.moments()["0.weight"]["exp_avg"][~mask] == 0).all())


def test_moments_go_with_the_nodes_and_lie_as_their_parameters_do() -> None:
    model, x = network(), torch.randn(2, 1, 8, 8)
    objective = Objective(())
    objective.example = (x,)
    trainer = Trainer(model, Recipe(batch_size=16), objective)
    trainer.epoch(Rows(columns(), 50, 16, 7), 0, 7)
    found = structure(model.eval(), (x,))
    kept = {"0": torch.tensor([1, 3])}
    before = {name: of["exp_avg"].clone() for name, of in trainer.moments().items()}
    small = shrink(model, found, kept)
    cut = sliced(before, found, kept)
    assert {name: tuple(t.shape) for name, t in cut.items()} == {n: tuple(p.shape) for n, p in small.named_parameters()}
    assert torch.equal(cut["0.weight"], before["0.weight"][[1, 3]])
    assert torch.equal(cut["5.weight"], before["5.weight"].reshape(3, 4, 36)[:, [1, 3]].reshape(3, 72))
    trainer.adopt(small, {name: {"exp_avg": t, "step": torch.tensor(4.0)} for name, t in cut.items()})
    for name, parameter in small.named_parameters():
        assert trainer.moments()[name]["exp_avg"].stride() == parameter.stride()
        assert torch.equal(trainer.moments()[name]["exp_avg"], cut[name])


def test_images_are_moved_by_up_to_so_many_pixels() -> None:
    trainer = Trainer(network(), Recipe(), Objective(()), shift=2)
    images = torch.arange(1.0, 2 * 5 * 6 + 1).reshape(1, 2, 5, 6).expand(2000, -1, -1, -1)
    torch.manual_seed(0)
    moved, _ = trainer._augmented((images, torch.zeros(2000)))
    padded = nn.functional.pad(images[:1], (2, 2, 2, 2))[0]
    seen = {}
    for down in range(5):
        for right in range(5):
            same = (moved == padded[:, down : down + 5, right : right + 6]).flatten(1).all(1)
            seen[down, right] = int(same.sum())
    assert sum(seen.values()) == 2000
    assert min(seen.values()) > 40  # 80 of each are expected
    named, _ = trainer._augmented(({"x": images, "length": torch.ones(2000)}, torch.zeros(2000)))
    assert torch.equal(named["length"], torch.ones(2000))


def test_images_are_mirrored_in_their_share() -> None:
    trainer = Trainer(network(), Recipe(), Objective(()), flip=0.25)
    x = torch.arange(8.0).expand(4000, 1, 8, 8).clone()
    torch.manual_seed(0)
    mirrored, _ = trainer._augmented((x, torch.zeros(4000)))
    turned = mirrored[:, 0, 0, 0] == 7
    assert bool(((mirrored[:, 0, 0] == torch.arange(8.0)).all(1) | turned).all())
    assert abs(float(turned.float().mean()) - 0.25) < 0.03


def test_a_single_sample_left_over_is_left_out() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    seen = Trainer(model, Recipe(), Objective(())).epoch(Rows(columns(33), 33, 16, 0), 0, 0)
    assert (seen.steps, seen.samples) == (2, 32)


def test_a_loss_that_is_no_number_stops_at_its_step() -> None:
    data = [(x, y) for x, y in Rows(columns(48), 48, 16, None)]
    steps = itertools.count(1)

    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1]) * (float("nan") if next(steps) == 2 else 1)

    with pytest.raises(Diverged, match=r"epoch 3, step 2: the loss is nan"):
        Trainer(network(), Recipe(), Objective((), loss)).epoch(data, 2, 0)
    data[1] = (data[1][0] * float("inf"), data[1][1])
    with pytest.raises(BadInput, match="the data holds NaN or infinite values"):
        Trainer(network(), Recipe(), Objective(())).epoch(data, 2, 0)


def test_a_network_that_does_not_train_is_refused_in_one_line() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 3)

        def forward(self, x):
            if self.training:
                raise ValueError("only for inference")
            return self.last(x.flatten(1))

    with pytest.raises(UnsupportedNetwork, match="does not run in train mode on this data: only for inference"):
        Trainer(Strange(), Recipe(), Objective(())).epoch(Rows(columns(), 50, 16, 0), 0, 0)
    with pytest.raises(BadInput, match="nothing to train"):
        Trainer(nn.Flatten(), Recipe(), Objective(()))


MEMORY = """
import resource, torch
from torch import nn
from compressor.errors import BadInput
from compressor.objective.objective import Objective
from compressor.training.recipe import Recipe
from compressor.training.trainer import Trainer
torch.set_num_threads(1)
layers = [nn.Conv2d(16, 16, 1) for _ in range(8)]  # 256 KiB of each for each sample
trainer = Trainer(nn.Sequential(*layers, nn.Flatten(), nn.Linear(65536, 2)), Recipe(), Objective(()))
x, y = torch.zeros(512, 16, 64, 64), torch.zeros(512, dtype=torch.long)
trainer.epoch([(x[:2], y[:2])], 0, 0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), used + (600 << 20)))
try:
    trainer.epoch([(x, y)], 0, 0)
except BadInput as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_out_of_memory_says_which_batch_fits() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120)
    assert "out of memory with 512 samples in a step;" in done.stdout, done.stderr
    fits = int(done.stdout.partition("step; ")[2].split()[0])
    assert f"--batch-size {fits}" in done.stdout
    assert 64 <= fits < 512, "what the failed step had filled is free again"


def test_bfloat16_trains_too_and_leaves_float32_weights() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    seen = trained(model, Recipe(precision="bfloat16", batch_size=16), Rows(columns(), 50, 16, 0)).model
    assert all(p.dtype == torch.float32 for p in seen.parameters())
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])


def test_recipes() -> None:
    assert recipe_named("snip-it", {}) == Recipe()
    assert (Recipe().lr, Recipe().weight_decay, Recipe().clip, Recipe().batch_size, Recipe().epochs) == (
        2e-3,
        5e-5,
        10,
        512,
        80,
    )
    snip = recipe_named("snip", {"epochs": 3})
    assert (snip.optimizer, snip.lr, snip.momentum, snip.weight_decay, snip.epochs) == ("sgd", 0.1, 0.9, 5e-4, 3)
    assert [snip.lr_at(e) for e in (0, 76, 77, 154)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert (Recipe().flips(colour=True), Recipe().flips(colour=False), Recipe(flip=0.5).flips(colour=False)) == (0.2, 0, 0.5)
    snip = recipe_named("snip", {})
    assert [(snip.flips(colour), snip.shifts(colour)) for colour in (True, False)] == [(0.5, 4), (0, 0)]
    assert Recipe(shift=2).shifts(colour=False) == 2
    with pytest.raises(WrongUsage, match="epochs=-1: at least 0"):
        recipe_named("snip-it", {"epochs": -1})
    with pytest.raises(WrongUsage, match="no option 'learning_rate'"):
        recipe_named("snip-it", {"learning_rate": 1})
    with pytest.raises(WrongUsage, match="no recipe 'snap'"):
        recipe_named("snap", {})


def test_stages_place_the_events() -> None:
    assert placed(3, "before", 10) == {0: (0, 1, 2)}
    assert placed(2, "after", 80) == {70: (0, 1)}
    assert placed(1, "after", 3) == {2: (0,)}
    assert placed(1, "after", 10, prune_at=4) == {4: (0,)}
    assert placed(7, "during", 80, interval=4) == {4: (0,), 8: (1,), 12: (2,), 16: (3,), 20: (4,), 24: (5,), 28: (6,)}
    with pytest.raises(WrongUsage, match="7 events, one every 4 epochs, take 28 epochs"):
        placed(7, "during", 28, interval=4)
    with pytest.raises(WrongUsage, match="--prune-at 11: there are 10 epochs"):
        placed(1, "after", 10, prune_at=11)
    with pytest.raises(WrongUsage, match="--prune-at is for --stage after"):
        placed(1, "before", 10, prune_at=2)


def test_a_history_reads_back(tmp_path) -> None:
    row = Row(1, 98, 0.002, 1.5, None, 0.0, 1.25, 0.5, 0.93, 0.98, 12345, 1.5, 2.5)
    write_history([row, row], tmp_path / "history.csv")
    assert read_history(tmp_path / "history.csv") == [row, row]
