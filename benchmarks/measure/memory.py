"""Peak memory: resident memory of a fresh process on a CPU, allocated and reserved memory on a GPU.

`python -m compressor.benchmarks.measure.memory` is that fresh process: it reads what to do as JSON from stdin, and answers on
its last line.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compressor.benchmarks.measure.latency import OUT_OF_MEMORY, OutOfMemory, attempt
from compressor.errors import CompressError, first_line


@dataclass(frozen=True)
class Probe:
    """What a fresh process does before it tells its peak.

    Attributes:
        engine: what it imports and runs: `torch` or `onnxruntime`.
        what: `inference` or `train_step`.
        model: the network's file.
        batch: file of a batch, `(inputs, target)`, written by `torch.save`.
        size: samples to run on: those of the batch, as often as needed.
        loss: name of the loss of a train step.
        threads: of torch and of the runtime.
        loading: how the file is read, see `compressor.benchmarks.measure.networks.open_network`.
    """

    engine: str
    what: str
    model: str
    batch: str
    size: int
    loss: str = "cross-entropy"
    threads: int = 1
    loading: dict[str, Any] = field(default_factory=dict)


def peak_of_fresh_process(probe: Probe) -> int:
    """Peak resident bytes of a process that does what the probe says.

    Raises:
        MemoryError: it did not fit.
        RuntimeError: it failed in another way; the message says how.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-W",
            "ignore",
            "-m",
            "compressor.benchmarks.measure.memory",
        ],  # -P: the working folder holds no module of ours
        input=json.dumps(asdict(probe)),
        capture_output=True,
        text=True,
    )
    if done.returncode == -signal.SIGKILL:
        raise MemoryError(OUT_OF_MEMORY)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RuntimeError(first_line(RuntimeError((done.stderr.strip().splitlines() or ["it died"])[-1])))
    answer = json.loads(lines[-1])
    if answer.get("out_of_memory"):
        raise MemoryError(OUT_OF_MEMORY)
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return int(answer["peak_bytes"])


_SMALL_PARENT = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak_of_command(command: list[str]) -> int:
    """Peak resident bytes of a whole command, started by a small process: a large one's size would count as the command's.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, "-S", "-c", _SMALL_PARENT, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {done.returncode}")
    return int(done.stdout) * _UNIT


_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of what `ru_maxrss` counts in."""


def cuda_peak(job: Callable[[], object], device: str) -> dict[str, int]:
    """Peak bytes that torch allocated and reserved on a GPU during one call, weights included."""
    import torch

    job()  # the optimizer's state is there from the second step on
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    job()
    torch.cuda.synchronize(device)
    return {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}


def peak_resident_bytes() -> int:
    """Of this process, since its program started.

    Linux's `ru_maxrss` would not do: it begins with the size of the process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def _work(probe: Probe) -> None:
    import torch

    torch.set_num_threads(probe.threads)
    from compressor.benchmarks.measure.networks import open_network, repeated

    network = open_network(Path(probe.model), **probe.loading)
    inputs, target = repeated(torch.load(probe.batch, weights_only=True), probe.size)
    if probe.what == "inference":
        network.inference(probe.engine, inputs, "cpu", probe.threads)()
        return
    step = network.train_step((inputs, target), probe.loss, "cpu")
    step()
    step()  # the optimizer's state is there from the second step on


def main() -> None:
    """Do one probe's work and answer."""
    probe = Probe(**json.loads(sys.stdin.read()))
    try:
        _, reason = attempt(lambda: _work(probe))
    except CompressError as error:
        reason = str(error)
    told = (
        {"failed": reason, "out_of_memory": isinstance(reason, OutOfMemory)}
        if reason
        else {"peak_bytes": peak_resident_bytes()}
    )
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
