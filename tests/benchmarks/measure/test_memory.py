"""Peak memory of fresh processes, and of a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import networks, save
from compressor.benchmarks.measure.memory import Probe, cuda_peak, peak_of_command, peak_of_fresh_process
from compressor.exporters import export

MIB = 2**20


def test_a_known_allocation() -> None:
    """A process that starts from a larger one, takes 300 MiB and gives them back; only its own peak counts."""
    ballast = torch.ones(400 * MIB // 4)
    code = (
        "from compressor.benchmarks.measure.memory import peak_resident_bytes as peak\n"
        "before = peak(); block = bytearray(300 * 2**20); del block; print(before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < ballast.nbytes
    assert after - before == pytest.approx(300 * MIB, rel=0.05)


def test_a_commands_peak_is_its_own() -> None:
    """Not that of the large process that starts it."""
    ballast = torch.ones(400 * MIB // 4)
    peak = peak_of_command([sys.executable, "-S", "-c", "block = bytearray(100 * 2**20)"])
    assert 100 * MIB < peak < 150 * MIB < ballast.nbytes
    with pytest.raises(RuntimeError, match="failed with status 3"):
        peak_of_command([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_a_network_takes_what_its_tensors_take(tmp_path: Path) -> None:
    """Adam holds weights, gradients and two moments; 20 M parameters of 4 bytes are 76 MiB."""
    width = 4472
    (tmp_path / "wide.py").write_text(
        f"from torch import nn\ndef build(width={width}):\n    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, width),\n"
        "        nn.Linear(width, width), nn.Linear(width, 2))\n"
    )
    batch = ((torch.randn(2, 4),), torch.zeros(2, dtype=torch.long))
    torch.save(batch, tmp_path / "batch.pt")
    peaks = {}
    for size in (8, width):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, size), nn.Linear(size, size), nn.Linear(size, 2))
        torch.save(model.state_dict(), tmp_path / "net.pt")
        loading = {"network": f"{tmp_path}/wide.py:build", "arguments": {"width": size}, "inputs": ["4"]}
        for what in ("inference", "train_step"):
            probe = Probe("torch", what, str(tmp_path / "net.pt"), str(tmp_path / "batch.pt"), 2, loading=loading)
            peaks[size, what] = peak_of_fresh_process(probe)
    weights = 4 * width * width
    taken = peaks[width, "train_step"] - peaks[8, "train_step"]
    assert 4 * weights < taken < 8 * weights
    assert weights < peaks[width, "inference"] - peaks[8, "inference"] < 4 * weights


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        ("torch", "train_step"),
        pytest.param("torch", "inference", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "inference", marks=pytest.mark.slow),
    ],
)
def test_the_fresh_process_reads_no_module_from_the_working_folder(engine: str, what: str, tmp_path: Path, monkeypatch) -> None:
    model = tmp_path / ("net.onnx" if engine == "onnxruntime" else "net.pt")
    batch = ((torch.randn(4, 1, 28, 28),), torch.zeros(4, dtype=torch.long))
    export(networks.build("lenet5", data="digits"), model, example_inputs=batch[0])
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    assert peak_of_fresh_process(Probe(engine, what, str(model), str(tmp_path / "batch.pt"), 2)) > 50 * MIB
    assert not (tmp_path / "trace").exists()


def test_a_failure_in_the_process_is_told(tmp_path: Path) -> None:
    save(networks.build("lenet5"), tmp_path / "net.pt")
    torch.save(((torch.randn(2, 5),), None), tmp_path / "batch.pt")
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes|Expected"):
        peak_of_fresh_process(Probe("torch", "inference", str(tmp_path / "net.pt"), str(tmp_path / "batch.pt"), 2))
    with pytest.raises(RuntimeError, match="no such file"):
        peak_of_fresh_process(Probe("torch", "inference", str(tmp_path / "none.pt"), str(tmp_path / "batch.pt"), 2))


@pytest.mark.gpu
def test_a_known_allocation_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    before = torch.cuda.memory_allocated()
    peak = cuda_peak(lambda: torch.empty(300 * MIB, dtype=torch.uint8, device="cuda"), "cuda")
    assert peak["allocated"] - before == pytest.approx(300 * MIB, rel=0.02)
    assert peak["reserved"] >= peak["allocated"]
