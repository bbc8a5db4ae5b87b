"""Writing networks for others to run, and proving that what was written computes the same."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from compressor.checkpoint import SUFFIXES as CHECKPOINTS
from compressor.checkpoint import write as write_checkpoint
from compressor.equivalence import Equivalence
from compressor.errors import NotEquivalent
from compressor.files import check_target, staged
from exporters.equivalence import check_equivalence

__all__ = ["SUFFIXES", "check_equivalence", "export"]

SCALES = (1, 100, 10_000)
"""Factors on the inputs of a proof, tried in turn until the output depends on them."""

SUFFIXES = (".onnx", *CHECKPOINTS)


def export(
    model: nn.Module, *paths: str | Path, example_inputs: tuple[Tensor, ...], providers: tuple[str, ...] = ("cpu",)
) -> list[Equivalence]:
    """Write a network to every path, by suffix; all are proven equal to `model` before any appears.

    Args:
        model: the network to write; it is left as found.
        paths: `.onnx`, `.safetensors`, `.pt`.
        example_inputs: positional inputs `(batch, ...)` for tracing and proof, real samples where there are some.
        providers: where ONNX files are run for the proof, `cpu` and/or `cuda`.
    Raises:
        NotEquivalent: a written file computes something else; nothing is left behind.
        BadInput: a target cannot be written.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        check_target(target, SUFFIXES)
    proofs: list[Equivalence] = []
    with staged(*targets) as temporary:
        for path, target in zip(temporary, targets, strict=True):
            if path.suffix == ".onnx":
                from exporters.onnx import write

                write(model, path, example_inputs)
            else:
                write_checkpoint(model, path)
            for provider in providers if path.suffix == ".onnx" else ("cpu",):
                proofs.append(_proven(model, path, target, example_inputs, provider))
    return proofs


def _proven(model: nn.Module, path: Path, target: Path, example_inputs: tuple[Tensor, ...], provider: str) -> Equivalence:
    """The proof of a written file, on inputs large enough that the output depends on them: a constant proves nothing."""
    for scale in SCALES:
        inputs = tuple(x * scale if x.is_floating_point() else x for x in example_inputs)
        proof = check_equivalence(model, path, inputs, what=f"small = {target.name}", provider=provider)
        if not proof:
            raise NotEquivalent(
                f"{target}: differs from the network by {proof.needed_tolerance:.1e} of its output's range, "
                f"{proof.tolerance:.0e} is allowed; nothing was written"
            )
        if proof.conclusive:
            return proof
    raise NotEquivalent(
        f"{target}: the network's output hardly depends on its input, so a proof says nothing; nothing was written; "
        "keep more nodes, or give batch norms statistics with --calibrate-bn"
    )
