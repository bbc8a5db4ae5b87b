"""What a network costs, without a clock: parameters, multiply-adds, storage. The only importer of fvcore and thop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from compressor.model.inputs import Inputs, each, run, tensors
from compressor.model.observe import observed, tensors_in
from compressor.model.weights import LAYERS, weight_matrices
from compressor.system.quiet import quiet

Size = Sequence[int]

INDEX_BITS = (2, 4, 8)


@dataclass(frozen=True)
class Cost:
    """Sizes of one network.

    Attributes:
        parameters: all entries of all parameters.
        weights: non-zero entries of the weight tensors of convolutions, linear layers and recurrent cells.
        macs: multiply-adds of one sample, inference; FLOPs are twice that.
        tensor_bytes: parameters and buffers as they lie in memory.
        csr_bytes: index bits -> estimated bytes of the weights in CSR, see `csr_bits`.
        csr_int32_bytes: of a real CSR with int32 indices, see `csr_int32`.
    """

    parameters: int
    weights: int
    macs: int
    tensor_bytes: int
    csr_bytes: dict[int, int]
    csr_int32_bytes: int = 0


def cost(model: nn.Module, inputs: Inputs) -> Cost:
    """Count a network on one sample."""
    weights = weight_matrices(model)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        weights=sum(int(torch.count_nonzero(w)) for w in weights),
        macs=macs(model, inputs),
        tensor_bytes=tensor_bytes(model),
        csr_bytes={bits: math.ceil(sum(csr_bits(w, bits) for w in weights) / 8) for bits in INDEX_BITS},
        csr_int32_bytes=sum(csr_int32(w) for w in weights),
    )


def tensor_bytes(model: nn.Module) -> int:
    """Parameters and buffers as they lie in memory."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def stored_bytes(path: Path, model: nn.Module) -> int:
    """Bytes of a network's file, or folder; of its tensors alone where the file holds much else, as an optimizer's state."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    found, tensors = sum(file.stat().st_size for file in files), tensor_bytes(model)
    return found if files and found <= BESIDE * tensors + 100_000 else tensors


BESIDE = 1.2
"""Times the bytes of its tensors that a network's file has at most: names, masks and plans are few."""


def macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one sample of `inputs`, see `count`."""
    return count(model, inputs).macs


@dataclass(frozen=True)
class Count:
    """Multiply-adds of one sample, by where and by what; FLOPs are twice that.

    Attributes:
        by_operator: ATen operator -> multiply-adds.
        by_layer: module -> multiply-adds of its own, without its children's; "" is the network itself.
        norms: entries that normalisation layers wrote, one multiply-add each; not part of `macs`, as no counter has them.
        uncounted: operators that may multiply and that nobody counts.
    """

    by_operator: dict[str, int]
    by_layer: dict[str, int]
    norms: int
    uncounted: tuple[str, ...]

    @property
    def macs(self) -> int:
        """The total."""
        return sum(self.by_operator.values())


def count(model: nn.Module, inputs: Inputs) -> Count:
    """Count one forward pass of one sample in eval mode, by torch's own counter, on a CPU.

    Attention is counted in its written-out form, Q K^T and A V, for the counter does not know the CPU's fused kernel.
    """
    with observed(model) as twin:
        return _counted(twin.cpu(), each(inputs, lambda x: x[:1].cpu()), samples=1)


def count_shapes(model: nn.Module, inputs: Inputs) -> Count:
    """The same count of a network without values, on the meta device: nothing is computed but shapes.

    Raises:
        RuntimeError, or whatever the network's code raises: it looks at values.
    """
    with observed(model) as twin:
        return _counted(twin, each(inputs, lambda x: x[:1].to("meta")), samples=1)


def count_training(model: nn.Module, inputs: Inputs) -> Count:
    """Count forward and backward of one training step, per sample; a pass of two, which batch norms need.

    Raises:
        RuntimeError: the network does not run in train mode.
    """
    with observed(model) as twin, torch.enable_grad():
        twin.cpu().train()
        wanted = dict(model.named_parameters(remove_duplicate=False))
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(wanted[name].requires_grad)
        two = each(inputs, lambda x: torch.cat([x, x])[:2].cpu())
        return _counted(twin, two, samples=2)


def _counted(model: nn.Module, inputs: Inputs, samples: int) -> Count:
    counter, watcher = FlopCounterMode(display=False, custom_mapping=_FORMULAS), _Operators()
    # the fused forms of attention are unknown to the counter, the written-out ones are not
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(model.training), counter, watcher:
            outputs = [y for y in tensors_in(run(model, inputs)) if y.requires_grad]
            if outputs:
                torch.autograd.backward([y.sum() for y in outputs])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    totals = {name: sum(flops.values()) for name, flops in counter.flop_counts.items() if name != "Global"}
    own = dict(totals)
    for name, total in totals.items():
        if (above := _above(name, totals)) is not None:
            own[above] -= total
    root = type(model).__name__
    by_layer = {name.removeprefix(root).removeprefix("."): n // (2 * samples) for name, n in own.items() if n}
    operators = {str(op).removeprefix("aten."): n // (2 * samples) for op, n in counter.flop_counts["Global"].items()}
    return Count(operators, by_layer, watcher.norms // samples, tuple(sorted(watcher.uncounted)))


def _above(name: str, totals: dict[str, int]) -> str | None:
    """The nearest module around another that is called itself (a list of modules is not)."""
    while name:
        name = name.rpartition(".")[0]
        if name in totals:
            return name
    return None


def _recurrent(x: Size, weights: Size, recurrent: Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of one direction of an LSTM over `(steps, batch, inputs)`: every weight meets every step and sample once."""
    return 2 * x[0] * x[1] * (math.prod(weights) + math.prod(recurrent))


def _convolution_backward(gradient: Size, x: Size, weight: Size, *rest: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of the gradients asked for: each is a convolution like the forward one; torch's own formula forgets the groups."""
    transposed, mask = rest[4], rest[7]
    forward = 2 * math.prod(x if transposed else gradient) * math.prod(weight[1:])
    return forward * (int(mask[0]) + int(mask[1]))


_FORMULAS: dict[Any, Any] = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten.mkldnn_rnn_layer_backward: lambda *sizes, **others: 2 * _recurrent(*sizes, **others),
    torch.ops.aten.convolution_backward: _convolution_backward,
}


class _Operators(TorchDispatchMode):
    """Notes the operators that multiply and that the counter does not know, and what norms write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no types
        self.norms = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        packet, name = func.overloadpacket, func.overloadpacket.__name__
        if name in NORMS:
            self.norms += next(tensors_in(outputs)).numel()
        elif packet not in flop_registry and packet not in _FORMULAS and not _is_free(func, name):
            self.uncounted.add(name)
        return outputs


NORMS = (
    "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "native_layer_norm", "native_group_norm", "_fused_rms_norm",
)  # fmt: skip


def _is_free(func: Any, name: str) -> bool:
    """Whether an operator needs no multiply-adds beyond a few for each entry: it moves, compares, pools or normalises."""
    if func.namespace != "aten" or "attention" in name:
        return False
    if func.is_view or FREE_TAGS.intersection(func.tags):
        return True
    return name.removesuffix("_backward").removesuffix("_") in FREE


FREE_TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.nondeterministic_seeded}
FREE = frozenset((
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_fused_rms_norm", "_index_put_impl", "_local_scalar_dense",
    "_log_softmax", "_reshape_alias", "_safe_softmax", "_softmax", "_to_copy", "_unsafe_index", "_unsafe_index_put",
    "_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "alias", "all", "any", "arange", "argmax", "argmin", "as_strided", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "batch_norm", "cat", "channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy", "cumsum",
    "detach", "embedding", "embedding_dense", "empty", "empty_like", "empty_strided", "eye", "fill", "flip", "full",
    "full_like", "gather", "index", "index_add", "index_copy", "index_fill", "index_put", "index_select", "is_nonzero",
    "lift_fresh", "linalg_vector_norm", "linspace", "masked_fill", "masked_scatter", "masked_select", "max", "max_pool2d",
    "max_pool2d_with_indices", "max_pool3d_with_indices", "mean", "median", "min", "native_batch_norm",
    "native_group_norm", "native_layer_norm", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros",
    "nonzero", "norm", "one_hot", "ones", "ones_like", "pad", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d",
    "reflection_pad2d", "repeat", "repeat_interleave", "replication_pad2d", "reshape", "resize", "roll", "scalar_tensor",
    "scatter", "scatter_add", "select", "select_backward", "select_scatter", "set", "slice", "slice_backward",
    "slice_scatter", "sort", "split_with_sizes_copy", "squeeze", "stack", "std", "sum", "t", "tile", "topk", "transpose",
    "tril", "triu", "unbind", "unfold_backward", "unique", "unsafe_split", "unsafe_split_with_sizes", "unsqueeze",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_trilinear3d", "var", "var_mean", "zero", "zeros", "zeros_like",
))  # fmt: skip
"""Operators that need no multiply-adds, and whose tags do not say so."""


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


def csr_int32(weight: Tensor) -> int:
    """Bytes of a weight in CSR as libraries store it, viewed as (out, rest): values, int32 columns, int32 row starts."""
    return int(torch.count_nonzero(weight)) * (weight.element_size() + 4) + 4 * (weight.shape[0] + 1)


def _of_layers(module: nn.Module, info: dict[str, Any]) -> float:
    """thop's nested counts, convolutions and linear layers only."""
    total = 0.0
    for name, child in module.named_children():
        operations, _, deeper = info.get(name, (0, 0, {}))
        total += operations if isinstance(child, LAYERS) else _of_layers(child, deeper)
    return total
