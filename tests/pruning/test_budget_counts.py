"""A budget of multiply-adds is cut anew until the count fits; the counting needs shapes, not values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor import compress, networks
from compressor.coupling.validate import on_meta
from compressor.model import cost
from compressor.pruning import events
from compressor.settings import Budget
from compressor.types.plan import Plan
from tests.blocks import BLOCKS

X = torch.randn(4, 3, 8, 8)
BATCHES = [(X, torch.tensor([0, 1, 2, 0]))]


@pytest.mark.parametrize("name", [*sorted(BLOCKS), "lenet5", "squeezenet", "lstm_b", "gru_b", "resnet32"])
def test_shapes_alone_give_the_same_count(name: str) -> None:
    if name in BLOCKS:
        model, inputs = BLOCKS[name]().eval(), (X,)
    else:
        model = networks.build(name)
        inputs = (torch.randn(2, *model.origin.input_shape),)
    whole, hollow = cost.count(model, inputs), cost.count_shapes(on_meta(model), inputs)
    assert hollow.macs == whole.macs > 0
    assert hollow.by_layer == whole.by_layer


def plan_of(model: nn.Module, **asked) -> Plan:
    return compress(model, "snap", BATCHES, budget=Budget("macs", 0.7), seed=3, **asked).plan


@pytest.mark.parametrize("name", ["Attention", "Depthwise", "Mixer"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_shapes_alone_lead_to_the_same_selection(name: str, round_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = BLOCKS[name]()
    by_shapes = plan_of(model, round_to=round_to)

    def looks_at_values(*_: object) -> None:
        raise RuntimeError("it looks at values")

    monkeypatch.setattr(events, "count_shapes", looks_at_values)
    assert plan_of(model, round_to=round_to) == by_shapes


class LooksAtValues(nn.Module):
    """A network whose code asks for a number that is not there on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = BLOCKS["Plain"](), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (2 if float(self.scale) > 1 else 1)


@pytest.mark.parametrize(("maker", "values"), [(BLOCKS["Plain"], False), (LooksAtValues, True)])
def test_values_are_computed_only_where_the_networks_code_looks_at_them(
    maker: type[nn.Module], values: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    for name in ("count", "count_shapes"):
        before = getattr(events, name)

        def counting(model: nn.Module, inputs: object, name: str = name, before=before) -> cost.Count:
            found = before(model, inputs)
            counted.append(name)
            return found

        monkeypatch.setattr(events, name, counting)
    result = compress(maker(), "snap", BATCHES, budget=Budget("macs", 0.5))
    assert result.summary.budget.reached == pytest.approx(result.summary.budget.asked, rel=0.1)
    assert set(counted) == ({"count"} if values else {"count_shapes"})
