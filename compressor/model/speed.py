"""Faster passes over a frozen twin (see `compressor.model.observe.observed`): same values, less memory traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compressor.model.branches import in_branches
from compressor.model.inputs import Inputs, each, run, suited, tensors
from compressor.model.observe import observed
from compressor.settings import Pruning

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Only these very classes are folded."""

LARGE_MAP = 64
"""Positions of a feature map from which channels_last is the faster layout of a convolution on a CPU.

Measured on one AVX-512 core, float32, batch 64: 64 channels at 32x32 run at 193 GFLOP/s in channels_last and 112 in the default
layout; 512 channels at 4x4 at 116 and 182, at 2x2 at 48 and 158.
"""


FAST_MULTIPLE = 8
"""The multiple that kernels like widths to be: the float32 entries of one AVX2 register and half an AVX-512 one.

Measured on VGG16 at 93 % (`benchmarks/studies/widths.py`, ONNX Runtime, AVX-512): multiples of 8 run 1.45x as fast as exact
widths with one sample and 1.60x with 64, within 8 % of their multiply-adds. Multiples of 16 run another 1.5x as fast, but miss
the
multiply-adds by 18 % on some seeds. Unmeasured on a GPU, whose tensor cores take 16-bit operands in steps of 8.
"""


def multiple_of(settings: Pruning) -> int:
    """The multiple that widths are to be."""
    return FAST_MULTIPLE if settings.round_to == "auto" else settings.round_to


def fold_norms(model: nn.Module, norms: Mapping[str, str]) -> None:
    """Fold, in place, every batch norm that directly follows a layer into that layer's weights; eval mode only.

    What the readers see stays the same, and a tenth of a convolutional network's forward and backward time goes.
    """
    for layer_name, norm_name in norms.items():
        layer: Any = model.get_submodule(layer_name)
        norm: Any = model.get_submodule(norm_name)
        if type(norm) not in NORMS or norm.running_mean is None or type(layer) not in PLAIN:
            continue  # a subclass may do more than its base
        fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        layer.requires_grad_(False)
        parent, _, name = norm_name.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())


def best_layouts(model: nn.Module, inputs: Inputs) -> None:
    """Let every dense 2-d convolution on a CPU convert its input and weight, in place, to the layout that suits its map.

    A network that runs in the default layout only, since it flattens with `view`, stays in that.
    """
    dense = [m for m in model.modules() if type(m) is nn.Conv2d and m.groups == 1 and m.weight.device.type == "cpu"]
    handles = [module.register_forward_pre_hook(_suit_layout) for module in dense]
    if dense and not _runs(model, inputs):
        for module, handle in zip(dense, handles, strict=True):
            handle.remove()
            module.weight = nn.Parameter(module.weight.contiguous(), requires_grad=False)


def takes_channels_last(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a network of images runs in channels_last, in train mode's branches too; `view` after a convolution may not."""
    if not any(x.dim() == 4 for x in tensors(inputs)):
        return False
    with observed(model) as twin, in_branches(twin):
        try:
            twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        except RuntimeError:  # a volume's kernels have five dimensions
            return False
        return _runs(twin, inputs)


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    with torch.no_grad():
        try:
            run(model, suited(model, each(inputs, lambda x: x[:PROBED])))
        except RuntimeError:
            return False
    return True


PROBED = 2
"""Samples that show whether a network runs in a layout."""


def _suit_layout(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    assert isinstance(module, nn.Conv2d)
    if not inputs:  # called by keyword
        return inputs
    x = inputs[0]
    large = x.dim() == 4 and x.shape[2] * x.shape[3] >= LARGE_MAP
    layout = torch.channels_last if large else torch.contiguous_format
    if not module.weight.is_contiguous(memory_format=layout):
        module.weight = nn.Parameter(module.weight.contiguous(memory_format=layout), requires_grad=False)
    return (x.contiguous(memory_format=layout) if x.dim() == 4 else x, *inputs[1:])
