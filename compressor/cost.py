"""What a network costs, without a clock: parameters, multiply-adds, storage. The only importer of fvcore and thop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compressor.inputs import Inputs, each, run, tensors
from compressor.quiet import quiet
from compressor.state import observed

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
INDEX_BITS = (2, 4, 8)


@dataclass(frozen=True)
class Cost:
    """Sizes of one network.

    Attributes:
        parameters: all entries of all parameters.
        weights: non-zero entries of the convolutions' and linear layers' weight tensors.
        macs: multiply-adds of one sample, inference; FLOPs are twice that.
        tensor_bytes: parameters and buffers as they lie in memory.
        csr_bytes: index bits -> estimated bytes of the weights in CSR, see `csr_bits`.
    """

    parameters: int
    weights: int
    macs: int
    tensor_bytes: int
    csr_bytes: dict[int, int]


def cost(model: nn.Module, inputs: Inputs) -> Cost:
    """Count a network on one sample."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, LAYERS)]
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        weights=sum(int(torch.count_nonzero(w)) for w in weights),
        macs=macs(model, inputs),
        tensor_bytes=tensor_bytes(model),
        csr_bytes={bits: math.ceil(sum(csr_bits(w, bits) for w in weights) / 8) for bits in INDEX_BITS},
    )


def tensor_bytes(model: nn.Module) -> int:
    """Parameters and buffers as they lie in memory."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one sample of `inputs`, by torch's own counter (convolutions and matrix products)."""
    counter = FlopCounterMode(display=False)
    with observed(model) as twin, torch.no_grad(), counter:
        run(twin, each(inputs, lambda x: x[:1]))
    return counter.get_total_flops() // 2


def macs_by_fvcore(model: nn.Module, inputs: Inputs) -> int:
    """The same count by fvcore, as a cross-check: its convolutions and linear layers only."""
    with observed(model) as twin, quiet():
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(twin, tuple(x[:1] for x in tensors(inputs)))
        counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    return int(sum(counts[name] for name in ("conv", "linear", "addmm", "matmul")))


def macs_by_thop(model: nn.Module, inputs: Inputs) -> int:
    """The same count by thop, as a cross-check: convolutions and linear layers only."""
    with observed(model) as twin, quiet():
        import thop

        _, _, layers = thop.profile(twin, tuple(x[:1] for x in tensors(inputs)), verbose=False, ret_layer_info=True)
        return int(_of_layers(twin, layers))


def csr_bits(weight: Tensor, index_bits: int) -> int:
    """Estimated bits of a weight in CSR: nnz * (32 + index bits) + 2 * (min(rows, columns) + 1), viewed as (out, rest).

    The paper's compression figures use 2 index bits.
    """
    rows = weight.shape[0]
    return int(torch.count_nonzero(weight)) * (32 + index_bits) + 2 * (min(rows, weight.numel() // rows) + 1)


def _of_layers(module: nn.Module, info: dict) -> float:
    """thop's nested counts, convolutions and linear layers only."""
    total = 0.0
    for name, child in module.named_children():
        operations, _, deeper = info.get(name, (0, 0, {}))
        total += operations if isinstance(child, LAYERS) else _of_layers(child, deeper)
    return total
