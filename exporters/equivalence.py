"""Do two networks compute the same? Any pair of torch modules, our checkpoints and ONNX files."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint.checkpoint import load
from compressor.errors import BadInput, CompressError, first_line
from compressor.model.inputs import Inputs, as_inputs, each, precision_of, samples, suited
from compressor.model.observe import outputs_of
from compressor.proof.equivalence import TORCH_TOLERANCE, Equivalence

BATCHES = (1, 2, 7)
"""Batch sizes of a proof, after which the rest of the samples follows in batches of the last size."""

ONNX_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}

TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Where a network computes in half precision: some roundings, of 2^-11 and 2^-8, add up."""

Network = nn.Module | str | Path
Runner = Callable[[Inputs], list[Tensor]]


def check_equivalence(
    a: Network,
    b: Network,
    inputs: Inputs,
    *,
    what: str | None = None,
    tolerance: float | None = None,
    provider: str = "cpu",
) -> Equivalence:
    """Run both networks on batches of 1, 2 and 7 samples, then on the rest of `inputs`, and compare every output.

    Args:
        a: the reference: a module, or a path to `.onnx`, `.pt2` or a checkpoint that says of which network it is.
            Torch runs what a `.pt2` holds: only for files that are trusted.
        b: the other one.
        inputs: positional or named inputs `(samples, ...)`; fewer than ten samples are repeated.
        what: name of the comparison for reports.
        tolerance: allowed difference as a fraction of the range of each output channel of the reference, beside what is
            its own rounding (measured in float64 where `a` is a torch network); by default 1e-5 between torch networks,
            1e-4 with ONNX Runtime on a CPU, 1e-3 on CUDA without TF32; 5e-3 in float16, 4e-2 in bfloat16.
        provider: where ONNX files run, `cpu` or `cuda`.
    Raises:
        BadInput: one of them cannot be run on the inputs, or the reference gives no numbers.
    Returns:
        The outcome, true or false like a boolean, with the tolerance that would have been needed.
    """
    compared = [_opened(n, provider) for n in (a, b)]
    if tolerance is None:
        tolerance = max(loosest for _, loosest in compared)
    inputs = as_inputs(inputs)
    count = max(sum(BATCHES), samples(inputs))
    rows = torch.arange(count) % samples(inputs)
    spread = each(inputs, lambda x: x[rows.to(x.device)])
    what = what or f"{_name(a)} = {_name(b)}"
    labels = [f"{what}: {_name(n)}" for n in (a, b)]
    reference, candidate = (_in_batches(run, spread, label) for (run, _), label in zip(compared, labels, strict=True))
    if not all(bool(torch.isfinite(output).all()) for output in reference):
        halves = isinstance(a, nn.Module) and precision_of(a) is torch.float16
        why = "; float16 ends at 65,504: give the network in float32 or bfloat16" if halves else ""
        raise BadInput(f"{labels[0]}: gives NaN or infinite values on the inputs, which compare with nothing{why}")
    proof = Equivalence.of(what, reference, candidate, tolerance)
    if not proof and (exact := _exact(a, spread)) is not None:
        return Equivalence.of(what, reference, candidate, tolerance, exact)
    return proof


def _exact(network: Network, inputs: Inputs) -> list[Tensor] | None:
    """The outputs of a torch network of float32 in float64; None for others, and for code that insists on its precision."""
    if not isinstance(network, nn.Module):
        if Path(network).suffix in (".onnx", ".pt2"):
            return None
        network = load(network)
    if precision_of(network) is not torch.float32:
        return None
    try:
        twin = copy.deepcopy(network).double()
        return _in_batches(lambda given: outputs_of(twin, suited(twin, given)), inputs, _name(network))
    except BadInput:
        return None


def _opened(network: Network, provider: str) -> tuple[Runner, float]:
    """A function from inputs to output tensors, and the difference that its arithmetic may make.

    Raises:
        BadInput: no such file, or one that cannot be run.
        MissingEnvironment: CUDA was asked and is not there.
    """
    if isinstance(network, nn.Module):
        allowed = TOLERANCE.get(precision_of(network), TORCH_TOLERANCE)
        return lambda inputs: outputs_of(network, suited(network, inputs)), allowed
    path = Path(network)
    if path.suffix == ".onnx":
        from compressor.exporters.onnx import Session

        return Session(path, provider), ONNX_TOLERANCE[provider]
    if path.suffix == ".pt2":
        from compressor.exporters.torch_export import program_runner

        return program_runner(path), TORCH_TOLERANCE
    return _opened(load(path), provider)


def _in_batches(run: Runner, inputs: Inputs, name: str) -> list[Tensor]:
    sizes = list(BATCHES)
    while (left := samples(inputs) - sum(sizes)) > 0:
        sizes.append(min(BATCHES[-1], left))
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    try:
        parts = [run(each(inputs, operator.itemgetter(slice(a, a + size)))) for a, size in zip(starts, sizes, strict=True)]
    except CompressError:
        raise
    except Exception as error:  # the network's code or the runtime may raise anything
        raise BadInput(f"{name}: does not run on the inputs: {first_line(error)}") from error
    return [torch.cat([torch.atleast_1d(part[n].cpu()) for part in parts]) for n in range(len(parts[0]))]


def _name(network: Network) -> str:
    return type(network).__name__ if isinstance(network, nn.Module) else Path(network).name
