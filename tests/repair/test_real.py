"""A network that was trained on CIFAR-10 keeps most of its accuracy at half of its multiply-adds."""

from __future__ import annotations

from pathlib import Path

import torch

from compressor import compress, load
from compressor.data import Images, Samples, open_data
from compressor.objective.objective import Objective, evaluate
from tests import ROOT

KEPT = ROOT / "tests" / "kept" / "resnet20_cifar10.safetensors"
"""ResNet-20, 85.8 % on the test images, in half precision; made by `compress train resnet20 --data CIFAR10 --epochs 20 --recipe
snip --schedule cosine --precision bfloat16 --threads 1`."""


def test_half_of_the_multiply_adds_keep_most_of_the_accuracy(shared: Path) -> None:
    images = open_data(str(shared / "data" / "cifar10"))
    assert isinstance(images, Images)
    seen, test = Samples(images.train, (3, 32, 32), 512, 64), Samples(images.test, (3, 32, 32), 500, 250)
    model = load(KEPT).float().eval()
    result = compress(model, data=seen, target_macs=0.5)
    assert result.pruned is not None
    dense, pruned, repaired = (evaluate(m, Objective(test)).accuracy for m in (model, result.pruned, result.model))
    assert dense > 0.8
    assert pruned < 0.5
    assert dense - repaired < 0.07
    assert result.summary.after.macs < 0.51 * result.summary.before.macs
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())
