"""All that a command writes: networks, each proven, and the texts that tell of them appear together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from compressor.exporters import Written, exporting
from compressor.model.inputs import Inputs
from compressor.system.files import staged

Document = dict[str, Any]


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
        texts: path -> text, made from the document.
        document_of: the report, from the proofs and sizes of what was written.
        constant: the network is known to give the same whatever its input.
    """
    with (
        exporting(
            network, *outputs, example_inputs=example_inputs, providers=providers, opset=opset, constant=constant
        ) as written,
        staged(*texts) as files,
    ):
        document = document_of(written)
        for file, text_of in zip(files, texts.values(), strict=True):
            file.write_text(text_of(document) + "\n", encoding="utf-8")
    return document
