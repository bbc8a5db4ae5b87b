"""ONNX: one file with the weights inside and a dynamic batch, and a runtime session to prove it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from compressor.errors import BadInput, MissingEnvironment, UnsupportedNetwork, first_line
from compressor.quiet import quiet
from compressor.state import observed

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def write(model: nn.Module, path: Path, example_inputs: tuple[Tensor, ...]) -> int:
    """Write exactly this file and return its opset.

    Args:
        example_inputs: positional inputs `(batch, ...)`. Two samples are traced: with one, the batch would be fixed.
    """
    two = tuple(torch.cat([x, x])[:2].cpu() for x in example_inputs)
    names = [f"input{n}" if n else "input" for n in range(len(two))]
    batch = torch.export.Dim("batch")
    with observed(model) as twin, quiet():
        try:
            program = torch.onnx.export(
                twin.cpu(),
                two,
                dynamo=True,
                external_data=False,
                input_names=names,
                dynamic_shapes=tuple({0: batch} for _ in two),
                verbose=False,
            )
        except Exception as error:  # the exporter's errors share no base
            reason = first_line(error.__cause__ or error)
            raise UnsupportedNetwork(f"the network cannot be written as ONNX: {reason}; write .safetensors instead") from error
        assert program is not None
        written = program.model_proto
    for part in (written.graph, *written.graph.node, *written.graph.input, *written.graph.output, *written.graph.value_info):
        part.ClearField("metadata_props")  # stack traces with the paths of whoever exported
    onnx.save(written, path)
    onnx.checker.check_model(path)
    return opset(written)


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a model asks for."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def input_shape(path: Path) -> tuple[int, ...]:
    """Shape of one sample of the first input.

    Raises:
        BadInput: not an ONNX file.
    """
    model = _load(path)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims[1:])


def session_runner(path: Path, provider: str = "cpu") -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    """A runtime session on exactly that provider, as a function from inputs to outputs.

    Raises:
        BadInput: not an ONNX file that the runtime takes.
        MissingEnvironment: the session fell back to another provider.
    """
    import onnxruntime

    _load(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    settings = {"use_tf32": 0} if provider == "cuda" else {}
    with quiet():
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=[(PROVIDERS[provider], settings)])
        except Exception as error:  # onnxruntime raises a class of its own for each failure
            raise BadInput(f"{path}: ONNX Runtime cannot run it ({first_line(error)})") from error
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise MissingEnvironment(f"ONNX Runtime has no working {PROVIDERS[provider]} here; use --device cpu")
    names = [i.name for i in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        feeds = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's errors share no base
        raise BadInput(f"{path}: not an ONNX file ({type(error).__name__})") from error
    if not model.graph.input:
        raise BadInput(f"{path}: not an ONNX file (it has no inputs)")
    return model
