"""What a network is, fresh or trained, and what is chosen for it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from compressor import compress, networks, train
from compressor.data import Columns
from compressor.errors import UnsupportedNetwork
from compressor.method import best_for
from compressor.model.origin import origin_of, set_origin
from compressor.objective.objective import Quality
from compressor.pruning.choice import state_of
from compressor.training.recipe import Recipe


def columns(count: int = 256) -> Columns:
    """Images whose brightest quarter is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    for n, label in enumerate(labels.tolist()):
        x[n, :, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2
    return Columns(x, labels)


class Normed(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24)]
        super().__init__(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 4))


class Bare(nn.Sequential):
    """Without any norm: its weights alone tell."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def trained(model: nn.Module, epochs: int = 15) -> nn.Module:
    recipe = Recipe(epochs=epochs, batch_size=32, flip=0.0)
    done = train(model, columns(), recipe).model
    done.__dict__.pop("origin")  # as if it had been trained elsewhere
    return done


@pytest.mark.parametrize("name", ["lenet5", "lenet300100", "mlp5", "gru_s", "squeezenet", "resnet20"])
def test_networks_as_they_are_built_are_fresh(name: str) -> None:
    assert state_of(networks.build(name), None).state == "fresh"


@pytest.mark.parametrize("maker", [Normed, Bare, lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 4))])
def test_networks_trained_elsewhere_are_recognised(maker) -> None:
    torch.manual_seed(0)
    assert state_of(maker(), None).state == "fresh"
    assert state_of(trained(maker()), None).state == "trained"


def test_each_sign_counts_and_the_users_word_most() -> None:
    model = Normed()
    assert state_of(model, None).why == "for its batch norms never saw data"
    assert state_of(model, "trained").state == "trained"
    normed = trained(model)
    assert state_of(normed, "fresh").state == "fresh"
    assert "batch norms have seen data" in state_of(normed, None).why
    for norm in (normed[1], normed[4]):
        norm.reset_running_stats()
    assert "scales of its norms differ" in state_of(normed, None).why
    bare = Bare()
    right = Quality(0.1, 0.9, 100, 4)
    assert "accuracy is 90.0%" in state_of(bare, None, lambda: right).why
    assert state_of(bare, None, lambda: dataclasses.replace(right, accuracy=0.3)).state == "fresh"


def test_a_training_is_remembered_with_the_network(tmp_path) -> None:
    from compressor import load, save

    model = networks.build("lenet300100", in_channels=1, classes=4, image_size=8)
    origin = origin_of(model)
    assert origin is not None
    data = Columns(columns().inputs[:, :1], columns().targets)
    done = train(model, data, Recipe(epochs=1, batch_size=64)).model
    save(done, tmp_path / "a.pt")
    assert state_of(load(tmp_path / "a.pt"), None).why == "as its checkpoint says"
    set_origin(model, dataclasses.replace(origin, trained=False))
    save(model, tmp_path / "b.pt")
    assert state_of(load(tmp_path / "b.pt"), None).why == "as its checkpoint says"
    assert state_of(load(tmp_path / "b.pt"), None).state == "fresh"


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = columns()
    return [(data.inputs[n : n + 32], data.targets[n : n + 32]) for n in range(0, 256, 32)]


def test_a_trained_network_is_pruned_and_repaired_without_being_asked() -> None:
    model = trained(Normed())
    result = compress(model, data=batches(), target_macs=0.1)
    assert result.summary.method == best_for("trained", data=True)
    assert result.summary.repair is not None
    assert result.summary.repair.kept.startswith("least squares")
    assert result.summary.notes[0].startswith("The network is trained, for its batch norms have seen data")
    before = next(proof for proof in result.summary.proofs if proof.kind == "weights")
    assert before.what.endswith("when they were cut; repaired since")
    x = columns().inputs
    away = [float((m.eval()(x) - model.eval()(x)).detach().square().mean()) for m in (result.pruned, result.model)]
    assert away[1] < away[0] / 2
    none = compress(model, data=batches(), target_macs=0.5, repair="none")
    assert none.summary.repair is None


def test_a_fresh_network_goes_as_it_always_did() -> None:
    model = Normed()
    chosen = compress(copy.deepcopy(model), data=batches(), sparsity=0.5)
    named = compress(model, "snapit", batches(), 0.5)
    assert chosen.plan.kept.keys() == named.plan.kept.keys()
    assert all(torch.equal(chosen.plan.kept[g], named.plan.kept[g]) for g in named.plan.kept)
    assert chosen.summary.repair is None
    assert chosen.summary.notes[0].startswith("The network is fresh")


def test_a_method_for_another_state_says_so() -> None:
    on_trained = compress(trained(Normed()), "snapit", batches(), 0.5)
    assert any("snapit is for networks before training, and this one is trained" in n for n in on_trained.summary.notes)
    on_fresh = compress(Normed(), "l1-filters", batches(), 0.5)
    assert any("l1-filters is for trained networks, and this one is fresh" in n for n in on_fresh.summary.notes)
    said = compress(Normed(), "l1-filters", batches(), 0.5, state="trained")
    assert not any("this one is fresh" in n for n in said.summary.notes)


class Dropping(Bare):
    """Its forward pass is random also in eval mode."""

    def forward(self, x):
        return super().forward(x + 1e-1 * torch.randn_like(x))


def test_a_repair_that_nobody_asked_for_ends_nothing() -> None:
    model = Dropping()
    model.load_state_dict(trained(Bare()).state_dict())
    result = compress(model, "l1-filters", batches(), 0.3, repair="none")
    assert result.summary.repair is None
    with pytest.raises(UnsupportedNetwork, match="forward pass is random"):
        compress(model, "l1-filters", batches(), 0.3, repair="least-squares")


def test_masked_zeros_stay() -> None:
    masked = compress(trained(Normed()), "magnitude", None, 0.5, unit="weight", example_inputs=columns().inputs[:16]).model
    result = compress(masked, data=batches(), sparsity=0.3, state="trained")
    assert result.summary.repair is not None
    assert "masked" in result.summary.repair.why
    for name, weight in result.model.named_parameters():
        if weight.dim() > 1:
            assert bool((weight == 0).any()), name


def test_fresh_weights_are_not_repaired() -> None:
    result = compress(trained(Normed()), data=batches(), sparsity=0.3, ablation="reinit")
    assert result.summary.repair is None


def test_too_few_rows_for_a_layer_are_said() -> None:
    few = batches()[:2]
    result = compress(trained(Bare()), data=few, sparsity=0.3)
    assert any("fewer rows than they have columns: 1." in n for n in result.summary.notes)
    assert not any("fewer rows" in n for n in compress(trained(Normed()), data=batches(), sparsity=0.3).summary.notes)


def test_labels_are_not_needed() -> None:
    for maker in (Normed, Bare):
        result = compress(trained(maker()), data=[x for x, _ in batches()], sparsity=0.3)
        assert result.summary.repair is not None
        assert result.summary.repair.kept.startswith("least squares")
        assert result.summary.repair.samples == 256


def test_batches_of_ones_own_form_are_repaired_on_by_their_forward_pass() -> None:
    data = [{"pixels": x, "label": y} for x, y in batches()]
    result = compress(
        trained(Normed()), data=data, sparsity=0.3, forward=lambda model, batch: model(batch["pixels"]),
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch["label"]), example_inputs=data[0]["pixels"],
    )  # fmt: skip
    assert result.summary.repair is not None
    assert result.summary.repair.samples == 256


def test_without_data_random_inputs_repair_and_that_is_said() -> None:
    model = trained(Normed())
    result = compress(model, data=None, sparsity=0.3, example_inputs=columns().inputs[:16])
    assert result.summary.repair is not None
    assert result.summary.repair.noise
    assert result.summary.method == best_for("trained", data=False) == "l1-filters"
    assert any("the repair saw random inputs" in n for n in result.summary.notes)


def test_single_weights_make_nothing_faster_and_that_is_said() -> None:
    nodes = compress(trained(Normed()), "magnitude", None, 0.5, example_inputs=columns().inputs[:16])
    assert nodes.summary.after.macs < nodes.summary.before.macs, "nodes are what goes by default"
    weights = compress(trained(Normed()), "magnitude", None, 0.5, example_inputs=columns().inputs[:16], unit="weight")
    assert any("nothing gets faster by that alone; unit='node' removes whole nodes" in n for n in weights.summary.notes)
