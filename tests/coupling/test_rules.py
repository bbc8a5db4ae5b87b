"""Rules of operators: a form that one cannot follow freezes what goes in and says so; a bug in one is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressor.coupling import operators, structure
from compressor.coupling.labels import Unfit

X = torch.randn(1, 3, 8, 8)


class Between(nn.Module):
    """Something between two layers `(batch, 6, 8, 8)`, and a layer apart that nothing may freeze."""

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 6, 3, padding=1), middle, nn.Linear(width, 4)
        self.apart = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.LazyLinear(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.relu(self.stem(x)))) + self.apart(x)


def frozen(middle: Callable[[Tensor], Tensor], width: int) -> dict[str, str | None]:
    """Layer -> why it is frozen."""
    model = Between(middle, width)
    model(X)
    found = structure(model.eval(), (X,))
    return {layer: group.frozen for group in found.groups for layer in group.layers("produce")}


def mistyped(flow, node, arguments, options):
    return flow.chanels(arguments[0], 1)


def unknown_name(flow, node, arguments, options):
    return flwo.channels(arguments[0], 1)  # noqa: F821 - that is the point


def wrong_arguments(flow, node, arguments, options):
    return flow.channels(arguments[0])


def out_of_range(flow, node, arguments, options):
    return arguments[99]


def of_another_shape(flow, node, arguments, options):
    return torch.zeros(3) + torch.zeros(4)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (mistyped, AttributeError),
        (unknown_name, NameError),
        (wrong_arguments, TypeError),
        (out_of_range, IndexError),
        (of_another_shape, RuntimeError),
    ],
)
def test_a_bug_in_a_rule_is_an_error_and_freezes_nothing_in_silence(
    rule: operators.Rule, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(operators.RULES, "mean", rule)
    with pytest.raises(error):
        frozen(lambda x: x.mean((2, 3)), 6)


def test_a_form_that_a_rule_cannot_follow_freezes_what_goes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(flow, node, arguments, options):
        raise Unfit("a form of its own")

    assert frozen(lambda x: x.mean((2, 3)), 6)["stem"] is None
    monkeypatch.setitem(operators.RULES, "mean", unfit)
    reasons = frozen(lambda x: x.mean((2, 3)), 6)
    assert reasons["stem"] == "the network (mean): operator mean cannot be followed (a form of its own)"
    assert reasons["apart.0"] is None


@pytest.mark.parametrize(
    ("middle", "width", "form"),
    [
        (lambda x: x.mean((2, 3)) @ torch.ones(6), 1, "matmul cannot be followed (a vector, not a matrix)"),
        (lambda x: x.mean((2, 3))[:, (x.mean((0, 2, 3)) > 0).long()], 6, "index cannot be followed (its places depend on"),
        (lambda x: x.mean((2, 3)).view(torch.int32).float(), 6, "view cannot be followed (it does something else with labels"),
        (lambda x: torch.frexp(x.mean((2, 3)))[0], 6, "frexp cannot be followed (it gives several tensors)"),
        (lambda x: x.sum() * torch.ones(1, 6), 6, "it reduces over channels"),
        (lambda x: x.sum().sum() * torch.ones(1, 6), 6, "it reduces over channels"),
    ],
)
def test_forms_that_no_rule_follows(middle: Callable[[Tensor], Tensor], width: int, form: str) -> None:
    reasons = frozen(middle, width)
    assert form in (reasons["stem"] or ""), reasons
    assert reasons["apart.0"] is None


def test_a_slope_that_is_one_number_is_a_form_of_its_own() -> None:
    class Sloped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.prelu(x, self.slope).mean((2, 3))

    assert "prelu cannot be followed (its slope is one number)" in (frozen(Sloped(), 6)["stem"] or "")
