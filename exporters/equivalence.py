"""Do two networks compute the same? Any pair of torch modules, our checkpoints and ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint import load
from compressor.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.errors import BadInput
from compressor.state import outputs_of

BATCHES = (1, 2, 7)
"""Batch sizes of a proof, after which the rest of the samples follows in batches of the last size."""

ONNX_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}

Network = nn.Module | str | Path
Runner = Callable[[tuple[Tensor, ...]], list[Tensor]]


def check_equivalence(
    a: Network,
    b: Network,
    inputs: tuple[Tensor, ...],
    *,
    what: str | None = None,
    tolerance: float | None = None,
    provider: str = "cpu",
) -> Equivalence:
    """Run both networks on batches of 1, 2 and 7 samples, then on the rest of `inputs`, and compare every output.

    Args:
        a: the reference: a module, or a path to `.pt`, `.safetensors` or `.onnx`.
        b: the other one.
        inputs: positional inputs `(samples, ...)`; fewer than ten samples are repeated.
        what: name of the comparison for reports.
        tolerance: allowed difference as a fraction of the reference's output range; by default 1e-5 between torch networks,
            1e-4 with ONNX Runtime on a CPU, 1e-3 on CUDA without TF32.
        provider: where ONNX files run, `cpu` or `cuda`.
    Returns:
        The outcome, true or false like a boolean, with the tolerance that would have been needed.
    """
    if tolerance is None:
        has_onnx = any(not isinstance(n, nn.Module) and Path(n).suffix == ".onnx" for n in (a, b))
        tolerance = ONNX_TOLERANCE[provider] if has_onnx else TORCH_TOLERANCE
    samples = max(sum(BATCHES), len(inputs[0]))
    rows = torch.arange(samples) % len(inputs[0])
    spread = tuple(x[rows.to(x.device)] for x in inputs)
    reference, candidate = (_in_batches(runner(n, provider), spread) for n in (a, b))
    return Equivalence.of(what or f"{_name(a)} = {_name(b)}", reference, candidate, tolerance)


def runner(network: Network, provider: str = "cpu") -> Runner:
    """A function from positional inputs to output tensors.

    Raises:
        BadInput: no such file, or one that cannot be run.
        MissingEnvironment: CUDA was asked and is not there.
    """
    if isinstance(network, nn.Module):
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        return lambda inputs: outputs_of(network, tuple(x.to(device) for x in inputs))
    path = Path(network)
    if path.suffix == ".onnx":
        from exporters.onnx import session_runner

        return session_runner(path, provider)
    if path.suffix not in (".pt", ".safetensors"):
        raise BadInput(f"{path}: unknown suffix; verify reads .pt, .safetensors and .onnx")
    model = load(path)
    return lambda inputs: outputs_of(model, inputs)


def _in_batches(run: Runner, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    sizes = list(BATCHES)
    while (left := len(inputs[0]) - sum(sizes)) > 0:
        sizes.append(min(BATCHES[-1], left))
    parts = [run(batch) for batch in zip(*(x.split(sizes) for x in inputs), strict=True)]
    return [torch.cat([torch.atleast_1d(part[n].cpu()) for part in parts]) for n in range(len(parts[0]))]


def _name(network: Network) -> str:
    return type(network).__name__ if isinstance(network, nn.Module) else Path(network).name
