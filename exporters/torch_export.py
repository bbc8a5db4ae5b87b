"""`.pt2`: an exported program, which runs wherever torch does, without this package or the network's own code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import BadInput, UnsupportedNetwork, first_line
from compressor.model.inputs import Inputs, arguments, each, suited
from compressor.model.observe import observed, tensors_in
from compressor.system.quiet import quiet

LEAKING = ("stack_trace", "torch_fn", "source_fn_stack")
"""What the tracer notes at each operator: among it the paths of whoever exported."""


def write(model: nn.Module, path: Path, example_inputs: Inputs) -> None:
    """Write exactly this file, for the CPU, in eval mode, with a dynamic batch."""
    two = each(example_inputs, lambda x: torch.cat([x, x])[:2].cpu())
    batch = torch.export.Dim("batch")
    with observed(model) as twin, quiet():
        twin = twin.cpu()
        positional, named = arguments(suited(twin, two))
        shapes = {name: {0: batch} for name in named} if named else tuple({0: batch} for _ in positional)
        try:
            program = torch.export.export(twin, positional, named, dynamic_shapes=shapes)
        except Exception as error:  # torch.export raises whatever the network's code provokes
            raise UnsupportedNetwork(
                f"the network cannot be exported with a dynamic batch: {first_line(error)}; write .pt or .safetensors instead"
            ) from error
        for node in program.graph.nodes:
            for note in LEAKING:
                node.meta.pop(note, None)
        program.example_inputs = None  # else the samples, with all the memory they are views of, would be written too
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def program_runner(path: Path) -> Callable[[Inputs], list[Tensor]]:
    """A `.pt2` file as a function from inputs to outputs. Only for a file that is trusted: torch unpickles and evaluates it.

    Raises:
        BadInput: not such a file.
    """
    if not zipfile.is_zipfile(path):
        raise BadInput(f"{path}: not a .pt2 file, or cut short")
    with quiet():
        try:
            module = torch.export.load(path).module()
        except Exception as error:  # its reader raises whatever a damaged archive provokes
            raise BadInput(f"{path}: not a .pt2 file that this torch can read ({first_line(error)})") from error

    def run(inputs: Inputs) -> list[Tensor]:
        positional, named = arguments(suited(module, each(inputs, lambda x: x.cpu())))
        with torch.no_grad():
            return list(tensors_in(module(*positional, **named)))

    return run
