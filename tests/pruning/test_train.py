"""Training with pruning: stages, methods that live in training, runs that are killed and go on; on real digits."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn

from compressor import compress, networks, train
from compressor.data import Columns
from compressor.errors import BadInput, WrongUsage
from compressor.objective.objective import Objective, evaluate
from compressor.training.history import read_history
from compressor.training.recipe import Recipe
from compressor.training.trainer import Diverged
from tests.blocks import same_state

QUICK = Recipe(epochs=4, batch_size=64)


@pytest.fixture(scope="module")
def lenet5() -> nn.Module:
    return networks.build("lenet5", data="digits")


def test_a_network_learns_real_digits(all_digits, lenet5) -> None:
    before = copy.deepcopy(lenet5.state_dict())
    done = train(lenet5, all_digits[0], Recipe(epochs=6, batch_size=64), test=all_digits[1])
    assert done.quality.accuracy > 0.97
    assert done.quality.samples == 359
    assert [row.epoch for row in done.history] == [1, 2, 3, 4, 5, 6]
    assert done.history[-1].train_loss < 0.1 < done.history[0].train_loss
    assert done.history[-1].test_accuracy == done.quality.accuracy
    assert done.pruning is None
    # forward and backward of 6 x 1,438 samples: less than three forward passes, for the images need no gradient
    assert 2 * 497_160 < done.macs / (6 * 1438) < 3 * 497_160
    assert all(torch.equal(one, other) for one, other in zip(before.values(), lenet5.state_dict().values(), strict=True))
    assert done.model.origin.network == "lenet5"


@pytest.mark.parametrize(
    ("method", "how", "sparsities"),
    [
        ("snapit", {"sparsity": 0.6, "steps": 0}, [0.6] * 4),
        ("snapit", {"sparsity": 0.6, "steps": 0, "stage": "during", "interval": 1}, [0, 0.5, 0.6, 0.6]),
        ("l1-filters", {"sparsity": 0.5}, [0, 0, 0, 0.5]),
        ("l1-filters", {"sparsity": 0.5, "prune_at": 2}, [0, 0, 0.5, 0.5]),
        ("group-hs", {"sparsity": 0.5, "prune_at": 2}, [0, 0, 0.5, 0.5]),
        ("snapit", {"sparsity": 0.6, "steps": 0, "stage": "after", "prune_at": 4}, [0, 0, 0, 0]),
    ],
)
def test_nodes_go_when_the_stage_says(few, lenet5, method, how, sparsities) -> None:
    done = train(lenet5, few[0], QUICK, test=few[1], method=method, **how)
    assert [row.node_sparsity for row in done.history] == pytest.approx(sparsities, abs=0.005)
    result = done.pruning
    assert result.summary.reached == pytest.approx(how["sparsity"], abs=0.005)
    assert [p.kind for p in result.summary.proofs] == ["structure", "weights", "samples", "samples"]
    assert all(result.summary.proofs)
    assert done.model is result.model
    kept = {group: len(indices) for group, indices in result.plan.kept.items()}
    assert kept["features.4"] == done.model.get_parameter("features.4.weight").shape[0]
    # what the report says of accuracy is what the network that is handed over does
    assert evaluate(done.model, Objective([(few[1].inputs, few[1].targets)])).accuracy == done.quality.accuracy


@pytest.mark.parametrize(
    ("method", "how", "sparsities"),
    [
        ("snip", {"sparsity": 0.9}, [0.9] * 4),
        ("snipit", {"sparsity": 0.9, "steps": 0, "stage": "during", "interval": 1}, [0, 0.5, 0.9, 0.9]),
        ("imp", {"sparsity": 0.9, "steps": 2, "interval": 1}, [0, 0.684, 0.9, 0.9]),
        ("hoyer-square", {"sparsity": 0.9, "prune_at": 2}, [0, 0, 0.9, 0.9]),
    ],
)
def test_weights_go_when_the_stage_says_and_stay_away(few, lenet5, method, how, sparsities) -> None:
    done = train(lenet5, few[0], QUICK, test=few[1], method=method, **how)
    assert [row.weight_sparsity for row in done.history] == pytest.approx(sparsities, abs=0.005)
    weights = done.pruning.summary.weights
    assert weights.left == weights.total - round(how["sparsity"] * weights.total)
    summary = done.pruning.summary
    assert summary.after.weights <= weights.left
    assert all(summary.proofs)
    # nodes on no path go with the last event, not after training
    assert done.history[-1].macs == summary.after.macs
    assert done.history[-1].test_accuracy == done.quality.accuracy
    assert [row.macs for row in done.history] == [(summary.before if s < 0.9 else summary.after).macs for s in sparsities]
    assert (summary.after.macs < summary.before.macs) == (weights.dead > 0)
    assert weights.dead or not method.startswith("snip")


def test_dead_nodes_behind_padding_stay_and_are_trained_with(few) -> None:
    """What they say is not the same at the border, so that no bias can say it for them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    how = {"method": "magnitude", "unit": "weight", "scope": "layer", "sparsity": 0.93, "stage": "after", "prune_at": 2}
    done = train(model, few[0], QUICK, test=few[1], **how)
    assert bool((done.model[0].weight == 0).flatten(1).all(1).any())
    assert done.history[-1].test_accuracy == done.quality.accuracy
    again = evaluate(done.model, Objective([(few[1].inputs, few[1].targets)]))
    assert again.accuracy == done.quality.accuracy


def test_a_penalty_that_comes_too_late_is_said(few, lenet5) -> None:
    for stage, says in (("before", True), ("after", False)):
        done = train(lenet5, few[0], QUICK, method="hoyer-square", sparsity=0.5, stage=stage)
        assert any("nothing was added" in note for note in done.pruning.summary.notes) is says
        assert any(row.penalty > 0 for row in done.history) is not says


def test_pruning_before_training_is_what_compress_does(few, lenet5) -> None:
    plain = Columns(*few[0].__dict__.values())
    done = train(lenet5, plain, dataclasses.replace(QUICK, epochs=1), method="snapit", sparsity=0.8, steps=1)
    from compressor.data import Rows

    alone = compress(lenet5, "snapit", Rows(plain, 2560, 64, 0), 0.8, steps=1)
    assert done.pruning.plan.kept.keys() == alone.plan.kept.keys()
    assert all(torch.equal(done.pruning.plan.kept[name], alone.plan.kept[name]) for name in alone.plan.kept)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone(few, lenet5) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, two = (
        train(lenet5, few[0], QUICK, method="snapit", sparsity=0.5, stage="during", interval=1, steps=0, seed=s) for s in (3, 3)
    )
    assert torch.equal(torch.rand(3), wanted)
    assert same_state(one.model, two.model)
    other = train(lenet5, few[0], QUICK, method="snapit", sparsity=0.5, stage="during", interval=1, steps=0, seed=4)
    assert not same_state(one.model, other.model)


RUNS = {
    "plain": {},
    "before": {"method": "snapit", "sparsity": 0.6, "steps": 0},
    "during": {"method": "snapit", "sparsity": 0.6, "steps": 0, "stage": "during", "interval": 1},
    "by sensitivity": {
        "method": "snapit",
        "sparsity": 0.6,
        "steps": 1,
        "stage": "during",
        "interval": 1,
        "allocate": "sensitivity",
    },
    "after": {"method": "l1-filters", "sparsity": 0.5, "prune_at": 2},
    "weights": {"method": "snipit", "sparsity": 0.9, "steps": 0, "stage": "during", "interval": 1},
    "rewound": {"method": "imp", "sparsity": 0.9, "steps": 2, "interval": 1},
}


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "stop"), [*((name, 3) for name in RUNS), ("during", 1), ("by sensitivity", 1), ("weights", 1), ("rewound", 1)]
)
def test_a_run_that_stopped_goes_on_to_the_same_weights(few, lenet5, tmp_path, name, stop) -> None:
    how = {"test": few[1], "folder": tmp_path / "run", **RUNS[name]}
    whole = train(lenet5, few[0], QUICK, **{**how, "folder": tmp_path / "whole"})

    def stopping(row) -> None:
        if row.epoch == stop + 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(lenet5, few[0], QUICK, on_epoch=stopping, **how)
    assert [row.epoch for row in read_history(tmp_path / "run" / "history.csv")] == list(range(1, stop + 1))
    with pytest.raises(BadInput, match=f"did {stop} of 4 epochs; resume=True goes on with it"):
        train(lenet5, few[0], QUICK, **how)
    seen: list[int] = []
    resumed = train(lenet5, few[0], QUICK, resume=True, on_epoch=lambda row: seen.append(row.epoch), **how)
    assert seen == list(range(stop + 1, 5))
    assert same_state(whole.model, resumed.model)
    assert whole.macs == resumed.macs
    assert [row.train_loss for row in whole.history] == [row.train_loss for row in resumed.history]
    if whole.pruning is not None:
        assert whole.pruning.plan == resumed.pruning.plan
        assert [bool(p) for p in resumed.pruning.summary.proofs] == [True] * 4


def test_a_finished_run_may_have_more_epochs(few, lenet5, tmp_path) -> None:
    how = {"folder": tmp_path / "run", "method": "snapit", "sparsity": 0.5, "steps": 0}
    train(lenet5, few[0], dataclasses.replace(QUICK, epochs=2), **how)
    longer = train(lenet5, few[0], QUICK, resume=True, **how)
    whole = train(lenet5, few[0], QUICK, **{**how, "folder": None})
    assert same_state(longer.model, whole.model)


def test_a_run_goes_on_with_the_same_configuration_only(few, lenet5, tmp_path) -> None:
    how = {"folder": tmp_path / "run", "method": "snapit", "sparsity": 0.5, "steps": 0}
    train(lenet5, few[0], dataclasses.replace(QUICK, epochs=1), **how)
    changed = {
        "was made with lr 0.002, now it is 0.001": ({}, dataclasses.replace(QUICK, lr=0.001), few[0], lenet5),
        "was made with sparsity 0.5, now it is 0.6": ({"sparsity": 0.6}, QUICK, few[0], lenet5),
        "was made with method snapit, now it is snap": ({"method": "snap"}, QUICK, few[0], lenet5),
        "was made with seed 0, now it is 1": ({"seed": 1}, QUICK, few[0], lenet5),
        "the data changed since": ({}, QUICK, Columns(few[0].inputs[1:], few[0].targets[1:]), lenet5),
        "was made with weights": ({}, QUICK, few[0], networks.build("lenet5", data="digits", seed=1)),
        "was made with floor 1, now it is 2": ({"floor": 2}, QUICK, few[0], lenet5),
        "was made with scope global, now it is layer": ({"scope": "layer"}, QUICK, few[0], lenet5),
    }
    for words, (more, recipe, data, model) in changed.items():
        arguments = {**how, **more}
        if arguments["method"] == "snap":
            arguments.pop("steps")
        with pytest.raises(BadInput, match=words):
            train(model, data, recipe, resume=True, **arguments)


def test_saying_what_is_so_anyway_is_the_same_configuration(few, lenet5, tmp_path) -> None:
    """The command line says all, a sweep what its file says: one goes on with the other's run."""
    how = {"method": "snapit", "sparsity": 0.5, "steps": 0}
    said = {**how, "floor": 1, "freeze": (), "ablation": None, "scope": "global", "gate": "read"}
    whole = train(lenet5, few[0], dataclasses.replace(QUICK, epochs=2), **how)
    for number, (first, then) in enumerate(((how, said), (said, how))):
        folder = tmp_path / str(number)
        train(lenet5, few[0], dataclasses.replace(QUICK, epochs=1), folder=folder, **first)
        longer = train(lenet5, few[0], dataclasses.replace(QUICK, epochs=2), folder=folder, resume=True, **then)
        assert same_state(longer.model, whole.model)


def test_a_loss_that_is_no_number_leaves_the_last_good_epoch(few, lenet5, tmp_path) -> None:
    with pytest.raises(Diverged, match=r"epoch \d, step \d+: the (loss is (nan|inf)|weights are not finite)"):
        train(lenet5, few[0], Recipe(epochs=9, batch_size=64, optimizer="sgd", lr=50.0, clip=0.0), folder=tmp_path / "run")
    if (tmp_path / "run" / "state.pt").exists():
        held = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
        assert all(bool(torch.isfinite(t).all()) for t in held["content"]["model"].values())


def test_a_damaged_state_is_refused_and_kept(few, lenet5, tmp_path) -> None:
    train(lenet5, few[0], dataclasses.replace(QUICK, epochs=1), folder=tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    content = state.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no state at all"):
        state.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"state\.pt: damaged"):
            train(lenet5, few[0], QUICK, folder=tmp_path / "run", resume=True)
        assert state.read_bytes() == damaged


def test_what_cannot_be_trained_is_refused(few, lenet5, tmp_path) -> None:
    with pytest.raises(BadInput, match="an iterator gives its batches once"):
        train(lenet5, iter([(few[0].inputs, few[0].targets)]), QUICK)
    with pytest.raises(WrongUsage, match="ablation='shuffle' draws anew at one event"):
        train(lenet5, few[0], QUICK, method="snapit", steps=0, stage="during", interval=1, ablation="shuffle")
    with pytest.raises(WrongUsage, match="rewind=2: the first event comes at epoch 1"):
        train(lenet5, few[0], QUICK, method="imp", steps=1, interval=1, rewind=2)
    with pytest.raises(BadInput, match="does not exist; make it first"):
        train(lenet5, few[0], QUICK, folder=tmp_path / "none" / "run")


@pytest.mark.parametrize("rewind", [0, 1])
def test_a_rewind_brings_the_early_weights_back(few, lenet5, rewind) -> None:
    """After the only event, before any further training, what is left has the values of that epoch."""
    recipe = dataclasses.replace(QUICK, epochs=rewind)
    early = train(lenet5, few[0], recipe).model.state_dict() if rewind else lenet5.state_dict()
    held = {}

    def look(what: str, *_: int) -> None:
        held["what"] = what

    still = Recipe(epochs=3, batch_size=64, lr=2e-3)
    from compressor.pruning.in_training import InTraining

    seen = {}
    original = InTraining.before

    def before(self, epoch, trainer):
        macs = original(self, epoch, trainer)
        if epoch == 2:
            seen.update({name: t.clone() for name, t in trainer.model.state_dict().items()})
            seen["kept"] = dict(self.state.kept)
        return macs

    InTraining.before = before
    try:
        train(lenet5, few[0], still, method="imp", steps=1, interval=2, rewind=rewind, sparsity=0.7, progress=look)
    finally:
        InTraining.before = original
    for name, mask in seen["kept"].items():
        assert torch.equal(seen[name], torch.where(mask, early[name], torch.zeros(())))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_gpu_goes_on_too(few, lenet5, tmp_path, name) -> None:
    model, how = copy.deepcopy(lenet5).cuda(), {"test": few[1], "folder": tmp_path / "run", **RUNS[name]}
    train(model, few[0], dataclasses.replace(QUICK, epochs=3 if name != "after" else 4), **how)
    done = train(model, few[0], QUICK, resume=True, **how)
    assert len(done.history) == 4
    assert next(done.model.parameters()).is_cuda
    assert done.pruning is None or all(done.pruning.summary.proofs)


def test_progress_says_how_far_and_how_long(few, lenet5) -> None:
    said: list[tuple[str, int, int]] = []
    train(lenet5, few[0], QUICK, test=few[1], method="snip", sparsity=0.9, progress=lambda *what: said.append(what))
    texts = [text for text, _, _ in said if text.startswith("epoch 2 of 4")]
    pattern = r"epoch 2 of 4, loss \d\.\d{3}, test accuracy \d+\.\d%, sparsity 0\.9\d\d, \d+ s left"
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert [(done, of) for text, done, of in said if text in texts] == [(1, 3), (2, 3), (3, 3)]


def test_masked_weights_of_an_earlier_pruning_stay_zero(few, lenet5) -> None:
    masked = compress(lenet5, "magnitude", None, 0.9, unit="weight", example_inputs=few[0].inputs[:4]).model
    tuned = train(masked, few[0], QUICK).model
    for (name, before), after in zip(masked.named_parameters(), tuned.parameters(), strict=True):
        if before.dim() > 1:
            assert torch.equal(before != 0, after != 0), name


@pytest.mark.parametrize("method", [None, "random"])
def test_a_node_masked_before_says_the_same_in_eval_mode_as_in_training(method) -> None:
    """Its norm's shift, also where it cannot go: behind it a convolution pads its constant with zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(512, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[0].bias.add_(1)
        model[0].weight[2] = 0
    data = [(torch.randn(16, 1, 8, 8), torch.randint(2, (16,))) for _ in range(20)]
    how = {} if method is None else {"method": method, "sparsity": 0.5, "only": ["3"]}
    tuned = train(model, data, Recipe(epochs=5, lr=0.01, weight_decay=1e-4), **how).model
    assert not tuned[0].weight[2].any()
    assert (tuned[0].bias[2] - model[0].bias[2]).abs() > 0.01
    shift = tuned[1].bias[2].detach().expand(16, 8, 8)
    torch.testing.assert_close(tuned.eval()[:2](data[0][0])[:, 2], shift)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.back, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.last((x + self.back(self.inner(x).relu())).mean((2, 3)))


def test_a_weight_that_was_masked_whole_stays_zero_and_a_fresh_one_does_not() -> None:
    torch.manual_seed(0)
    model = Residual()
    data = [(torch.randn(8, 1, 8, 8), torch.randint(2, (8,))) for _ in range(3)]
    with torch.no_grad():
        model.back.weight.zero_()
    once = Recipe(epochs=1, lr=0.01)
    assert train(model, data, once).model.back.weight.any()
    small = compress(model, "magnitude", None, 0.5, unit="weight", example_inputs=data[0][0]).model
    assert not small.back.weight.any()
    tuned = train(small, data, once).model
    assert not tuned.back.weight.any()
    assert not torch.equal(tuned.last.weight, small.last.weight)


def test_what_is_odd_about_a_training_is_said(few, lenet5) -> None:
    """Weights that stay zero, and events that nothing comes after."""
    masked = compress(lenet5, "magnitude", None, 0.9, unit="weight", example_inputs=few[0].inputs[:4]).model
    gone = sum(int((p == 0).sum()) for p in masked.parameters() if p.dim() > 1)
    once = dataclasses.replace(QUICK, epochs=1)
    assert train(masked, few[0], once).notes == (f"{gone:,} weights that came as zeros, as masked ones do, stayed zero.",)
    with pytest.raises(WrongUsage, match="belong to its plan"):
        train(masked, few[0], once, keep_zeros=False)
    [note] = train(lenet5, few[0], once, method="l1-filters", sparsity=0.3, stage="after").notes
    assert note.startswith("The last event came after the last epoch")
    assert train(lenet5, few[0], QUICK, method="l1-filters", sparsity=0.3, stage="after").notes == ()


def test_more_epochs_move_no_event_of_a_run(few, lenet5, tmp_path) -> None:
    how = {"method": "l1-filters", "sparsity": 0.3, "stage": "after", "folder": tmp_path / "run", "resume": True}
    train(lenet5, few[0], QUICK, **how)
    more = dataclasses.replace(QUICK, epochs=16)
    with pytest.raises(BadInput, match=r"its events come before epoch 3, with these epochs before 14; .*prune_at='3'$"):
        train(lenet5, few[0], more, **how)


def test_imp_before_training_rewinds_nothing(few, lenet5) -> None:
    done = train(lenet5, few[0], dataclasses.replace(QUICK, epochs=1), method="imp", stage="before", sparsity=0.9)
    assert done.history[0].weight_sparsity == pytest.approx(0.9, abs=0.001)
    assert any("imp rewinds nothing" in note for note in done.pruning.summary.notes)


@pytest.mark.parametrize("kind", ["list", "loader", "unsteady"])
def test_a_run_goes_on_with_the_same_batches_only(few, lenet5, tmp_path, kind) -> None:
    """Of what is not in memory the first batch is looked at, unless it is another each time."""
    pairs = list(zip(few[0].inputs[:64].split(16), few[0].targets[:64].split(16), strict=True))

    class Unsteady(list):
        def __iter__(self):
            return iter([(x + torch.empty(1).normal_(generator=own), y) for x, y in pairs])

    own = torch.Generator()
    samples = [(x, y) for xs, ys in pairs for x, y in zip(xs, ys, strict=True)]
    data = {"list": pairs, "loader": torch.utils.data.DataLoader(samples, 16, shuffle=True), "unsteady": Unsteady(pairs)}[kind]
    once = dataclasses.replace(QUICK, epochs=1)
    how = {"folder": tmp_path / "run", "test": few[1], "resume": True}
    train(lenet5, data, once, **how)
    assert len(train(lenet5, data, dataclasses.replace(once, epochs=2), **how).history) == 2
    other = [(x * 5, y) for x, y in pairs]
    if kind == "list":
        with pytest.raises(BadInput, match="the data changed since"):
            train(lenet5, other, dataclasses.replace(once, epochs=3), **how)
        changed = Columns(few[1].inputs * 2, few[1].targets)
        with pytest.raises(BadInput, match="was made with test data"):
            train(lenet5, data, dataclasses.replace(once, epochs=3), **how | {"test": changed})


def test_a_run_goes_on_with_the_same_loss_and_as_many_batches_only(few, lenet5, tmp_path) -> None:
    pairs = list(zip(few[0].inputs[:64].split(16), few[0].targets[:64].split(16), strict=True))
    once, twice = (dataclasses.replace(QUICK, epochs=epochs) for epochs in (1, 2))

    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1], label_smoothing=0.1)

    def changed(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1], label_smoothing=0.4)

    changed.__name__ = "loss"
    how = {"folder": tmp_path / "run", "resume": True}
    train(lenet5, pairs, once, loss=loss, **how)
    with pytest.raises(BadInput, match="was made with loss loss "):
        train(lenet5, pairs, twice, loss=changed, **how)
    with pytest.raises(BadInput, match="the data changed since"):
        train(lenet5, pairs[:3], twice, loss=loss, **how)
    assert len(train(lenet5, pairs, twice, loss=loss, **how).history) == 2


def test_a_damaged_state_stops_no_run_that_begins_anew(few, lenet5, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(b"")
    once = dataclasses.replace(QUICK, epochs=1)
    with pytest.raises(BadInput, match="damaged"):
        train(lenet5, few[0], once, folder=tmp_path / "run", resume=True)
    train(lenet5, few[0], once, folder=tmp_path / "run")
    assert len(train(lenet5, few[0], QUICK, folder=tmp_path / "run", resume=True).history) == 4


@pytest.mark.parametrize("name", ["lenet5", pytest.param("conv6", marks=pytest.mark.slow)])
def test_fresh_weights_after_weights_went(few, name) -> None:
    model = networks.build(name, in_channels=1, image_size=28, data="digits")
    once = dataclasses.replace(QUICK, epochs=1)
    done = train(model, few[0], once, method="snip", sparsity=0.5, ablation="reinit")
    assert done.pruning.summary.weight_sparsity >= 0.5


def test_notes_are_true_of_a_network_that_is_trained_first(few, lenet5) -> None:
    before = train(lenet5, few[0], QUICK, method="snapit", sparsity=0.3).pruning.summary.notes
    after = train(lenet5, few[0], QUICK, method="snapit", sparsity=0.3, stage="after").pruning.summary.notes
    assert any("never saw data" in note for note in before)
    assert not any("never saw data" in note for note in after)
    free = train(lenet5, few[0], QUICK, method="l1-filters", sparsity=0.3, stage="after").pruning.summary.notes
    assert not any("need no data" in note for note in free)


def test_an_interval_is_for_events_during_training(few, lenet5) -> None:
    with pytest.raises(WrongUsage, match="interval is for stage='during', the stage is before"):
        train(lenet5, few[0], QUICK, method="snapit", sparsity=0.3, interval=2)
    with pytest.raises(WrongUsage, match=r"give more epochs, or fewer of the method's steps"):
        train(lenet5, few[0], QUICK, method="snapit", sparsity=0.3, stage="during", interval=1)


def test_data_that_are_no_numbers_are_to_blame(few, lenet5) -> None:
    inputs = few[0].inputs.clone()
    inputs[100] = torch.nan
    with pytest.raises(BadInput, match="the data holds NaN or infinite values"):
        train(lenet5, Columns(inputs, few[0].targets), QUICK)


def test_time_left_is_told_of_data_of_unknown_length(few, lenet5) -> None:
    class Endless:
        def __iter__(self):
            return iter([(few[0].inputs[:16], few[0].targets[:16])] * 3)

    said = []
    train(lenet5, Endless(), dataclasses.replace(QUICK, epochs=2), progress=lambda *parts: said.append(parts[0]))
    assert [text for text in said if text.startswith("epoch 2 of 2")]
    assert not any(" -" in text for text in said)


def test_batches_of_one_sample_are_trained_on(few) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    done = train(model, Columns(few[0].inputs[:20], few[0].targets[:20]), Recipe(epochs=1, batch_size=1))
    assert done.history[0].steps == 20


def test_weights_that_are_no_numbers_are_not_kept(few, lenet5, tmp_path) -> None:
    how = {"folder": tmp_path / "run"}
    train(lenet5, few[0], dataclasses.replace(QUICK, epochs=1), **how)
    before = (tmp_path / "run" / "state.pt").read_bytes()
    held = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert held["epoch"] == 1
    one = Columns(few[0].inputs[:64], few[0].targets[:64])
    with pytest.raises(Diverged, match="epoch 1, step 1: the weights are not finite"):
        train(lenet5, one, Recipe(epochs=1, batch_size=64, lr=1e38, clip=0.0), folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_what_means_nothing_is_refused(few, lenet5, tmp_path) -> None:
    wrong = {
        "budgett is for pruning: name a method": {"budgett": 3},
        "stage is for pruning: name a method": {"stage": "after"},
        "stage='befor': choose before, during, after": {"method": "snapit", "stage": "befor"},
        "interval=0: must be a whole number, at least 1": {"method": "snapit", "stage": "during", "interval": 0},
        "ablation='suffle': choose shuffle": {"method": "snapit", "ablation": "suffle"},
        "not with stage='during'": {"method": "snapit", "steps": 0, "stage": "during", "interval": 1, "round_to": 4},
        "steps='5': must be a whole number": {"method": "snapit", "steps": "5"},
    }
    for words, how in wrong.items():
        with pytest.raises(WrongUsage, match=words):
            train(lenet5, few[0], QUICK, **how)
    train(lenet5, few[0], dataclasses.replace(QUICK, epochs=2), folder=tmp_path / "run")
    with pytest.raises(BadInput, match="did 2 epochs already, 1 were asked for"):
        train(lenet5, few[0], dataclasses.replace(QUICK, epochs=1), folder=tmp_path / "run", resume=True)
    with pytest.raises(BadInput, match="was made with loss cross-entropy, now it is nll-logits"):
        train(lenet5, few[0], QUICK, folder=tmp_path / "run", resume=True, loss="nll-logits")
