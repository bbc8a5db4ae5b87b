"""ONNX: one file with the weights inside and a dynamic batch, and a runtime session to prove it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compressor.errors import BadInput, MissingEnvironment, UnsupportedNetwork, first_line
from compressor.model.inputs import Inputs, arguments, each, suited, tensors
from compressor.model.observe import observed
from compressor.options import spelled
from compressor.system.quiet import quiet
from compressor.types.origin import InputSpec

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
        raise UnsupportedNetwork(
            f"the network cannot be written in opset {wanted}, only in {opset(written)}; choose that {spelled('opset')}"
        )
    onnx.save(written, path)
    onnx.checker.check_model(path)
    return opset(written)


def available() -> tuple[str, ...]:
    """Version of ONNX Runtime and the providers that it was built with."""
    import onnxruntime

    return (onnxruntime.__version__, *onnxruntime.get_available_providers())


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
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def input_specs(path: Path) -> tuple[InputSpec, ...]:
    """What the file takes, one sample each; a size that is open is 0.

    Raises:
        BadInput: not an ONNX file.
    """
    return tuple(
        InputSpec(tuple(d.dim_value for d in i.type.tensor_type.shape.dim[1:]), _DTYPES.get(i.type.tensor_type.elem_type, "?"))
        for i in _inputs(_load(path))
    )


_DTYPES = {
    onnx.TensorProto.DataType.Value(name): ours
    for name, ours in (
        ("FLOAT", "float32"), ("DOUBLE", "float64"), ("FLOAT16", "float16"), ("BFLOAT16", "bfloat16"),
        ("INT64", "int64"), ("INT32", "int32"), ("UINT8", "uint8"), ("BOOL", "bool"),
    )
}  # fmt: skip


LONGEST = 600
"""Seconds for one batch: loops in a file may have no end."""


class Session:
    """A runtime session on exactly one provider: a function from inputs to outputs, or bound to fixed inputs for a clock.

    Raises:
        BadInput: not an ONNX file that the runtime takes.
        MissingEnvironment: the session fell back to another provider.
    """

    def __init__(self, path: Path, provider: str = "cpu", threads: int | None = None) -> None:
        import onnxruntime

        _load(path)
        self.path, self.provider = path, provider
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        settings = {"use_tf32": 0} if provider == "cuda" else {}
        with quiet():
            try:
                self._session = onnxruntime.InferenceSession(str(path), options, providers=[(PROVIDERS[provider], settings)])
            except Exception as error:  # onnxruntime raises a class of its own for each failure
                hint = "; it knows few operators in bfloat16: write .safetensors, .pt2 or .pt" if _is_bfloat16(path) else ""
                raise BadInput(f"{path}: ONNX Runtime cannot run it ({first_line(error)}){hint}") from error
        if self._session.get_providers()[0] != PROVIDERS[provider]:
            raise MissingEnvironment(f"ONNX Runtime has no working {PROVIDERS[provider]} here; use {spelled('device', 'cpu')}")
        self._takes = {i.name: _PRECISION.get(i.type) for i in self._session.get_inputs()}

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The outputs of one batch, on the CPU.

        Raises:
            BadInput: the file takes other inputs, or its network does not end within `LONGEST` seconds.
        """
        import onnxruntime

        options, feed = onnxruntime.RunOptions(), self._feed(inputs)
        with ThreadPoolExecutor(1) as worker:  # in another thread, so that this one hears an interrupt
            try:
                return [torch.from_numpy(y) for y in worker.submit(self._session.run, None, feed, options).result(LONGEST)]
            except TimeoutError as error:
                raise BadInput(f"{self.path}: does not end within {LONGEST} s") from error
            finally:
                options.terminate = True  # else leaving would wait for a loop without end

    def bound(self, inputs: Inputs) -> Callable[[], object]:
        """One pass over inputs that already lie on the provider's device, outputs left there: what is worth timing."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, x in self._feed(inputs).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x, self.provider, 0))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, self.provider)
        return lambda: self._session.run_with_iobinding(binding)

    def _feed(self, inputs: Inputs) -> dict[str, Any]:
        takes = self._takes
        given = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(takes, inputs, strict=False))
        if given.keys() != takes.keys() or len(given) != len(tensors(inputs)):
            raise BadInput(f"{self.path}: takes {', '.join(takes)}; name them so: {spelled('inputs', 'NAME:DTYPE:SHAPE')}")
        cast = {n: x.to(takes[n]) if takes[n] and x.is_floating_point() else x for n, x in given.items()}
        return {n: x.detach().cpu().numpy() for n, x in cast.items()}


_PRECISION = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


def _is_bfloat16(path: Path) -> bool:
    return any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in _load(path).graph.initializer)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's errors share no base
        outside = isinstance(error, onnx.checker.ValidationError)
        why = f"its external data cannot be read: {first_line(error)}" if outside else type(error).__name__
        raise BadInput(f"{path}: not an ONNX file ({why})") from error
    if not model.graph.input:
        raise BadInput(f"{path}: not an ONNX file (it has no inputs)")
    return model


def count(path: Path, inputs: Inputs) -> tuple[dict[str, int], tuple[str, ...]]:
    """Multiply-adds of one sample, operator -> number, and the operators that may multiply and are not counted.

    Args:
        inputs: what the file is run on; sizes that it leaves open are taken from them.
    Raises:
        BadInput: not an ONNX file, or one whose shapes cannot be inferred.
    """
    model = _load(path)
    takes = _inputs(model)
    given = dict(inputs) if isinstance(inputs, Mapping) else dict(zip([i.name for i in takes], inputs, strict=False))
    for value in takes:
        if value.name in given:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, (1, *given[value.name].shape[1:]), strict=False):
                dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # its errors share no base
        raise BadInput(f"{path}: its shapes cannot be inferred ({first_line(error)})") from error
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes.setdefault(value.name, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
    found: dict[str, int] = {}
    uncounted = set()
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in (*_MACS, *_FREE):
            uncounted.add(node.op_type)
        elif node.op_type in _MACS:
            used = [shapes.get(name, ()) for name in (*node.input[:2], node.output[0])]
            if not all(used) or not all(size > 0 for shape in used for size in shape):
                uncounted.add(node.op_type)  # behind an operator whose shapes nobody knows
                continue
            found[node.op_type] = found.get(node.op_type, 0) + _MACS[node.op_type](node, shapes)
    return found, tuple(sorted(uncounted))


def fixed_batch(path: Path) -> int | None:
    """The only batch size that a file takes; None where it takes any.

    Raises:
        BadInput: not an ONNX file, or an input of it has no shape.
    """
    for value in _inputs(_load(path)):
        dims = value.type.tensor_type.shape.dim
        if not dims:
            raise BadInput(f"{path}: its input {value.name} has no shape; export it again with one")
        if dims[0].dim_value:
            return int(dims[0].dim_value)
    return None


def file_bytes(path: Path) -> int:
    """Bytes of a file and of those beside it that hold its weights."""
    model = onnx.load(path, load_external_data=False)
    beside = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    return sum(p.stat().st_size for p in (path, *(path.parent / name for name in beside)))


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no weights; old files list those too."""
    weights = {t.name for t in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


Shapes = dict[str, tuple[int, ...]]


def _convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Every output entry meets one filter `(out, in / groups, ...)`; transposed, every input entry does."""
    entries = node.output[0] if node.op_type == "Conv" else node.input[0]
    return math.prod(shapes[entries]) * math.prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Every output entry is a sum over the first factor's contracted side."""
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]


_MACS: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "Gemm": _product, "MatMul": _product,
}  # fmt: skip
_FREE = frozenset(
    (
        "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil",
        "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Cos", "CumSum", "DepthToSpace", "Div", "Dropout",
        "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
        "Gelu", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid",
        "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu",
        "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod",
        "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "RMSNormalization", "Range",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "ScatterElements", "ScatterND", "Selu",
        "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split",
        "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample",
        "Where", "Xor",
    )
)  # fmt: skip
"""Operators that need no multiply-adds beyond a few for each entry."""
