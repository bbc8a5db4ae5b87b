"""Writing networks for others to run, and proving that what was written computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from compressor.checkpoint.checkpoint import load
from compressor.checkpoint.checkpoint import write as write_checkpoint
from compressor.errors import CompressError, NotEquivalent
from compressor.exporters.equivalence import check_equivalence
from compressor.model.inputs import Inputs, as_inputs, scaled
from compressor.model.origin import origin_of
from compressor.options import spelled
from compressor.proof.equivalence import Equivalence
from compressor.system.files import WRITTEN, check_target, staged

__all__ = ["check_equivalence", "checked", "export", "write_proven"]

SCALES = (1, 100, 10_000)
"""Factors on the inputs of a proof, tried in turn until the output depends on them."""


def export(
    model: nn.Module,
    *paths: str | Path,
    example_inputs: Inputs,
    providers: tuple[str, ...] = ("cpu",),
    opset: int | None = None,
) -> list[Equivalence]:
    """Write a network to every path, by suffix; all are proven equal to `model` before any appears.

    Args:
        model: the network to write; it is left as found.
        paths: `.onnx`, `.pt2`, `.safetensors`, `.pt`.
        example_inputs: positional or named inputs `(batch, ...)` for tracing and proof, real samples where there are some.
        providers: where ONNX files are run for the proof, `cpu` and/or `cuda`.
        opset: of ONNX files; the exporter's own choice by default.
    Raises:
        NotEquivalent: a written file computes something else; nothing is left behind.
        UnsupportedNetwork: a format cannot hold the network.
        BadInput: a target cannot be written.
    """
    targets = checked(paths)
    with staged(*targets) as temporary:
        return write_proven(model, temporary, targets, example_inputs=example_inputs, providers=providers, opset=opset)


def checked(paths: Sequence[str | Path]) -> list[Path]:
    """Targets of an export that can be written.

    Raises:
        BadInput: one cannot.
        WrongUsage: an unknown suffix.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        check_target(target, WRITTEN)
    return targets


def write_proven(
    model: nn.Module,
    temporary: Sequence[Path],
    targets: Sequence[Path],
    *,
    example_inputs: Inputs,
    providers: tuple[str, ...] = ("cpu",),
    opset: int | None = None,
    constant: bool = False,
) -> list[Equivalence]:
    """Write a network to every temporary file and prove it; messages speak of the targets. Other arguments as in `export`.

    Args:
        constant: the network is known to give the same whatever its input, which is refused else.
    """
    inputs, proofs = as_inputs(example_inputs), list[Equivalence]()
    for path, target in zip(temporary, targets, strict=True):
        with named_as(path, target):
            proofs += _written(model, path, target, inputs, providers, opset, constant)
    return proofs


def _written(
    model: nn.Module, path: Path, target: Path, inputs: Inputs, providers: tuple[str, ...], opset: int | None, constant: bool
) -> list[Equivalence]:
    """Write one file and prove it."""
    if path.suffix == ".onnx":
        from compressor.exporters.onnx import write as write_onnx

        write_onnx(model, path, inputs, opset)
        return [_proven(model, path, target, inputs, constant, provider) for provider in providers]
    if path.suffix == ".pt2":
        from compressor.exporters.torch_export import write as write_program

        write_program(model, path, inputs)
        return [_proven(model, path, target, inputs, constant)]
    write_checkpoint(model, path)
    origin = origin_of(model)
    return [_proven(model, load(path, network=origin.network if origin else None), target, inputs, constant)]


@contextmanager
def named_as(path: Path, target: Path) -> Iterator[None]:
    """Errors speak of the target, not of the temporary file."""
    try:
        yield
    except CompressError as error:
        if path.name not in str(error):
            raise
        raise type(error)(str(error).replace(str(path), str(target)).replace(path.name, target.name)) from error


def _proven(
    model: nn.Module, written: Path | nn.Module, target: Path, example_inputs: Inputs, constant: bool, provider: str = "cpu"
) -> Equivalence:
    """The proof of a written file, on inputs large enough that the output depends on them: a constant proves nothing."""
    for scale in SCALES:
        inputs = scaled(example_inputs, scale)
        proof = check_equivalence(model, written, inputs, what=f"small = {target.name}", provider=provider)
        if not proof:
            raise NotEquivalent(
                f"{target}: differs from the network by {proof.needed_tolerance:.1e} of its output's range, "
                f"{proof.tolerance:.0e} is allowed; nothing was written"
            )
        if proof.conclusive or constant:
            return proof
    raise NotEquivalent(
        f"{target}: the network's output hardly depends on its input, so a proof says nothing; nothing was written; "
        f"keep more nodes, or give batch norms statistics with {spelled('calibrate_bn', True)}"
    )
