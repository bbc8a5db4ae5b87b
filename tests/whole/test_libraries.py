"""Networks of torchvision, timm and transformers, saved whole and as state dicts, where those libraries can be imported."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from compressor import compress, load, save
from compressor.benchmarks.studies.zoo import FAMILIES, import_torchvision, row_of
from compressor.coupling.label_flow import Traced
from compressor.coupling.torch_pruning_graph import by_torch_pruning
from compressor.model.cost import count
from compressor.types import InputSpec, Structure
from tests.blocks import same_state

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    with warnings.catch_warnings(action="ignore"):
        try:
            return import_torchvision()
        except ImportError as error:
            pytest.skip(f"torchvision cannot be imported: {error}")


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def transformers(torchvision: ModuleType) -> ModuleType:
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("torchvision", "mobilenet_v3_small"),
        pytest.param("timm", "resnet18", marks=pytest.mark.slow),
        pytest.param("torchvision", "resnet18", marks=pytest.mark.slow),
    ],
)
def test_saved_whole_and_as_state_dict(kind: str, name: str, torchvision, timm, tmp_path: Path) -> None:
    model = torchvision.models.get_model(name, weights=None) if kind == "torchvision" else timm.create_model(name)
    spec, x = [InputSpec((3, 64, 64))], torch.randn(4, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / "state.pth")
    torch.save(model, tmp_path / "whole.pth")
    for other in (
        load(tmp_path / "state.pth", network=f"{kind}:{name}", inputs=spec),
        load(tmp_path / "whole.pth", inputs=spec),
    ):
        assert same_state(model, other)
        result = compress(other, "snap", [(x, torch.randint(1000, (4,)))], 0.3)
        assert all(result.summary.proofs)
        assert result.summary.reached == pytest.approx(0.3, abs=0.01)
        save(result.model, tmp_path / "small.pt")
        again = load(tmp_path / "small.pt").eval()
        assert torch.equal(again(x), result.model.eval()(x))


def is_pruned_and_proven(make: Callable[[], tuple[nn.Module, object]], within: float) -> None:
    row = row_of(make)
    assert row["graph"] == "label flow", row
    assert row["equivalent"], row
    assert row["by_labels"], row
    assert row["open"] > 0.99
    assert row["sparsity"] == pytest.approx(0.5, abs=within)


SMALLER = {
    "googlenet": lambda tv, *_: tv.googlenet(weights=None, init_weights=False),
    "swin": lambda tv, *_: tv.SwinTransformer([4, 4], 48, [1, 1], [3, 6], [7, 7]),
    "vit": lambda _, timm, __: timm.create_model("vit_tiny_patch16_224", depth=2),
    "xcit": lambda _, timm, __: timm.create_model("xcit_nano_12_p16_224", depth=2),
    "bert": lambda _, __, hf: hf.BertForSequenceClassification(hf.BertConfig(**OF_BERT)),
    "vit of transformers": lambda _, __, hf: hf.ViTForImageClassification(hf.ViTConfig(**OF_BERT)),
}
"""Auxiliary heads, windows, attention, sizes taken from the input, token embeddings: every kind of coupling, once."""
OF_BERT = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 192}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "xcit" else n for n in SMALLER])
def test_every_kind_of_coupling_is_pruned_and_proven(name: str, torchvision, timm, transformers) -> None:
    size = 64 if name == "googlenet" else 224
    inputs = (torch.randn(2, 3, size, size),)
    if name == "bert":
        inputs = {"input_ids": torch.randint(5, 1000, (2, 64)), "attention_mask": torch.ones(2, 64, dtype=torch.int64)}
    is_pruned_and_proven(lambda: (SMALLER[name](torchvision.models, timm, transformers), inputs), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("torchvision", "googlenet"),
        ("torchvision", "swin_t"),
        ("timm", "vit_tiny_patch16_224"),
        ("timm", "xcit_nano_12_p16_224"),
        ("transformers", "BertForSequenceClassification"),
        ("transformers", "ViTForImageClassification"),
    ],
)
def test_the_zoo_is_pruned_and_proven(family: str, name: str, request) -> None:
    """Some of `make zoo`, as they were published."""
    request.getfixturevalue(family)
    is_pruned_and_proven(FAMILIES[family]()[name], 0.01)


def test_a_vision_transformer_keeps_its_heads_in_a_file(timm, tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=3).state_dict(), tmp_path / "vit.pth")
    loaded = load(tmp_path / "vit.pth", network="timm:vit_tiny_patch16_224", arguments={"depth": 3}).eval()
    x = torch.randn(2, 3, 224, 224)
    small = compress(loaded, "random", None, 0.5, example_inputs=x).model.eval()
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors").eval()
    assert [b.attn.num_heads for b in again.blocks] == [b.attn.num_heads for b in small.blocks] != [3] * 3
    assert torch.equal(again(x), small(x))


def nodes_of(structure: Structure) -> set:
    """Every node as the set of its places, and whether it may go."""
    return {
        (frozenset((s.tensor, s.dim, int(i)) for s in group.slices for i in s.index[n]), group.frozen is None)
        for group in structure.groups
        for n in range(group.width)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "densenet121", "mnasnet0_5", "alexnet"]
)
def test_both_graphs_agree_on_networks_of_others(name: str, torchvision) -> None:
    model, x = torchvision.models.get_model(name, weights=None).eval(), (torch.randn(1, 3, 224, 224),)
    ours, theirs = nodes_of(Traced(model, x).structure()), nodes_of(by_torch_pruning(model, x))
    assert ours == theirs, sorted(map(str, ours ^ theirs))[:3]


VGG16 = pytest.param("vgg16_bn", 15470.26, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 4089.18), ("mobilenet_v2", 300.77), VGG16])
def test_the_multiply_adds_of_known_networks(name: str, millions: float, torchvision) -> None:
    counted = count(torchvision.models.get_model(name, weights=None), (torch.randn(1, 3, 224, 224),))
    assert round(counted.macs / 1e6, 2) == millions
    assert not counted.uncounted
