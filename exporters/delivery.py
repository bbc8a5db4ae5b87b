"""All that a command writes: networks, each proven, and the texts that tell of them appear together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from compressor.exporters import checked, write_proven
from compressor.model.inputs import Inputs
from compressor.proof.equivalence import Equivalence
from compressor.system.files import staged

Document = dict[str, Any]


class Written(NamedTuple):
    """What was written and will appear: the proofs, and the bytes of each network's file."""

    proofs: list[Equivalence]
    sizes: dict[Path, int]


def deliver(
    network: nn.Module,
    outputs: Sequence[Path],
    texts: Mapping[Path, Callable[[Document], str]],
    document_of: Callable[[Written], Document],
    example_inputs: Inputs,
    *,
    providers: tuple[str, ...] = ("cpu",),
    opset: int | None = None,
    constant: bool = False,
) -> Document:
    """Write a network to every path, and the texts; the document that tells of it.

    Args:
        outputs: as in `export`, and so are the other arguments and errors.
        texts: path -> text, made from the document. They appear after the networks, the last of them last of all.
        document_of: the report, from the proofs and sizes of what was written.
        constant: the network is known to give the same whatever its input.
    """
    targets = checked(outputs)
    with staged(*targets, *texts) as temporary:
        files = temporary[: len(targets)]
        proofs = write_proven(
            network, files, targets, example_inputs=example_inputs, providers=providers, opset=opset, constant=constant
        )
        sizes = {target: file.stat().st_size for file, target in zip(files, targets, strict=True)}
        document = document_of(Written(proofs, sizes))
        for file, text_of in zip(temporary[len(targets) :], texts.values(), strict=True):
            file.write_text(text_of(document) + "\n", encoding="utf-8")
    return document
