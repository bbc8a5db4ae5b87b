"""The networks of a benchmark: opened from files, and turned into jobs that a clock can call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from compressor.benchmarks.measure.latency import Job, attempt
from compressor.checkpoint.checkpoint import load
from compressor.errors import BadInput
from compressor.model.inputs import Inputs, each, run, samples, suited
from compressor.model.observe import outputs_of, tensors_in
from compressor.model.origin import origin_of
from compressor.objective.batches import Batch, inputs_of, to_device
from compressor.objective.losses import loss_named
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.sources.noise import noise_like, noise_remark
from compressor.sources.scoring import Source, source_for
from compressor.types.origin import InputSpec

if TYPE_CHECKING:
    from compressor.exporters.onnx import Session

ENGINES = ("torch", "onnxruntime")


@dataclass
class Network:
    """One network of a benchmark.

    Attributes:
        path: its file, as the user named it.
        module: the network in torch; None for an ONNX file.
        onnx: the file that ONNX Runtime runs; None where there is none.
    """

    path: Path
    module: nn.Module | None = None
    onnx: Path | None = None

    def runs_in(self, engine: str) -> bool:
        """Whether that engine can run it."""
        return (self.module if engine == "torch" else self.onnx) is not None

    def inference(self, engine: str, inputs: Inputs, device: str, threads: int) -> Job:
        """One forward pass over `inputs`, which lie on the device already.

        Raises:
            BadInput: an ONNX file takes other inputs.
            MissingEnvironment: ONNX Runtime does not run on that device here.
        """
        if engine == "onnxruntime":
            from compressor.exporters.onnx import Session

            assert self.onnx is not None
            return Session(self.onnx, device.partition(":")[0], threads).bound(inputs)
        assert self.module is not None
        model = copy.deepcopy(self.module).eval().to(device)
        given = suited(model, inputs)

        def forward() -> Any:
            with torch.inference_mode():
                return run(model, given)

        return forward

    def train_step(self, batch: Batch, loss: str, device: str) -> Job:
        """Forward, backward and Adam on one batch, on a copy of the network in train mode."""
        assert self.module is not None
        model = copy.deepcopy(self.module).train().to(device)
        objective = Objective((), loss_named(loss), device=device)
        given = to_device((suited(model, inputs_of(batch)), *batch[1:]), device)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])

        def step() -> None:
            optimizer.zero_grad()
            objective.loss_of(model, given).backward()
            optimizer.step()

        return step

    def as_module(self, device: str, threads: int) -> nn.Module:
        """The network as something that torch calls."""
        if self.module is not None:
            return copy.deepcopy(self.module).to(device)
        from compressor.exporters.onnx import Session

        assert self.onnx is not None
        return _Runtime(Session(self.onnx, device.partition(":")[0], threads))

    def output_shapes(self, inputs: Inputs, threads: int) -> list[tuple[int, ...]]:
        """Shapes of all outputs, without the batch.

        Raises:
            BadInput: it does not run on these inputs.
        """
        model = self.as_module("cpu", threads)
        found, reason = attempt(lambda: outputs_of(model, suited(model, inputs)))
        if found is None:
            raise BadInput(f"{self.path}: does not run on the inputs of this comparison: {reason}")
        return [tuple(y.shape[1:]) for y in found]


class _Runtime(nn.Module):
    """ONNX Runtime behind torch's calling convention."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def __deepcopy__(self, memo: dict[int, Any]) -> _Runtime:
        return self  # a session has no state that a copy would protect

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        outputs = self.session(named or inputs)
        device = next(iter((*inputs, *named.values()))).device
        outputs = [y.to(device) for y in outputs]
        return outputs[0] if len(outputs) == 1 else outputs


def open_network(
    path: Path, *, network: str | None = None, arguments: dict[str, Any] | None = None, inputs: Sequence[str] = (),
    key: str | None = None, trust_pickle: bool = False,
) -> Network:  # fmt: skip
    """Open a file of any kind that can be measured; the options are those of `compressor.load`.

    Raises:
        BadInput: no such file, or not a network.
    """
    if path.suffix == ".onnx":
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        return Network(path, onnx=path)
    if path.suffix == ".pt2":
        raise BadInput(f"{path}: exported programs are not measured; name the .onnx, .safetensors or .pt of the same network")
    specs = [InputSpec.parse(text) for text in inputs]
    return Network(path, load(path, network=network, arguments=arguments, inputs=specs, key=key, trust_pickle=trust_pickle))


def source_of(
    modules: Sequence[nn.Module], files: Sequence[Path], data: str | None, said: Sequence[str], *, loss: str = "cross-entropy",
    samples: int, seed: int,
) -> Source:  # fmt: skip
    """What to run several networks on: `data`, else what one of them remembers, else noise of the shape that is known.

    Args:
        modules: those that torch runs.
        files: ONNX files, which tell their input's shape.
        said: the user's own words for the inputs.
        samples: how many are drawn.
    Raises:
        BadInput: the data cannot be used, or the input shape is not known.
    """
    known = [m for m in modules if (origin := origin_of(m)) and (origin.inputs or data)]
    known.sort(key=lambda m: (origin := origin_of(m)) is None or origin.data is None)
    if known:
        return source_for(known[0], data, loss=loss, count=samples, batch_size=samples, seed=seed, proof_samples=samples)
    if data is not None:
        raise BadInput(f"data {data}: an ONNX file does not say how it takes data; name one .pt or .safetensors beside it")
    specs = tuple(InputSpec.parse(text) for text in said) or _taken_by(files)
    if not specs or any(0 in spec.shape or spec.dtype == "?" for spec in specs):
        raise BadInput(f"{', '.join(map(str, files))}: the input shape is not known; add {spelled('inputs', '3x224x224')}")
    inputs = noise_like(specs, samples, torch.Generator().manual_seed(seed))
    return Source("synthetic", [(inputs,)], None, inputs, (noise_remark(),))


def _taken_by(files: Sequence[Path]) -> tuple[InputSpec, ...]:
    """What the first ONNX file takes."""
    from compressor.exporters.onnx import input_specs

    return next((input_specs(file) for file in files if file.suffix == ".onnx"), ())


BATCH = 64
"""Samples that are drawn; larger batches repeat them."""


def too_large(batch: Batch, size: int) -> bool:
    """Whether a batch of that many samples alone would take what the machine has left: better said than killed for it."""
    held = sum(x.numel() * x.element_size() for x in tensors_in(batch))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return False
    return 2 * held * size / samples(inputs_of(batch)) > available


def repeated(batch: Batch, size: int) -> Batch:
    """A batch `(inputs, target)` of that many samples: those of `batch` in turn, as often as needed."""
    inputs = inputs_of(batch)
    times = -(-size // samples(inputs))

    def longer(x: Tensor) -> Tensor:
        return x.repeat(times, *(1 for _ in x.shape[1:]))[:size]

    return (each(inputs, longer), *(tree_map_only(Tensor, longer, part) for part in batch[1:]))
