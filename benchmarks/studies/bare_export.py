"""What `startup` compares commands with: `python bare_export.py [OUT.onnx]`.

It imports torch, builds LeNet5 and exports it: by `torch.export` alone, or to a file that it runs once in ONNX Runtime.
"""

from __future__ import annotations

import sys

import torch
from torch import nn


def lenet5() -> nn.Module:
    """The LeNet5 that `compress new lenet5` makes, in torch alone; initialised by torch."""

    def conv(inputs: int, outputs: int, padding: int = 0) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 5, padding=padding), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.05, inplace=True)]

    features = nn.Sequential(*conv(1, 6, 2), nn.MaxPool2d(2), *conv(6, 16), nn.MaxPool2d(2), *conv(16, 120))
    dense = [nn.Linear(9 * 120, 84), nn.BatchNorm1d(84), nn.LeakyReLU(0.05, inplace=True), nn.Dropout(0.3), nn.Linear(84, 10)]
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.3), *dense)


def traced() -> None:
    """Export one sample."""
    torch.export.export(lenet5().eval(), (torch.randn(1, 1, 28, 28),))


def written(path: str) -> None:
    """Export to a file, with a dynamic batch as ours has, and run the file."""
    import onnxruntime

    model, x = lenet5().eval(), torch.randn(2, 1, 28, 28)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, dynamic_shapes=(batch,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert logits.shape == (2, 10)


if __name__ == "__main__":
    written(sys.argv[1]) if sys.argv[1:] else traced()
