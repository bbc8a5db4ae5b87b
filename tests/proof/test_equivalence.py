"""Two outputs are compared channel by channel: a wide one hides nothing of a narrow one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import compress
from compressor.errors import NotEquivalent
from compressor.exporters import check_equivalence, export
from compressor.exporters import onnx as onnx_files
from compressor.proof.equivalence import Equivalence
from compressor.proof.prove import _rounding_aside


def detections(generator: torch.Generator) -> torch.Tensor:
    """`(batch, 84, places)`: four channels of boxes of range 9,232, eighty of scores of range 0.96."""
    boxes, scores = (torch.rand(2, n, 50, generator=generator) for n in (4, 80))
    return torch.cat([boxes * 9232, scores * 0.96], 1)


@pytest.mark.parametrize("last", [False, True])
def test_scores_do_not_hide_behind_boxes(last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    right = detections(generator)
    wrong = right.clone()
    wrong[:, 4:] *= 1.05
    near = right * (1 + 1e-7)
    if last:
        right, wrong, near = (t.transpose(1, 2) for t in (right, wrong, near))
    assert (wrong - right).abs().max() < 1e-5 * 9232
    found = Equivalence.of("", [right], [wrong], 1e-5)
    assert not found
    assert found.output_range < 10
    assert not Equivalence.of("", [right], [wrong], 1e-4)
    assert Equivalence.of("", [right], [near], 1e-5)
    assert Equivalence.of("", [right], [right], 1e-5).needed_tolerance == 0


def test_rounding_of_the_reference_counts_as_none() -> None:
    """A channel that hardly varies beside one that does: what float32 makes of it is no difference."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.rand(8, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1e-5], dtype=torch.float64) + 10
    single = exact.float()
    other = single + torch.tensor([0.0, 2e-6])
    assert not Equivalence.of("", [single], [other], 1e-4)
    assert Equivalence.of("", [single], [other], 1e-4, [exact])
    assert not Equivalence.of("", [single], [other + 1e-3], 1e-4, [exact])


class Detector(nn.Module):
    """Boxes and scores from one body, as a detector's head gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 20, 1)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return torch.cat([5000 * self.boxes(h), torch.sigmoid(self.scores(h))], 1).flatten(2)


def test_a_files_scores_do_not_hide_either(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = Detector().eval(), (torch.randn(4, 3, 8, 8),)
    small = compress(model, "random", sparsity=0.5, example_inputs=x[0]).model
    export(small, tmp_path / "right.onnx", example_inputs=x)
    assert check_equivalence(small, tmp_path / "right.onnx", x)
    write = onnx_files.write

    other = Detector().eval()
    other._modules = dict(small._modules)
    other.scores = nn.Conv2d(*small.scores.weight.shape[1::-1], 1)
    other.scores.load_state_dict({"weight": small.scores.weight.detach() * 1.02, "bias": small.scores.bias.detach()})
    assert not check_equivalence(small, other.eval(), x)
    assert not check_equivalence(other, tmp_path / "right.onnx", x)
    monkeypatch.setattr(onnx_files, "write", lambda _, path, *rest: write(other, path, *rest))
    with pytest.raises(NotEquivalent, match="nothing was written"):
        export(small, tmp_path / "wrong.onnx", example_inputs=x)
    assert [p.name for p in tmp_path.iterdir()] == ["right.onnx"]


def test_what_rounding_makes_of_a_narrow_channel_is_tried_in_float64() -> None:
    """Of EfficientNet-B3 with random weights, float32 moved such channels by 55 times their range: a fifth stayed whole."""
    single = torch.tensor([[0.0, 100.0, 1.0], [1.0, 50.0, 1.01]])
    moved = single + torch.tensor([0.0, 0.0, 5.0])
    failed = Equivalence.of("x", [single], [moved], 1e-5)
    assert failed.needed_tolerance > 10
    same = [single.double()]
    told = _rounding_aside(failed, lambda: Equivalence.of("x", same, same, 1e-5))
    assert told
    assert told.what == "x, in float64"
    assert not _rounding_aside(failed, lambda: failed)
