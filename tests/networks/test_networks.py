"""The papers' networks by their published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor import networks
from compressor.coupling import structure
from compressor.errors import WrongUsage
from compressor.model.cost import macs, macs_by_fvcore, macs_by_thop
from compressor.model.origin import origin_of

WEIGHTS_AND_NODES = {  # conv and linear weights + norm weights, and nodes without outputs, from the authors' networks
    "mlp5": (1_195_008, 2_048),
    "lenet5": (142_336, 226),
    "conv6": (1_803_840, 1_408),
    "alexnet": (28_256_320, 9_600),
    "vgg16": (50_678_080, 12_928),
    "resnet18": (11_698_816, 5_056),
    "lenet300100": (784 * 300 + 300 * 100 + 100 * 10, 400),
    "lenet5caffe": (20 * 25 + 50 * 20 * 25 + 800 * 500 + 500 * 10, 570),
}
PARAMETERS = {  # with biases and norms, in thousands or millions as the papers print them
    "alexnet_s": "5.1m", "alexnet_b": "8.5m", "vgg_c": "10.5m", "vgg_d": "15.3m", "vgg_like": "15.0m",
    "wrn16_8": "11.0m", "wrn16_10": "17.1m", "wrn22_8": "17.2m",
    "lstm_s": "137k", "lstm_b": "536k", "gru_s": "104k", "gru_b": "405k",
    "resnet34": "21.1m", "squeezenet": "741k", "squeezenet_bypass": "741k", "vgg19": "20.0m", "resnet32": "1.8m",
    "resnet20": "272k",
    "googlenet": "6.0m", "densenet121": "7.0m", "densenet169": "12.5m", "densenet201": "18.1m", "densenet264": "30.7m",
}  # fmt: skip
"""SNIP's tables 2, 5 and 6 (LSTM-b 535k and VGG-D 15.2m there, without a second bias and norms), its reproduction, GraSP."""
SMALL = ("mlp5", "lenet5", "conv6", "resnet18", "lenet300100", "lenet5caffe")


def real(name: str, **options) -> nn.Module:
    """With cheap weights: the orthogonal ones of the wide networks take seconds."""
    model, _ = networks.skeleton(name, **options)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.01)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_parameters()
    return model


def closed_form_macs(model: nn.Module, x: torch.Tensor) -> int:
    """kernel area x channels in x channels out x positions, layer by layer."""
    total = 0

    def add(module, _, output):
        nonlocal total
        total += module.weight.numel() * (output[0, 0].numel() if output.dim() == 4 else 1)

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return total


def test_every_network_has_its_numbers_here() -> None:
    assert WEIGHTS_AND_NODES.keys() | PARAMETERS.keys() == set(networks.names())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    model, _ = networks.skeleton(name)
    count = sum(p.numel() for p in model.parameters())
    assert PARAMETERS[name] == (f"{count / 1e6:.1f}m" if count >= 1e6 else f"{count / 1e3:.0f}k")


@pytest.mark.parametrize("name", ["gru_s", "squeezenet_bypass", "vgg_c", "densenet121"])
def test_fresh_networks_answer(name: str) -> None:
    """Variance scaling keeps the signal alive through every kind of layer."""
    model = networks.build(name, classes=7).eval()
    x = torch.randn(4, *networks.default_input(name))
    with torch.no_grad():
        logits = model(x)
    assert logits.shape == (4, 7)
    assert float(logits.std(0).mean() / logits.abs().mean()) > 0.01


@pytest.mark.parametrize("name", WEIGHTS_AND_NODES)
def test_weights_and_nodes(name: str) -> None:
    model = real(name)
    weights, nodes = WEIGHTS_AND_NODES[name]
    assert sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight")) == weights
    assert structure(model, (torch.zeros(1, *networks.default_input(name)),)).total_nodes == nodes


def test_the_papers_vgg16_has_its_macs() -> None:
    assert macs(real("vgg16"), (torch.zeros(1, 3, 32, 32),)) == 356_229_120


@pytest.mark.parametrize("name", WEIGHTS_AND_NODES)
def test_counters_agree_with_the_closed_form(name: str) -> None:
    model, x = real(name), torch.zeros(2, *networks.default_input(name))
    expected = closed_form_macs(model, x[:1])
    assert macs(model, (x,)) == expected
    assert macs_by_fvcore(model, (x,)) == expected
    assert macs_by_thop(model, (x,)) == expected


@pytest.mark.parametrize("name", SMALL)
def test_initialisation_is_the_papers(name: str) -> None:
    model = networks.build(name, seed=3)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if name.startswith("lenet300") or name.endswith("caffe"):
        fan = sum(nn.init._calculate_fan_in_and_fan_out(layers[0].weight))
        assert float(layers[0].weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.1)
        return
    for layer in layers:
        rows = layer.weight.detach().flatten(1)
        gain = 1.0 if layer is layers[-1] else (2 / (1 + 0.05**2)) ** 0.5
        wide = rows if rows.shape[0] <= rows.shape[1] else rows.T
        torch.testing.assert_close(wide @ wide.T, gain**2 * torch.eye(len(wide)), rtol=0, atol=1e-4)
        if layer.bias is not None:
            assert float(layer.bias.detach().abs().max()) <= rows.shape[1] ** -0.5


def test_seeds_and_the_global_random_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (networks.build("lenet5", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.features[0].weight, again.features[0].weight)
    assert not torch.equal(first.features[0].weight, other.features[0].weight)


def test_other_inputs_and_classes() -> None:
    model = networks.build("lenet5", in_channels=3, classes=7, image_size=40, data="elsewhere")
    assert model.eval()(torch.zeros(2, 3, 40, 40)).shape == (2, 7)
    assert origin_of(model).input_shape == (3, 40, 40)
    assert origin_of(model).data == "elsewhere"


@pytest.mark.parametrize(
    ("name", "options", "message"), [("nosuch", {}, "choose alexnet"), ("lenet5", {"image_size": 6}, "too small")]
)
def test_mistakes_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        networks.build(name, **options)
