"""ONNX: one file with the weights inside and a dynamic batch, and a runtime session to prove it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from compressor.errors import BadInput, MissingEnvironment, UnsupportedNetwork, first_line
from compressor.inputs import Inputs, arguments, each, suited, tensors
from compressor.quiet import quiet
from compressor.state import observed
from compressor.types import InputSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


LARGEST = 2**31
"""Bytes that one protobuf, and so one ONNX file, can hold."""


def write(model: nn.Module, path: Path, example_inputs: Inputs, wanted: int | None = None) -> int:
    """Write exactly this file and return its opset.

    Args:
        example_inputs: `(batch, ...)` each. Two samples are traced: with one, the batch would be fixed.
        wanted: the opset; the exporter's own choice by default.
    Raises:
        UnsupportedNetwork: an operator has no ONNX form, in this opset, or the weights are more than one file can hold.
    """
    check_size(model)
    two = each(example_inputs, lambda x: torch.cat([x, x])[:2].cpu())
    batch = torch.export.Dim("batch")
    with observed(model) as twin, quiet():
        twin = twin.cpu()
        positional, named = arguments(suited(twin, two))
        names = list(named) or [f"input{n}" if n else "input" for n in range(len(positional))]
        try:
            program = torch.onnx.export(
                twin,
                positional,
                kwargs=named or None,
                dynamo=True,
                external_data=False,
                input_names=names,
                dynamic_shapes={name: {0: batch} for name in named} if named else tuple({0: batch} for _ in positional),
                opset_version=wanted,
                verbose=False,
            )
        except Exception as error:  # the exporter's errors share no base
            reason = first_line(error.__cause__ or error)
            raise UnsupportedNetwork(f"the network cannot be written as ONNX: {reason}; write .safetensors instead") from error
        assert program is not None
        written = program.model_proto
    for part in (written.graph, *written.graph.node, *written.graph.input, *written.graph.output, *written.graph.value_info):
        part.ClearField("metadata_props")  # stack traces with the paths of whoever exported
    if wanted is not None and opset(written) != wanted:
        raise UnsupportedNetwork(f"the network cannot be written in opset {wanted}, only in {opset(written)}; choose --opset")
    onnx.save(written, path)
    onnx.checker.check_model(path)
    return opset(written)


def check_size(model: nn.Module) -> None:
    """Refuse a network whose weights are more than one ONNX file can hold.

    Raises:
        UnsupportedNetwork: naming the size and the formats that can.
    """
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size >= LARGEST:
        raise UnsupportedNetwork(
            f"the weights are {size / 2**30:.1f} GiB, one ONNX file holds less than 2; "
            "write .safetensors or .pt2 instead, or remove more nodes"
        )


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a model asks for."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def input_specs(path: Path) -> tuple[InputSpec, ...]:
    """What the file takes, one sample each; a size that is open is 0.

    Raises:
        BadInput: not an ONNX file.
    """
    return tuple(
        InputSpec(tuple(d.dim_value for d in i.type.tensor_type.shape.dim[1:]), _DTYPES.get(i.type.tensor_type.elem_type, "?"))
        for i in _load(path).graph.input
    )


_DTYPES = {
    onnx.TensorProto.DataType.Value(name): ours
    for name, ours in (
        ("FLOAT", "float32"), ("DOUBLE", "float64"), ("FLOAT16", "float16"), ("BFLOAT16", "bfloat16"),
        ("INT64", "int64"), ("INT32", "int32"), ("UINT8", "uint8"), ("BOOL", "bool"),
    )
}  # fmt: skip


def session_runner(path: Path, provider: str = "cpu") -> Callable[[Inputs], list[Tensor]]:
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
            hint = "; it knows few operators in bfloat16: write .safetensors, .pt2 or .pt" if _is_bfloat16(path) else ""
            raise BadInput(f"{path}: ONNX Runtime cannot run it ({first_line(error)}){hint}") from error
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise MissingEnvironment(f"ONNX Runtime has no working {PROVIDERS[provider]} here; use --device cpu")
    takes = {i.name: _PRECISION.get(i.type) for i in session.get_inputs()}

    def run(inputs: Inputs) -> list[Tensor]:
        given = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(takes, inputs, strict=False))
        if given.keys() != takes.keys() or len(given) != len(tensors(inputs)):
            raise BadInput(f"{path}: takes {', '.join(takes)}; name them so with --input NAME:DTYPE:SHAPE")
        cast = {n: x.to(takes[n]) if takes[n] and x.is_floating_point() else x for n, x in given.items()}
        return [torch.from_numpy(y) for y in session.run(None, {n: x.detach().cpu().numpy() for n, x in cast.items()})]

    return run


_PRECISION = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


def _is_bfloat16(path: Path) -> bool:
    return any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in _load(path).graph.initializer)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's errors share no base
        raise BadInput(f"{path}: not an ONNX file ({type(error).__name__})") from error
    if not model.graph.input:
        raise BadInput(f"{path}: not an ONNX file (it has no inputs)")
    return model
