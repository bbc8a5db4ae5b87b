"""What may be asked is declared once: flags, keywords and keys are the same, and so is what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from torch import nn

from compressor import compress, train
from compressor.benchmarks.experiments.sweep import COMMON, keys_of, read_sweep
from compressor.cli import cli
from compressor.errors import BadInput, CompressError, WrongUsage
from compressor.method import method_named
from compressor.options import names_of, options_of, speaking, spelled
from compressor.settings import (
    FLAGS,
    SHARED,
    Budget,
    Pruning,
    Timing,
    as_flag,
    as_key,
)
from compressor.training.recipe import Recipe

SWEEP = """
data = "digits"
networks = ["lenet5"]
methods = [{ method = "snapit", ENTRY }]
sparsities = [0.5]
"""


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(8, 1, 8, 8), torch.randint(4, (8,)))]


def parameters_of(command: str) -> set[str]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return {str(parameter.name) for parameter in found.params if isinstance(parameter, click.Option)}


def entry(tmp_path: Path, text: str) -> Any:
    """What a sweep's file says of its only method."""
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP.replace("ENTRY", text))
    return read_sweep(path)[0]


def test_flags_are_fields_are_keywords_are_keys() -> None:
    fields = set(names_of(Pruning))
    assert fields <= parameters_of("snapit")
    assert fields | set(names_of(Timing, Recipe)) <= parameters_of("train")
    assert set(names_of(*SHARED, Recipe)) - {*names_of(Timing), "epochs"} | {"portions", "plots", "finetune", "help"} >= (
        parameters_of("snapit") - set(names_of(method_named("snapit")))
    )
    assert fields <= set(inspect.signature(compress).parameters)
    assert fields | set(names_of(Timing)) <= set(inspect.signature(train).parameters)
    assert fields | set(names_of(Timing)) == {o.name for o in keys_of(Pruning, Timing).values()}
    for name in fields:
        assert f"        {name}: " in (compress.__doc__ or ""), name


@pytest.mark.parametrize("owner", [*SHARED, Recipe])
def test_every_option_says_what_it_is_for(owner: type) -> None:
    for o in options_of(owner):
        assert o.help
        assert o.default is None or o.accepts(o.default) or o.needed, o.name


def test_each_surface_spells_an_option_its_own_way() -> None:
    assert spelled("round_to", 8) == "round_to=8"
    with speaking(as_flag):
        assert spelled("round_to", 8) == "--round-to 8"
        assert spelled("calibrate_bn", True) == "--calibrate-bn"
        assert spelled("folder") == "--run"
    with speaking(as_key):
        assert spelled("round_to", 8) == "round_to = 8"
        assert spelled("inputs") == "input"
    assert FLAGS["arguments"] == "--network-arg"


WRONG = {
    "floor=-5": {"floor": -5},
    "floor=2.5": {"floor": 2.5},
    "floor=True": {"floor": True},
    "round_to=0": {"round_to": 0},
    "round_to=-8": {"round_to": -8},
    "round_to='eight'": {"round_to": "eight"},
    "per='flops'": {"per": "flops"},
    "attention='head'": {"attention": "head"},
    "freeze='features.0'": {"freeze": "features.0"},
    "budget=('macs', 0.3)": {"budget": ("macs", 0.3)},
    "sparsity and target_macs": {"sparsity": 0.5, "target_macs": 0.3},
    "did you mean 0.93": {"sparsity": 93.0},
    "is no budget of macs": {"target_macs": "40X"},
    "lies between 0 and 1": {"target_macs": "1.5"},
    "allow_disconnect=True is for methods that remove single weights": {"allow_disconnect": True},
}


@pytest.mark.parametrize("words", WRONG)
def test_python_refuses_before_any_work(model, batches, words: str) -> None:
    with pytest.raises(WrongUsage) as error:
        compress(model, "l1-filters", batches, **WRONG[words])
    assert words in str(error.value)
    assert "--" not in str(error.value)


def test_a_budget_may_be_text_a_number_or_an_object(model, batches) -> None:
    found = [
        compress(model, "l1-filters", batches, **how).plan.kept
        for how in (
            {"target_macs": "0.5"},
            {"target_macs": 0.5},
            {"budget": Budget("macs", 0.5)},
            {"pruning": Pruning(target_macs=0.5)},
        )
    ]
    for kept in found[1:]:
        assert all(torch.equal(kept[name], found[0][name]) for name in kept)


def test_numbers_of_other_libraries_are_numbers(model, batches) -> None:
    ours = compress(model, "l1-filters", batches, sparsity=0.5, floor=2).plan.kept
    theirs = compress(model, "l1-filters", batches, sparsity=np.float32(0.5), floor=np.int64(2)).plan.kept
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_named_comes_on_top_of_what_is_in_hand(model, batches) -> None:
    asked = Pruning(sparsity=0.2, floor=3)
    assert compress(model, "l1-filters", batches, pruning=asked, sparsity=0.5).summary.asked == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("floor = -3", "floor = -3: must be a whole number, at least 1"),
        ('round_to = "eight"', "round_to = 'eight': must be auto, or a whole number"),
        ('freeze = "a"', "freeze = 'a': must be a list, each entry text"),
        ("calibrate_bn = 1", "calibrate_bn = 1: must be true or false"),
        ("allow_disconnect = true", "allow_disconnect = True is for methods that remove single weights"),
        ("prune_at = -1", "prune_at = -1: must be a whole number, at least 0"),
        ('per = "flops"', "per = 'flops': choose nodes"),
    ],
)
def test_a_sweep_refuses_at_reading(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CompressError) as error:
        entry(tmp_path, text)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "sweep.toml"))


def test_every_option_of_a_pruning_is_a_key_of_a_sweep(tmp_path: Path) -> None:
    trial = entry(tmp_path, 'round_to = "auto", floor = 2, freeze = ["features.0"], calibrate_bn = true, stage = "before"')
    assert trial.pruning == {
        "round_to": "auto", "floor": 2, "freeze": ["features.0"], "calibrate_bn": True, "stage": "before"
    }  # fmt: skip
    aimed = entry(tmp_path, 'target_size = "50KB"')
    assert aimed.target == "bytes 50KB"
    assert aimed.aim == {}
    assert set(keys_of(*COMMON)) >= {"data", "loss", "samples", "device", "threads", "input", "network", "image_size"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--calibrate-bn",),
        ("--allow-disconnect",),
        ("--round-to", "1"),
        ("--floor", "1"),
        ("--attention", "heads"),
        ("--sparsity", "0.5"),
        ("--samples", "64"),
        ("--prune-at", "1"),
        ("--plan", "p.json"),
    ],
)
def test_a_training_without_a_method_refuses_what_is_of_a_pruning(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with pytest.raises(WrongUsage) as error:
        cli.main(["train", "lenet5", "-o", str(tmp_path / "x.pt"), *flags], standalone_mode=False)
    assert str(error.value).startswith(f"{flags[0]} is for pruning: name a --method")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [{"calibrate_bn": False}, {"stage": None}, {"pruning": Pruning()}, {"steps": 5}])
def test_python_refuses_them_too(model, batches, how: dict[str, Any]) -> None:
    with pytest.raises(WrongUsage, match="for pruning: name a method"):
        train(model, batches, Recipe(epochs=1), **how)


def test_an_opset_is_for_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=r"--opset 18 is for \.onnx files"):
        cli.main(["train", "lenet5", "-o", str(tmp_path / "x.pt"), "--opset", "18"], standalone_mode=False)


@pytest.mark.parametrize("name", ["seed", "round_to", "data", "outputs", "progress"])
def test_a_methods_field_cannot_have_the_name_of_a_shared_option(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / "own.py").write_text(
        '"""Mine."""\n'
        "from dataclasses import dataclass\n"
        "from compressor import Method, Scores, option\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(Method):\n"
        f"    {name}: int = option(1, 'a number')\n"
        "    def score(self, model, structure, objective):\n"
        "        raise NotImplementedError\n"
    )
    monkeypatch.setenv("COMPRESSOR_METHODS", str(tmp_path))
    with pytest.raises(WrongUsage, match=f"'own': its field '{name}' has the name of an option of every method"):
        method_named("own")


def test_a_misspelt_keyword_is_told(model, batches) -> None:
    with pytest.raises(WrongUsage, match=r"snapit has no option 'roundto': did you mean round_to\?"):
        compress(model, "snapit", batches, roundto=8)
    with pytest.raises((WrongUsage, BadInput), match="step"):
        compress(model, "snapit", batches, step=8)
