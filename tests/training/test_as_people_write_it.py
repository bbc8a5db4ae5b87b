"""Training of networks, data and losses as other people write them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from compressor import Recipe, compress, train
from compressor.data import Columns
from compressor.errors import BadInput, WrongUsage
from compressor.objective.losses import mse
from compressor.objective.objective import Objective, evaluate
from compressor.sources.training import training_data_for
from compressor.system.user_code import object_named
from compressor.training.trainer import Trainer

ONCE = Recipe(epochs=1, lr=0.01)


class Tutorial(nn.Module):
    """As torch's first tutorial has it: `view` flattens what comes out of a convolution."""

    def __init__(self, volume: bool = False) -> None:
        super().__init__()
        self.volume = volume
        self.first: nn.Module = nn.Conv3d(1, 6, 3, padding=1) if volume else nn.Conv2d(3, 6, 3, padding=1)
        self.hidden, self.last = nn.Linear(6 * 3 * 64 if volume else 6 * 16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.volume:
            return self.last(self.hidden(self.first(x[:, None]).relu().flatten(1)).relu())
        return self.last(self.hidden(F.max_pool2d(self.first(x).relu(), 2).view(-1, 6 * 16)).relu())


def images(samples: int = 16) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(samples, 3, 8, 8), torch.randint(4, (samples,))) for _ in range(3)]


@pytest.mark.parametrize("volume", [False, True])
def test_a_network_that_takes_no_channels_last_is_trained_in_the_default_layout(volume: bool) -> None:
    data = images()
    assert train(Tutorial(volume), data, ONCE).history[0].steps == 3
    pruned = train(Tutorial(volume), data, ONCE, method="snap", sparsity=0.25)
    assert pruned.pruning.summary.reached >= 0.25


def test_a_network_that_flattens_with_view_is_scored_as_one_that_flattens() -> None:
    """In the layout that its convolutions would like, `view` cannot do it."""

    class Flattened(Tutorial):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.hidden(F.max_pool2d(self.first(x).relu(), 2).flatten(1)).relu())

    torch.manual_seed(0)
    viewed, flattened = Tutorial(), Flattened()
    flattened.load_state_dict(viewed.state_dict())
    plans = [compress(model, "snap", images(), 0.5, only=["hidden"]).plan.kept for model in (viewed, flattened)]
    assert all(torch.equal(plans[0][name], plans[1][name]) for name in plans[0])


def test_a_batch_keeps_its_form() -> None:
    """A forward pass and a loss of one's own may look into it."""
    data = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))
    how = {"forward": lambda network, batch: network(batch[0]), "example_inputs": data[0][0]}
    plain, own = (train(model, data, ONCE, test=data, **given) for given in ({}, how))
    assert plain.history[0].test_loss == own.history[0].test_loss
    assert compress(model.half(), "snap", data, 0.5, **how).summary.reached == 0.5
    coder, bare = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 10)), [torch.randn(8, 10) for _ in range(3)]
    trained = train(coder, bare, ONCE, test=bare, loss=lambda outputs, batch: F.mse_loss(outputs, batch))
    with torch.no_grad():
        mean = sum(float(F.mse_loss(trained.model(x), x)) for x in bare) / 3
    assert trained.quality.loss == pytest.approx(mean)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.one, self.two = nn.Embedding(24, 12), nn.Linear(12, 32), nn.Linear(32, 12)
        self.head = nn.Linear(12, 24, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.embedding(x).mean(1)).relu()))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_shared_weights_stay_masked_and_their_moments_go_with_the_nodes(optimizer: str, monkeypatch) -> None:
    torch.manual_seed(0)
    data = [(torch.randint(24, (16, 5)), torch.randint(24, (16,))) for _ in range(4)]
    recipe = Recipe(epochs=4, lr=0.01, optimizer=optimizer)
    masked = train(Tied(), data, recipe, method="magnitude", unit="weight", sparsity=0.6, stage="after", prune_at=2)
    mask = masked.pruning.plan.masks["head.weight"].tensor()
    assert 0 < int(mask.sum()) < mask.numel()
    assert not masked.model.head.weight[~mask].any()
    shapes: list[tuple[torch.Size, torch.Size]] = []
    adopt = Trainer.adopt

    def watched(self, model, moments) -> None:
        weights = dict(model.named_parameters())
        shapes.extend(
            (value.shape, weights[name].shape) for name, of in moments.items() for value in of.values() if value.dim()
        )
        adopt(self, model, moments)

    monkeypatch.setattr(Trainer, "adopt", watched)
    small = train(Tied(), data, recipe, method="snap", sparsity=0.2, stage="after", prune_at=2, only=["two"]).model
    assert small.embedding.weight is small.head.weight
    assert small.head.weight.shape[1] < 12
    assert shapes
    assert all(moment == weight for moment, weight in shapes)


class Noisy(Dataset):
    """Images that numpy disturbs, as libraries for augmentation do."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((8,), float(index % 7)) + 0.1 * float(np.random.randn()), index % 3


class Scaled(nn.Module):
    """Has a buffer that checkpoints leave out, and that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * x.detach().abs().max()
        return self.inner(x / self.scale)


class Half(nn.Module):
    """A body that was pruned, under a head that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.body.weight[:, ::2] = 0
            self.body.bias[:4] = -50  # dead at first
            self.head.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def own_loader() -> DataLoader:
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    own = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(x, torch.arange(48) % 3), batch_size=16, shuffle=True, generator=own)


@pytest.mark.parametrize(
    ("network", "loader"),
    [
        (Scaled, own_loader),
        (Half, own_loader),
        (Scaled, lambda: DataLoader(Noisy(), batch_size=16, shuffle=True)),
        (Scaled, lambda: DataLoader(Noisy(), batch_size=16, num_workers=1, persistent_workers=True)),
    ],
    ids=["own generator", "zero head", "numpy", "workers that live on"],
)
def test_a_run_goes_on_bit_by_bit_whatever_its_data_draw_from(network, loader, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, recipe = network(), Recipe(epochs=4, lr=0.01)

    def stopped(row) -> None:
        if row.epoch == 3:
            raise InterruptedError

    whole = train(model, loader(), recipe, folder=tmp_path / "whole").model.state_dict()
    with pytest.raises(InterruptedError):
        train(model, loader(), recipe, folder=tmp_path / "run", on_epoch=stopped)
    before = np.random.get_state()[1].tolist()
    again = train(model, loader(), recipe, folder=tmp_path / "run", resume=True).model.state_dict()
    assert np.random.get_state()[1].tolist() == before
    assert all(torch.equal(whole[name], again[name]) for name in whole)


OWN_DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset, random_split
calls = []
def data():
    calls.append(1)
    x = torch.cat([torch.arange(48.0)[:, None], 20 * torch.randn(48, 7, generator=torch.Generator().manual_seed(0))], 1)
    train, test = random_split(TensorDataset(x, torch.arange(48) % 3), [32, 16])
    own = torch.Generator().manual_seed(5)
    return {"train": DataLoader(train, batch_size=8, shuffle=True, generator=own), "test": DataLoader(test, batch_size=8)}
"""


def test_data_of_code_are_made_once(tmp_path: Path) -> None:
    """Made twice, a random split would put what was trained on into the report's test."""
    (tmp_path / "own.py").write_text(OWN_DATA)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    held = training_data_for(model, f"{tmp_path / 'own.py'}:data", count=16)
    assert len(object_named(f"{tmp_path / 'own.py'}:calls", "data")) == 1
    seen = [{int(x[0]) for batch, _ in part for x in batch} for part in (held.train, held.source.test, held.test)]
    assert seen[1] == seen[2]
    assert not seen[0] & seen[1]


def test_a_run_scores_the_same_samples_when_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_DATA.replace("random_split(TensorDataset(x, torch.arange(48) % 3), [32, 16])", (
        "[TensorDataset(x[a:b], torch.arange(48)[a:b] % 3) for a, b in ((0, 32), (32, 48))]"
    )))  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def trained(folder: str, **how) -> dict[str, Tensor]:
        held = training_data_for(model, f"{tmp_path / 'own.py'}:data", count=8, batch_size=8)
        return train(
            model, held.train, Recipe(epochs=4, lr=0.01), scoring=held.source.train, method="snipit", sparsity=0.6, steps=1,
            stage="during", interval=1, folder=tmp_path / folder, **how,
        ).model.state_dict()  # fmt: skip

    def stopped(row) -> None:
        if row.epoch == 3:  # epoch 2, and the event before it, are kept
            raise InterruptedError

    whole = trained("whole")
    with pytest.raises(InterruptedError):
        trained("run", on_epoch=stopped)
    again = trained("run", resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


class Endless(IterableDataset):
    """A stream: how long it is only reading it tells."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for number in range(48):
            yield torch.randn(8, generator=generator), number % 3


def test_a_loader_over_a_stream_has_no_length() -> None:
    loader = DataLoader(Endless(), batch_size=16)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    assert train(model, loader, ONCE, method="snap", sparsity=0.5).history[0].steps == 3
    assert compress(model, "snap", loader, 0.5).summary.reached == 0.5


def test_half_precision_does_not_round_the_targets_of_a_regression() -> None:
    outputs, target = torch.full((4, 1), 2000.0, dtype=torch.bfloat16), torch.full((4,), 2003.0)
    assert mse(outputs, (None, target)) == 9
    assert mse(outputs.double(), (None, target.double())).dtype == torch.float64


def test_accuracy_is_not_guessed() -> None:
    """Which part of a batch has the labels, only the loss knows; of ours, that is the second."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    three = [(x, torch.arange(len(y)), y) for x, y in images()]
    own = train(model, three, ONCE, test=three, loss=lambda outputs, batch: F.cross_entropy(outputs, batch[2]))
    assert own.history[0].train_accuracy is own.history[0].test_accuracy is None
    plain = [(x, y, len(y)) for x, y in images()]
    assert train(model, plain, ONCE, test=plain).history[0].test_accuracy is not None
    two = nn.ModuleDict({"body": nn.Linear(192, 8), "head": nn.Linear(8, 4)})
    two.forward = lambda x: ((h := two["body"](x.flatten(1))), two["head"](h))
    quality = evaluate(two, Objective(images(), lambda outputs, batch: F.cross_entropy(outputs[1], batch[1])))
    assert quality.accuracy is None, "the first output is no class"


class Named(NamedTuple):
    x: Tensor
    y: Tensor


def test_a_batch_with_names_keeps_them() -> None:
    data = [Named(*batch) for batch in images()]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))
    how = {"forward": lambda network, batch: network(batch.x), "loss": lambda outputs, batch: F.cross_entropy(outputs, batch.y)}
    trained = train(model, data, Recipe(epochs=1, flip=0.5), test=data, method="snap", sparsity=0.5, **how)
    assert trained.pruning.summary.reached == 0.5
    assert trained.history[0].test_loss is not None
    assert trained.history[0].test_accuracy is None, "what a loss of one's own takes for labels nobody knows"
    assert compress(model.half(), "snap", data, 0.5, **how).summary.reached == 0.5


LOSS = """
import functools, sys
import torch
from torch import nn
from compressor.training.fingerprint import loss_text
def weighted(*weights):
    held = torch.tensor(weights)
    def loss(outputs, batch): return nn.functional.cross_entropy(outputs, batch[1], held) if "x" in {"train", "val"} else 0
    return loss
class Smooth(nn.Module):
    def __init__(self, by): super().__init__(); self.by = nn.CrossEntropyLoss(label_smoothing=by)
    def forward(self, outputs, batch): return self.by(outputs, batch[1])
    def extra_repr(self): return str(self.by.label_smoothing)
def scaled(outputs, batch, by): return by * outputs.sum()
def itself(outputs, batch):
    def inner(n): return inner(n - 1) if n else outputs.sum()
    return inner(3)
losses = [weighted(1.0, 9.0), weighted(9.0, 1.0), Smooth(0.1), Smooth(0.2), functools.partial(scaled, by=1),
          functools.partial(scaled, by=2), itself]
print([loss_text(loss, loss) for loss in losses])
"""


def test_a_loss_of_ones_own_is_known_again_in_another_process(capsys) -> None:
    """By what it does and by what it holds, not by what Python's hashes are this time."""
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", LOSS], capture_output=True, text=True, check=True, env=environment)
    exec(compile(LOSS, "<string>", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert said == other.stdout
    texts = ast.literal_eval(said)
    assert len(set(texts)) == len(texts)


def test_a_run_of_a_newer_version_is_not_written_over(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    train(model, images(), ONCE, folder=tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    torch.save({**state, "schema": state["schema"] + 1}, tmp_path / "run" / "state.pt")
    with pytest.raises(BadInput, match="made by a newer version"):
        train(model, images(), ONCE, folder=tmp_path / "run")


def test_an_initialisation_with_zeros_can_be_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    nn.init.eye_(model[0].weight)
    data = [(torch.randn(16, 8), torch.randint(3, (16,)))]
    kept, free = (train(model, data, ONCE, keep_zeros=keep) for keep in (True, False))
    assert torch.count_nonzero(kept.model[0].weight) == 8
    assert "keep_zeros=False trains them" in kept.notes[0]
    assert torch.count_nonzero(free.model[0].weight) == 64
    assert free.notes == ()
    assert free.history[0].weight_sparsity == 0
    with pytest.raises(WrongUsage, match="without a method only"):
        train(model, data, ONCE, method="random", keep_zeros=False)


def test_the_generator_of_a_loader_is_left_as_it_was() -> None:
    data = own_loader()
    state = data.generator.get_state()
    train(Scaled(), data, ONCE)
    assert torch.equal(state, data.generator.get_state())


def test_a_recipe_that_there_is_not_is_refused() -> None:
    for wrong in ({"optimizer": "adamw"}, {"precision": "bf16"}, {"epochs": -1}):
        with pytest.raises(WrongUsage, match=next(iter(wrong))):
            Recipe(**wrong)


def test_sgd_trains_layers_that_only_some_steps_use() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.some, self.last, self.calls = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            x = self.first(x).relu()
            return self.last(x + self.some(x) if self.calls % 3 == 0 else x)

    torch.manual_seed(0)
    model, data = Skipping(), [(torch.randn(8, 8), torch.randint(3, (8,))) for _ in range(6)]
    small = train(model, data, Recipe(epochs=2, optimizer="sgd", lr=0.1)).model
    assert not torch.equal(small.some.weight, model.some.weight)


def test_statistics_do_not_come_from_a_sample_that_is_left_over_nor_from_the_callers_randomness() -> None:
    data = TensorDataset(torch.randn(33, 8), torch.randint(3, (33,)))
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loader = DataLoader(data, batch_size=16, shuffle=True)
        found.append(train(model, loader, ONCE, method="snap", sparsity=0.3, calibrate_bn=True).model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_images_of_a_sample_are_mirrored_and_moved_together() -> None:
    trainer = Trainer(Tutorial(), ONCE, Objective(()), flip=0.5, shift=2)
    x = torch.randn(32, 1, 8, 8)
    (one, two), target = trainer._augmented(((x, x.clone()), torch.arange(32)))
    assert torch.equal(one, two)
    assert not torch.equal(one, x)
    assert torch.equal(target, torch.arange(32))
    assert trainer._augmented(x).shape == x.shape
    with pytest.raises(WrongUsage, match="targets that are maps"):
        trainer._augmented((x, torch.zeros(32, 8, 8, dtype=torch.int64)))
    with pytest.raises(WrongUsage, match=r"batches of \(inputs, target\) only"):
        trainer._augmented({"image": x})


def test_a_causal_mask_is_no_broken_weight() -> None:
    class Causal(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.full((5, 5), value).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.mask.softmax(-1) @ self.inner(x).relu()).mean(1))

    data = [(torch.randn(8, 5, 8), torch.randint(3, (8,))) for _ in range(2)]
    assert compress(Causal(-torch.inf), "snap", data, 0.5).summary.reached == 0.5
    assert train(Causal(-torch.inf), data, ONCE).history[0].steps == 2
    with pytest.raises(BadInput, match="mask has NaN"):
        train(Causal(torch.nan), data, ONCE)


def test_weights_that_start_at_zero_are_weights() -> None:
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
        [(torch.randn(8, 8), torch.randint(3, (8,)))] * 3,
    )
    with torch.no_grad():
        model[2].weight.zero_()
    plain = train(model, data, ONCE)
    assert plain.history[0].weight_sparsity == pytest.approx(0, abs=0.2)
    pruned = train(model, data, Recipe(epochs=4), method="random", unit="weight", sparsity=0.5, stage="after", prune_at=2)
    assert [row.weight_sparsity >= 0 for row in pruned.history] == [True] * 4
    assert pruned.pruning.summary.weight_sparsity >= 0.5


def test_labels_that_are_ignored_are_no_misses() -> None:
    x = torch.randn(8, 4)
    y = torch.tensor([0, 1, -100, -100, 2, 0, -100, 1])
    model = nn.Linear(4, 3)
    found = evaluate(model, Objective([(x, y)]))
    assert found.accuracy == float((model(x).argmax(1) == y)[y >= 0].double().mean())
    assert train(model, [(x, y)], ONCE).history[0].train_accuracy == found.accuracy
    with pytest.raises(BadInput, match="all labels of a batch are -100"):
        train(model, [(x, torch.full((8,), -100))], ONCE)


def test_a_batch_norm_in_eval_mode_stays_frozen() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model[1].eval()
    trained = train(model, Columns(torch.randn(32, 8), torch.randint(3, (32,))), ONCE).model
    assert torch.equal(trained[1].running_mean, model[1].running_mean)
    assert not torch.equal(trained[4].running_mean, model[4].running_mean)
    assert [m.training for m in trained] == [m.training for m in model]


@pytest.mark.parametrize("method", ["imp", "hoyer-square"])
def test_what_was_masked_whole_stays_so_when_more_weights_go(method: str) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.back, self.last = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            return self.last(x + self.back(self.inner(x).relu()))

    torch.manual_seed(0)
    model, data = Residual(), [(torch.randn(8, 8), torch.randint(3, (8,))) for _ in range(3)]
    with torch.no_grad():
        model.back.weight.mul_(1e-6)
    small = compress(model, "magnitude", data, 0.4, unit="weight").model
    assert not small.back.weight.any()
    again = train(small, data, Recipe(epochs=3), method=method, sparsity=0.7, stage="after", prune_at=2)
    assert not again.model.back.weight.any()
    assert all(0 <= row.weight_sparsity < 1 for row in again.history)


def test_a_layer_of_width_one_is_no_position() -> None:
    model = nn.Sequential(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(0)
    found = compress(model, "magnitude", None, 0.4, unit="node", example_inputs=torch.randn(4, 8)).summary
    assert found.widths == {"0": (1, 1), "2": (8, 4)}
