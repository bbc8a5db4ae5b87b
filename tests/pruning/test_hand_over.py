"""A network is handed over in the precision that it came in, and looking at it to count changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from compressor import networks
from compressor.method import make
from compressor.model.cost import tensor_bytes
from compressor.model.inputs import several
from compressor.pruning import replay as replaying
from compressor.pruning import setup as setting_up
from compressor.pruning.compress import compress
from compressor.pruning.replay import replay
from compressor.pruning.result import summarise

X = torch.randn(4, 1, 28, 28)
BATCHES = [(X, torch.arange(4))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_summarise_only_looks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def looked_on(*arguments, **named):
        small = arguments[5].model
        before = copy.deepcopy(small.state_dict())
        summary = summarise(*arguments, **named)
        after = small.state_dict()
        seen.append(all(torch.equal(t, after[n]) and t.dtype == after[n].dtype for n, t in before.items()))
        assert {p.dtype for p in small.parameters()} == {torch.float32}  # as it was scored and proven
        return summary

    for module in (setting_up, replaying):
        monkeypatch.setattr(module, "summarise", looked_on)
    model = networks.build("lenet5").to(dtype)
    for result in (first := compress(model, make("snap", {}), BATCHES, 0.5), replay(first.plan, model, several((X,)))):
        assert {p.dtype for p in result.model.parameters()} == {dtype}
        assert result.summary.after.tensor_bytes == tensor_bytes(result.model)
    assert seen == [True, True]
