"""`compress bench`: what was gained, as data. Raw values only; ratios are computed by whoever reads them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compressor import exporters, networks
from compressor.benchmarks.measure.bench_document import BenchDocument
from compressor.benchmarks.measure.latency import OUT_OF_MEMORY, Job, OutOfMemory, attempt, clock_for, in_turn
from compressor.benchmarks.measure.memory import Probe, cuda_peak, peak_of_fresh_process
from compressor.benchmarks.measure.networks import ENGINES, Network, repeated, too_large
from compressor.benchmarks.measure.runs import INFERENCE, KIND, SCHEMA, TRAIN_STEP
from compressor.coupling import structure
from compressor.errors import BadInput, CompressError, UnsupportedNetwork, first_line
from compressor.exporters.onnx import available, file_bytes, fixed_batch
from compressor.exporters.onnx import count as count_onnx
from compressor.model.cost import (
    cost,
    count,
    count_training,
    csr_int32,
    macs_by_fvcore,
    macs_by_thop,
    stored_bytes,
    tensor_bytes,
)
from compressor.model.inputs import Inputs, several
from compressor.model.origin import origin_of
from compressor.model.precision import working_copy
from compressor.model.weights import LAYERS, weight_matrices
from compressor.objective.batches import Batch, inputs_of
from compressor.objective.losses import loss_named
from compressor.objective.metrics import metric_named
from compressor.objective.objective import Objective, evaluate
from compressor.sources.scoring import Source
from compressor.system.environment import environment
from compressor.system.progress import Progress
from compressor.types.structure import total_by_layer


def bench(
    candidates: Sequence[Network], source: Source, *, loss: str = "cross-entropy",
    metric: str | None = None, batches: Sequence[int] = (1, 64), rounds: int = 9, device: str = "cpu",
    threads: int | None = None, seed: int = 0, memory: bool = True,
    loading: dict[str, Any] | None = None, progress: Progress = lambda *_: None,
) -> BenchDocument:  # fmt: skip
    """Measure the first network against the others, in turn.

    Args:
        candidates: the dense network, then the small ones.
        source: what they are run on.
        batches: sizes to measure.
        rounds: values of each measurement.
        threads: of torch and of ONNX Runtime; torch's own choice by default.
        memory: whether to measure peak memory too, with fresh processes on a CPU.
        loading: how the files were opened, for those processes.
        progress: called as the work goes on.
    Returns:
        The report as data, ready for JSON.
    Raises:
        BadInput: a small network answers in other shapes than the dense one, or takes other inputs.
        MissingEnvironment: ONNX Runtime does not run on that device here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    names = _names(candidates)
    batch = _first_batch(source)
    inputs = several(inputs_of(batch))
    _check_shapes(candidates, inputs, threads)
    notes = list(source.remarks)
    with tempfile.TemporaryDirectory() as folder:
        for name, network in zip(names, candidates, strict=True):
            if network.onnx is None and (failed := _give_onnx(network, Path(folder), inputs)):
                notes.append(f"{name}: not measured in ONNX Runtime: {failed}")
        facts = []
        for number, (name, network) in enumerate(zip(names, candidates, strict=True)):
            progress(f"counting {name}", number, len(candidates))
            quality, reason = attempt(partial(_quality, network, source, (loss, metric), device, threads))
            if reason:
                notes.append(f"{name}: not evaluated: {reason}")
            facts.append({"name": name, **_facts(network, inputs), "quality": quality})
        measured = _Measured(dict(zip(names, candidates, strict=True)), batch, loss, device, threads, progress)
        if memory:
            measured.memory(batches, loading or {}, Path(folder))
        measured.times(batches, rounds)
    tf32 = device.startswith("cuda") and torch.backends.cudnn.allow_tf32
    document = {
        "schema": SCHEMA,
        "kind": KIND,
        "data": source.name,
        "loss": loss,
        "rounds": rounds,
        "seed": seed,
        "networks": facts,
        "times": measured.all_times,
        "memory": measured.all_memory,
        "environment": {**environment(device), "onnxruntime": list(available()), "tf32": tf32},
        "notes": notes,
    }
    return cast(BenchDocument, json.loads(json.dumps(_finite(document), allow_nan=False)))


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: None in their place."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _names(candidates: Sequence[Network]) -> list[str]:
    """File names, or paths where two files have the same name, or numbered where it is the same file."""
    short = [n.path.name for n in candidates]
    names = [name if short.count(name) == 1 else str(n.path) for name, n in zip(short, candidates, strict=True)]
    return [name if name not in names[:n] else f"{name} ({1 + names[:n].count(name)})" for n, name in enumerate(names)]


def _first_batch(source: Source) -> Batch:
    batch = next(iter(source.train), None)
    if batch is None:
        raise BadInput(f"data {source.name}: it yields no batch")
    return batch if isinstance(batch, (tuple, list)) else (batch,)


def _check_shapes(candidates: Sequence[Network], inputs: Inputs, threads: int) -> None:
    for network in candidates:
        if network.module is None and (fixed := fixed_batch(network.path)):
            raise BadInput(f"{network.path}: takes batches of exactly {fixed}; export it again with a dynamic batch")
    expected = candidates[0].output_shapes(inputs, threads)
    for network in candidates[1:]:
        found = network.output_shapes(inputs, threads)
        if found != expected:
            texts = [", ".join("x".join(map(str, s)) or "one number" for s in shapes) for shapes in (found, expected)]
            raise BadInput(
                f"{network.path}: answers {texts[0]} for a sample, {candidates[0].path} answers {texts[1]}; "
                "compare networks of one task"
            )


def _give_onnx(network: Network, folder: Path, inputs: Inputs) -> str | None:
    """Export a torch network for ONNX Runtime; the reason where that cannot be done."""
    assert network.module is not None
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    try:
        exporters.export(network.module, path, example_inputs=inputs)
    except CompressError as error:
        return first_line(error).replace(str(path), "its ONNX form")
    network.onnx = path
    return None


def _facts(network: Network, inputs: Inputs) -> dict[str, Any]:
    """What needs no clock."""
    if network.module is None:
        found: dict[str, Any] = {"path": str(network.path), "bytes": file_bytes(network.path)}
        by_operator, uncounted = count_onnx(network.path, inputs)
        return {
            **found,
            "network": None,
            "macs": {"total": sum(by_operator.values()), "by_operator": by_operator, "uncounted": list(uncounted)},
        }
    found = {"path": str(network.path), "bytes": stored_bytes(network.path, network.module)}
    model = working_copy(network.module, inputs)
    origin, size, counted = origin_of(network.module), cost(model, inputs), count(model, inputs)
    return {
        **found,
        "network": (origin.network if origin else None) or type(network.module).__name__,
        "inputs": [str(spec) for spec in origin.inputs] if origin else [],
        "parameters": size.parameters,
        "weights": size.weights,
        "tensor_bytes": tensor_bytes(network.module),
        "csr_bytes": {
            **{str(bits): n for bits, n in size.csr_bytes.items()},
            "int32": sum(csr_int32(w) for w in weight_matrices(network.module)),
        },
        "macs": {
            "total": counted.macs,
            "by_operator": counted.by_operator,
            "by_layer": counted.by_layer,
            "norms": counted.norms,
            "uncounted": list(counted.uncounted),
        },
        "macs_by_fvcore": _or_reason(lambda: macs_by_fvcore(model, inputs)),
        "macs_by_thop": _or_reason(lambda: macs_by_thop(model, inputs)),
        "training_macs": _or_reason(lambda: count_training(model, inputs).macs),
        "widths": {
            name: m.out_features if isinstance(m, nn.Linear) else m.out_channels
            for name, m in model.named_modules()
            if isinstance(m, LAYERS)
        },
        **_nodes(model, inputs),
    }


def _nodes(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Nodes of each layer, without the output layers; empty where neither graph can be made."""
    try:
        layers = total_by_layer(structure(model, inputs, prunable=False))
    except UnsupportedNetwork:
        return {"nodes": None, "nodes_by_layer": {}}
    return {"nodes": sum(layers.values()), "nodes_by_layer": layers}


def _or_reason(counter: Callable[[], int]) -> int | dict[str, str]:
    """A count, or why there is none."""
    found, reason = attempt(counter)
    return {"failed": str(reason)} if found is None else found


def _quality(network: Network, source: Source, by: tuple[str, str | None], device: str, threads: int) -> dict[str, Any] | None:
    """Accuracy, loss and the metric, named in `by`, on the data, where there is some."""
    if source.test is None:
        return None
    objective = Objective(source.test, loss_named(by[0]), device=device, metric=metric_named(by[1]))
    return asdict(evaluate(network.as_module(device, threads), objective))


class _Measured:
    """Times and peak memory of several networks on batches of one source."""

    def __init__(
        self, candidates: dict[str, Network], batch: Batch, loss: str, device: str, threads: int, progress: Progress
    ) -> None:
        self.candidates, self.batch, self.loss, self.device, self.threads = candidates, batch, loss, device, threads
        self.progress = progress
        self.all_times: list[dict[str, Any]] = []
        self.all_memory: list[dict[str, Any]] = []
        self.too_large: set[tuple[str, str, str, int]] = set()
        self.baselines: dict[tuple[str, str], int] = {}

    def _runs(self) -> list[tuple[str, str]]:
        """(what, engine) of everything that can be measured; training only with targets."""
        found = [(INFERENCE, engine) for engine in ENGINES]
        return [*found, (TRAIN_STEP, "torch")] if len(self.batch) > 1 else found

    def times(self, batches: Sequence[int], rounds: int) -> None:
        """Seconds of every network, in turn."""
        clock, steps = clock_for(self.device), [(size, *run) for size in batches for run in self._runs()]
        for number, (size, what, engine) in enumerate(steps):
            self.progress(f"timing {what.replace('_', ' ')}, {engine}, batch {size}", number, len(steps))
            jobs, failed = self._jobs(what, engine, size)
            values, failed_later = in_turn(jobs, rounds, clock)
            for name in self.candidates:
                if name in values or name in (reasons := failed | failed_later):
                    self.all_times.append(
                        {
                            "network": name,
                            "what": what,
                            "engine": engine,
                            "batch": size,
                            "unit": "s",
                            "values": values.get(name, []),
                            "failed": None if name in values else reasons[name],
                        }
                    )

    def _jobs(self, what: str, engine: str, size: int) -> tuple[dict[str, Job], dict[str, str]]:
        """The jobs of one measurement, and those that could not even be prepared."""
        jobs: dict[str, Job] = {}
        failed: dict[str, str] = {}
        for name, network in self.candidates.items():
            if not network.runs_in(engine):
                continue
            if (name, what, engine, size) in self.too_large:
                failed[name] = OUT_OF_MEMORY
                continue
            job, reason = attempt(partial(self._job, network, what, engine, size))
            if job is not None:
                jobs[name] = job
            else:
                failed[name] = str(reason)
        return jobs, failed

    def _job(self, network: Network, what: str, engine: str, size: int) -> Job:
        if too_large(self.batch, size):
            raise MemoryError
        batch = repeated(self.batch, size)
        if what == TRAIN_STEP:
            return network.train_step(batch, self.loss, self.device)
        return network.inference(engine, inputs_of(batch), self.device, self.threads)

    def memory(self, batches: Sequence[int], loading: dict[str, Any], folder: Path) -> None:
        """Peak memory of every network; what does not fit is not timed afterwards."""
        measure = self._on_gpu if self.device.startswith("cuda") else self._on_cpu
        steps = [
            (size, *run, name) for size in batches for run in self._runs()
            for name, network in self.candidates.items() if network.runs_in(run[1])
        ]  # fmt: skip
        for number, (size, what, engine, name) in enumerate(steps):
            self.progress(f"memory of {name}, batch {size}", number, len(steps))
            found: dict[str, Any] = {"network": name, "what": what, "engine": engine, "batch": size, "unit": "bytes"}
            peaks, reason = attempt(partial(measure, name, what, engine, size, loading, folder))
            if isinstance(reason, OutOfMemory):
                self.too_large.add((name, what, engine, size))
            if reason or peaks:
                self.all_memory.append(found | (peaks or {}) | {"failed": reason})

    def _on_gpu(self, name: str, what: str, engine: str, size: int, *_: Any) -> dict[str, Any]:
        if engine != "torch":  # the runtime's own allocator tells torch nothing
            return {}
        return dict(cuda_peak(self._job(self.candidates[name], what, engine, size), self.device))

    def _on_cpu(self, name: str, what: str, engine: str, size: int, loading: dict[str, Any], folder: Path) -> dict[str, Any]:
        network = self.candidates[name]
        path = folder / "batch.pt"
        if not path.exists():
            torch.save((inputs_of(self.batch), *(self.batch[1:2] or (None,))), path)
        if too_large(self.batch, size):
            raise MemoryError
        model = network.onnx if engine == "onnxruntime" else network.path
        if (what, engine) not in self.baselines:
            self.baselines[what, engine] = peak_of_fresh_process(_tiny_probe(what, engine, folder, self.threads))
        probe = Probe(engine, what, str(model), str(path), size, self.loss, self.threads, loading or {})
        return {"peak": peak_of_fresh_process(probe), "baseline": self.baselines[what, engine]}


def _tiny_probe(what: str, engine: str, folder: Path, threads: int) -> Probe:
    """The same work with a network of 32,000 parameters and one sample: what the libraries take by themselves."""
    model = networks.build("lenet300100", image_size=1)
    path, batch = folder / ("tiny.onnx" if engine == "onnxruntime" else "tiny.pt"), folder / "tiny_batch.pt"
    inputs = (torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1),)  # far apart: the proof of its file refuses two that answer alike
    exporters.export(model, path, example_inputs=inputs)
    torch.save((inputs, torch.zeros(2, dtype=torch.long)), batch)
    return Probe(engine, what, str(path), str(batch), 2, threads=threads)
