"""Every method's scores on a network of six weights, by hand; and second derivatives against torch.func, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vjp

from compressor.coupling import structure
from compressor.criteria.hessian import damage, gradient_flow
from compressor.criteria.rank import map_ranks
from compressor.criteria.variables import gradient, hessian_product, variables
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.method import Method, make, method_named, options_of, summaries
from compressor.objective.objective import Objective
from compressor.types.structure import Structure


class Six(nn.Module):
    """h = (x1, 2 x2), output 3 h1 - h2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
            self.last.weight.copy_(torch.tensor([[3.0, -1.0]]))

    def forward(self, x):
        return self.last(self.first(x))


def mean_output(outputs, batch):
    return outputs.mean()


X = torch.tensor([[1.0, 2.0]])
"""h = (1, 4), output and loss -1."""

WEIGHTS = {
    # w dL/dw: dL/dlast = h, dL/dfirst = last (outer) x
    "snip": ([[3, 0], [0, 4]], [[3, 4]]),
    "snipit": ([[3, 0], [0, 4]], [[3, 4]]),
    "gradient-magnitude": ([[3, 0], [0, 4]], [[3, 4]]),
    # the nodes' elasticities are 3 and 4, too
    "cnip": ([[3, 0], [0, 4]], [[3, 4]]),
    "cnipit": ([[3, 0], [0, 4]], [[3, 4]]),
    # H g at last is last * |x|^2 = (15, -5), at first h (outer) x = ((1, 2), (4, 8))
    "grasp": ([[1, 0], [0, 16]], [[45, 5]]),
    "magnitude": ([[1, 0], [0, 2]], [[3, 1]]),
    "imp": ([[1, 0], [0, 2]], [[3, 1]]),
    "hoyer-square": ([[1, 0], [0, 2]], [[3, 1]]),
    # ones through |w|: h = (1, 2), R = 5; theta dR/dtheta / R
    "synflow": ([[0.6, 0], [0, 0.4]], [[0.6, 0.4]]),
}
NODES = {
    "snap": [3, 4],
    "snapit": [3, 4],
    "gradient-magnitude": [3, 4],
    "magnitude": [1, 2],
    "group-hs": [1, 2],
    "l1-filters": [0.25, 0.75],
    "synflow": [0.6, 0.4],
}


def prepared(model: nn.Module, x: torch.Tensor = X) -> tuple[Structure, Objective]:
    return structure(model, (x,)), Objective([(x, None)], mean_output)


def by_weight(name: str) -> Method:
    """The method of that name, which removes single weights, where it may be asked to."""
    return make(name, {"unit": "weight"} if any(o.name == "unit" for o in options_of(method_named(name))) else {})


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_by_hand(name: str) -> None:
    model = Six()
    scores = by_weight(name).score(model, *prepared(model)).values
    first, last = WEIGHTS[name]
    assert scores["first.weight"].flatten().tolist() == pytest.approx([n for row in first for n in row], abs=1e-6)
    assert scores["last.weight"].flatten().tolist() == pytest.approx(last[0])


@pytest.mark.parametrize("name", NODES)
def test_nodes_by_hand(name: str) -> None:
    model = Six()
    options = {"unit": "node"} if name in WEIGHTS else {}
    assert make(name, options).score(model, *prepared(model)).values["first"].tolist() == pytest.approx(NODES[name])


def test_the_published_sign_of_grasp_turns_the_order_around() -> None:
    model = Six()
    one, other = (make("grasp", {"sign": s}).score(model, *prepared(model)) for s in ("original", "published-snipit"))
    assert all(torch.equal(one.values[n], -other.values[n]) for n in one.values)


def test_a_loss_that_is_linear_in_the_gates_has_no_gradient_flow() -> None:
    model = Six()
    with pytest.raises(BadInput, match="the Hessian's product with the gradient vanishes"):
        make("grasp", {"unit": "node"}).score(model, *prepared(model))


def test_optimal_brain_damage_by_hand() -> None:
    # L = (w x)^2 averaged over x = (2, 0) and (0, 3): the Hessian is diag(4, 9), w = (1, -2): w^2 h / 2 = (2, 18).
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
    data = [(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), None)]
    found = Structure((), {}, {}, frozenset(), 0)
    scores = damage(model, found, Objective(data, lambda y, _: y.square().mean()), "weight", 1)
    assert scores.values["0.weight"].flatten().tolist() == pytest.approx([2, 18])


def test_norm_scales_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-3.0, 0.5, 2.0]))
    found = structure(model, (torch.randn(2, 2),))
    for name in ("bn-scale", "slimming"):
        assert make(name, {}).score(model, found, Objective([])).values["0"].tolist() == [3, 0.5, 2]
    bare = Six()
    method = make("bn-scale", {})
    assert method.cannot_score(bare, prepared(bare)[0]) == {"first": "no batch norm with a scale follows it"}
    with pytest.raises(UnsupportedNetwork, match="first: no batch norm"):
        method.score(bare, *prepared(bare))


def test_ranks_by_hand() -> None:
    # three 2x2 maps: the identity (rank 2 of 2), constant (1 of 2), nothing (0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]])[..., None, None])
    x = torch.stack([torch.eye(2), torch.ones(2, 2)])[None]
    found = structure(model, (x,))
    assert map_ranks(model, found, Objective([(x, None)], mean_output)).values["0"].tolist() == [1, 0.5, 0]
    assert make("hrank", {}).score(model, found, Objective([(x, None)], mean_output)).values["0"].argsort().tolist() == [
        2,
        1,
        0,
    ]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_scores_follow_the_seed_and_the_scope(scope: str) -> None:
    model = Six()
    found, _ = prepared(model)
    for unit, size in (("node", 2), ("weight", 4)):
        method = make("random", {"unit": unit, "scope": scope})
        one, again, other = (method.score(model, found, Objective([], seed=s)).values for s in (3, 3, 4))
        name = next(iter(one))
        assert torch.equal(one[name], again[name])
        assert scope == "layer" or not torch.equal(one[name], other[name])
        if scope == "layer":
            assert sorted(one[name].flatten().tolist()) == [(n + 0.5) / size for n in range(size)]


@pytest.mark.parametrize("name", ["snap", "snapit"])
def test_elasticity_within_layers_is_a_place_among_its_own(name: str) -> None:
    """h = (1, 4), then (h1 + h2, h2) = (5, 4), the output 3 * 5 - 4 = 11: what it owes to each."""
    model = nn.Sequential(Six().first, nn.Linear(2, 2, bias=False), Six().last)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    found = structure(model, (X,))
    whole, places = (
        make(name, {"scope": s}).score(model, found, Objective([(X, None)], mean_output)) for s in ("global", "layer")
    )
    for layer, owed, place in (("0", [3, 8], [0.25, 0.75]), ("1", [15, 4], [0.75, 0.25])):
        torch.testing.assert_close(whole.values[layer], torch.tensor(owed, dtype=torch.float64) / 11)
        assert places.values[layer].tolist() == place


def test_every_method_was_computed_by_hand() -> None:
    elsewhere = {"obd", "l-obs", "bn-scale", "slimming", "hrank", "random"}
    assert set(summaries()) == {*WEIGHTS, *NODES, *elsewhere}


class Small(nn.Module):
    """Curved enough for a Hessian: convolution, batch norm, tanh, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


def curved() -> tuple[nn.Module, Structure, Objective, dict, tuple]:
    torch.manual_seed(0)
    model = Small().double().eval()
    x, y = torch.randn(6, 1, 5, 5, dtype=torch.float64), torch.randint(0, 2, (6,))
    objective = Objective([(x[:4], y[:4]), (x[4:], y[4:])])
    weights = {n: p.detach() for n, p in model.named_parameters() if n in ("conv.weight", "last.weight")}
    return model, structure(model, (x,)), objective, weights, (x, y)


def test_products_with_the_hessian_are_those_of_torch_func() -> None:
    model, found, objective, weights, (x, y) = curved()

    def loss(values):
        return nn.functional.cross_entropy(functional_call(model, values, (x,)), y)

    with variables(model, found, "weight") as (twin, by):
        g, mean, samples = gradient(twin, by, objective)
        product = hessian_product(twin, by, objective, g)
    expected = grad(loss)(weights)
    expected_product = vjp(grad(loss), weights)[1](expected)[0]  # the Hessian is symmetric
    assert samples == 6
    assert mean == pytest.approx(float(loss(weights).detach()))
    for name in weights:
        torch.testing.assert_close(g[name], expected[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(product[name], expected_product[name], rtol=1e-10, atol=1e-12)
    flow = gradient_flow(model, found, objective, "weight")
    torch.testing.assert_close(flow.values["conv.weight"], weights["conv.weight"] * product["conv.weight"])


def gated_loss(model, x, y, gates):
    hidden = torch.tanh(model.norm(model.conv(x))).mean((2, 3)) * gates
    return nn.functional.cross_entropy(model.last(hidden), y)


def test_nodes_have_the_hessian_of_their_gates() -> None:
    model, found, objective, _, (x, y) = curved()
    ones = torch.ones(3, dtype=torch.float64)
    g = grad(lambda c: gated_loss(model, x, y, c))(ones)
    matrix = jacrev(grad(lambda c: gated_loss(model, x, y, c)))(ones).detach()
    flow = gradient_flow(model, found, objective, "node").values["conv"]
    torch.testing.assert_close(flow, (matrix @ g).detach(), rtol=1e-5, atol=1e-8)
    many = damage(model, found, objective, "node", 400).values["conv"]
    torch.testing.assert_close(many, (matrix.diagonal() / 2).detach(), rtol=0.1, atol=0.1 * float(matrix.abs().max()))


def test_an_operator_without_second_derivative_is_named() -> None:
    model = Six()
    objective = Objective([(X, None)], lambda y, _: torch.cdist(y, torch.ones(3, 1)).square().mean())
    with pytest.raises(UnsupportedNetwork, match=r"no second derivative: .*cdist.*; use a criterion of first order"):
        make("grasp", {}).score(model, prepared(model)[0], objective)


def test_synaptic_flow_is_conserved_from_layer_to_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(54, 5), nn.LeakyReLU(), nn.Linear(5, 4),
    )  # fmt: skip
    x = (torch.randn(2, 3, 8, 8),)
    found = structure(model, x)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    objective = Objective([], example=x)
    weights = make("synflow", {}).score(model, found, objective).values
    for value in weights.values():
        assert float(value.double().sum()) == pytest.approx(1, rel=1e-5)
    nodes = make("synflow", {"unit": "node"}).score(model, found, objective).values
    for name, value in nodes.items():
        assert float(value.sum()) == pytest.approx(1, rel=1e-5), name
        torch.testing.assert_close(value.float(), weights[f"{name}.weight"].flatten(1).sum(1), rtol=1e-4, atol=1e-7)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_flow_that_an_activation_stops_is_refused() -> None:
    class Minus(nn.Module):
        def forward(self, x):
            return torch.relu(-x)

    model = nn.Sequential(nn.Linear(2, 3), Minus(), nn.Linear(3, 1))
    with pytest.raises(UnsupportedNetwork, match="synaptic flow is 0, not positive: an activation"):
        make("synflow", {}).score(model, structure(model, (X,)), Objective([], example=(X,)))
