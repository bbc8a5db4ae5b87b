"""What the data yields is looked at for NaN and infinity once per event, however many hands it goes through."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from compressor import compress, networks
from compressor.errors import BadInput
from compressor.objective import objective


@pytest.mark.parametrize("method", ["snap", "snapit", "snip"])
def test_every_batch_of_an_event_is_checked_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: Counter[int] = Counter()
    monkeypatch.setattr(objective, "check_finite", lambda batch: checked.update([id(batch[0])]))
    batches = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,))) for _ in range(3)]
    result = compress(networks.build("lenet5"), method, batches, 0.5)
    events = len(result.plan.events)
    assert [checked[id(x)] for x, _ in batches] == [events + 1, events, events]  # the first is the example, too


def test_a_bad_batch_is_still_refused_wherever_it_comes() -> None:
    batches = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,))) for _ in range(3)]
    batches[2][0][3, 0, 5, 5] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinite"):
        compress(networks.build("lenet5"), "snap", iter(batches), 0.5)
