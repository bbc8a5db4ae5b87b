"""Networks as people write them: each ends in a proven smaller network, a listed reason, or a refusal in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from compressor import compress
from compressor.coupling import structure
from compressor.criteria.elasticity import node_elasticity
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.model.speed import fold_norms
from compressor.objective.objective import Objective
from compressor.proof.prove import randomised
from compressor.types.structure import Structure


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Net(nn.Module):
    """Layers `c` (3 to 8), `d` (8 to 8) and `fc`, joined by a function of (network, input)."""

    def __init__(self, join, **layers) -> None:
        super().__init__()
        self.c, self.d, self.fc = conv(3, 8), conv(8, 8), nn.Linear(8, 5)
        self.join = join
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.join(self, x)


def gap(x):
    return x.mean((2, 3))


def found_in(model: nn.Module, x: torch.Tensor | None = None) -> Structure:
    return structure(model, (torch.randn(2, 3, 8, 8) if x is None else x,))


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=self.padding)


class OwnLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return F.linear(x, self.weight)


NETWORKS = {
    "a norm that also activates": lambda: Net(lambda n, x: n.fc(gap(n.d(n.bn(n.c(x))))), bn=NormAct(8)),
    "standardised weights": lambda: Net(
        lambda n, x: n.fc(gap(n.d(n.bn(n.s(n.c(x)))))), s=StandardisedConv(8, 8, 3, padding=1), bn=nn.BatchNorm2d(8)
    ),
    "weight norm": lambda: Net(
        lambda n, x: n.fc(gap(n.d(n.bn(n.w(n.c(x)))))), w=parametrizations.weight_norm(conv(8, 8)), bn=nn.BatchNorm2d(8)
    ),
    "an auxiliary head in training": lambda: Net(
        lambda n, x: (n.fc(gap(n.d(n.c(x)))), gap(n.aux(n.c(x)))) if n.training else n.fc(gap(n.d(n.c(x)))), aux=conv(8, 5)
    ),
    "features beside logits": lambda: Net(lambda n, x: (gap(n.d(n.c(x))), n.fc(gap(n.d(n.c(x)))))[::-1]),
    "a softmax at the end": lambda: Net(lambda n, x: n.fc(gap(n.d(n.c(x)))).log_softmax(1)),
    "a transposed convolution": lambda: Net(
        lambda n, x: n.fc(gap(n.d(n.t(n.c(x))))), t=nn.ConvTranspose2d(8, 8, 2, 2)
    ),
    "a linear module of one's own": lambda: Net(lambda n, x: n.fc(n.own(gap(n.d(n.c(x))))), own=OwnLinear()),
    "halves cut by the shape": lambda: Net(
        lambda n, x: n.fc(gap(torch.cat([n.e(n.c(x)[:, : n.c.out_channels // 2]), n.c(x)[:, n.c.out_channels // 2 :]], 1))),
        e=conv(4, 4),
    ),
    "views of one image": lambda: Net(
        lambda n, x: n.fc(gap(n.d(F.max_pool2d(n.c(torch.cat([x, x.flip(3)], 0)), 2)))).chunk(2)[0]
    ),
    "read as map and as rows": lambda: Net(
        lambda n, x: n.fc(gap(n.d(n.c(x)))) + n.rows(n.c(x).permute(0, 2, 3, 1).flatten(0, 2)).mean(0), rows=nn.Linear(8, 5)
    ),
    "called by keyword": lambda: Net(lambda n, x: n.fc(gap(n.d(input=n.c(x))))),
    "padded by hand": lambda: Net(
        lambda n, x: n.fc(gap(n.v(F.pad(F.relu(n.c(x)), (1, 1, 1, 1))))), v=nn.Conv2d(8, 8, 3)
    ),
    "a position map for all channels": lambda: Net(
        lambda n, x: n.fc(gap(n.d(n.c(x) + n.p))), p=nn.Parameter(torch.randn(1, 1, 8, 8))
    ),
    "the maximum of two maps": lambda: Net(lambda n, x: n.fc(gap(n.d(torch.max(n.c(x), n.e(x))))), e=conv(3, 8)),
    "instance norm": lambda: Net(lambda n, x: n.fc(gap(n.d(n.i(n.c(x))).square())), i=nn.InstanceNorm2d(8, affine=True)),
    "a vector norm over channels": lambda: Net(
        lambda n, x: n.fc(F.normalize(gap(n.d(n.c(x))), dim=1)),
    ),
    "a map made from a vector": lambda: Net(
        lambda n, x: gap(n.e(n.up(gap(n.c(x))).view(-1, 4, 8, 8))), up=nn.Linear(8, 256), e=conv(4, 5)
    ),
    "branches on the data": lambda: Net(lambda n, x: n.fc(gap(n.d(n.c(x)))) if x.sum() < 1e9 else n.fc(gap(n.c(x)))),
}  # fmt: skip


MOSTLY_FROZEN = {"halves cut by the shape": 0.1, "a map made from a vector": 0.02}
"""Sizes in their code leave little to prune."""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("aggregate", ["signed", "sample"])
def test_every_network_is_pruned_and_runs_in_both_modes(name: str, aggregate: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    data = [(torch.randn(6, 3, 8, 8), torch.randint(5, (6,))) for _ in range(2)]

    def loss(outputs, batch):
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return F.cross_entropy(first, batch[1]) if first.dim() == 2 else first.square().mean()

    if aggregate == "sample" and name == "a linear module of one's own":
        with pytest.raises(UnsupportedNetwork, match="a function applies it"):
            compress(model, "snapit", data, 0.25, loss=loss, aggregate=aggregate)
        return
    sparsity = MOSTLY_FROZEN.get(name, 0.25)
    result = compress(model, "snapit", data, sparsity, loss=loss, aggregate=aggregate)
    assert all(result.summary.proofs)
    assert abs(result.summary.reached - sparsity) < 0.1
    assert result.summary.after.parameters < result.summary.before.parameters
    result.model.train()(data[0][0])


@pytest.mark.parametrize(
    ("name", "nodes", "frozen"),
    [
        ("a softmax at the end", 16, set()),
        ("features beside logits", 16, {"d"}),
        ("a transposed convolution", 24, set()),
        ("standardised weights", 24, {"c", "s"}),
        ("weight norm", 24, {"c", "w"}),
        ("an auxiliary head in training", 16, set()),  # its nodes are none of the network that answers
        ("padded by hand", 16, set()),
        ("a position map for all channels", 16, set()),
        ("the maximum of two maps", 24, set()),
        ("instance norm", 16, set()),
        ("a map made from a vector", 8 + 256, set()),
    ],
)
def test_every_layer_is_counted_and_what_stays_is_listed(name: str, nodes: int, frozen: set) -> None:
    model = NETWORKS[name]()
    unused = {n for n in ("d", "fc") if name in ("padded by hand", "a map made from a vector")}
    if unused:  # layers of the base class that this network does not run
        del model.d
    if name == "a map made from a vector":
        del model.fc
    found = found_in(model)
    assert found.total_nodes == found.nodes == nodes
    counted = {g.name for g in found.frozen if set(g.layers("produce", "pass")) - found.outputs}
    assert counted == frozen


@pytest.mark.parametrize("name", ["a norm that also activates", "standardised weights", "padded by hand"])
def test_folding_norms_does_not_change_scores(name: str, monkeypatch) -> None:
    model = randomised(NETWORKS[name]()).double()
    found = found_in(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    data = Objective([(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(5, (4,)))])
    folded = node_elasticity(model, found, data)
    monkeypatch.setattr("compressor.criteria.elasticity.fold_norms", lambda *_: None)
    plain = node_elasticity(model, found, data)
    assert folded.loss == pytest.approx(plain.loss)
    for group in plain.values:
        torch.testing.assert_close(folded.values[group], plain.values[group])


def test_folding_keeps_the_function() -> None:
    model = randomised(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6))).eval()
    x = torch.randn(3, 3, 8, 8)
    before = model(x)
    fold_norms(model, {"0": "1", "3": "4"})
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_survive_one_channel_per_group() -> None:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 16, groups=2), nn.ReLU(), conv(16, 16), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))  # fmt: skip
    data = [(torch.randn(6, 3, 8, 8), torch.randint(5, (6,)))]
    result = compress(net, "snapit", data, 0.85)
    assert result.model[2].groups == 2
    assert all(result.summary.proofs)


@pytest.mark.parametrize("inputs", [torch.randn(1, 3, 8, 8), None])
def test_one_sample_is_enough(inputs) -> None:
    net = Net(lambda n, x: n.fc(gap(n.d(n.c(x)))))
    data = [(torch.randn(1, 3, 8, 8), torch.tensor([2])) for _ in range(3)]
    result = compress(net, "snap", data, 0.5, example_inputs=None if inputs is None else (inputs,))
    assert all(result.summary.proofs)


def test_scoring_works_without_gradients_around_it() -> None:
    net = Net(lambda n, x: n.fc(gap(n.d(n.c(x)))))
    with torch.no_grad():
        assert compress(net, "snap", [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))], 0.5).summary.reached == 0.5


def test_dictionaries_count_their_samples() -> None:
    net = Net(lambda n, x: n.fc(gap(n.d(n.c(x)))))
    data = [{"image": torch.randn(size, 3, 8, 8), "label": torch.zeros(size, dtype=torch.long)} for size in (7, 8)]
    result = compress(net, "snap", data, 0.5, loss=lambda o, b: F.cross_entropy(o, b["label"]),
                      forward=lambda model, b: model(b["image"]), example_inputs=(data[0]["image"],))  # fmt: skip
    assert result.summary.samples == 15
    with pytest.raises(BadInput, match="give example_inputs"):
        compress(net, "snap", data, 0.5)


@pytest.mark.parametrize(
    ("join", "error", "message"),
    [
        (lambda n, x: n.fc(gap(n.d(n.c(x)))).log(), UnsupportedNetwork, "even with nothing removed"),
        (lambda n, x: n.fc(gap(n.d(n.c(x))))[:, :9].view(3, -1), BadInput, "does not run in eval mode on its inputs"),
        (lambda n, x: n.c(x) @ 3, BadInput, "does not run in eval mode on its inputs"),
    ],
)
def test_what_cannot_be_proven_or_run_is_refused(join, error, message: str) -> None:
    with pytest.raises(error, match=message):
        compress(Net(join), "random", [(torch.randn(4, 3, 8, 8), torch.zeros(4).long())], 0.5)


def test_a_scalar_beside_the_logits_is_compared_too() -> None:
    net = Net(lambda n, x: (n.fc(gap(n.d(n.c(x)))), n.c(x).square().mean()))
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    summary = compress(net, "snap", data, 0.25, loss=lambda o, b: F.cross_entropy(o[0], b[1])).summary
    assert set(summary.frozen) == {"c"}


def test_a_network_without_values_is_refused() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(BadInput, match="no values yet"):
        compress(net, "snap", [(torch.randn(4, 3, 8, 8), torch.zeros(4).long())], 0.5)


@pytest.mark.parametrize("hooked", [lambda m: prune.l1_unstructured(m, "weight", 0.5), weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weights_that_a_hook_computes_are_named_with_the_way_out(hooked) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    hooked(model[0])
    batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    with pytest.raises(BadInput, match=r"0\.weight is computed by a hook .*torch\.nn\.utils\.prune\.remove or"):
        compress(model, "snapit", batches, 0.3)
