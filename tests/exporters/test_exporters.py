"""Written files are proven in a real ONNX Runtime session; a wrong one never appears."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from compressor import exporters
from compressor.errors import BadInput, MissingEnvironment, NotEquivalent, WrongUsage
from compressor.exporters import check_equivalence, export
from compressor.exporters.onnx import Session, input_specs, opset
from compressor.proof.prove import randomised
from tests import ROOT
from tests.blocks import BLOCKS

X = (torch.randn(12, 3, 8, 8),)


OF_EACH_KIND = ("Residual", "Grouped", "Shuffle", "TorchAttention", "SizesFromInput", "Recurrent", "GroupNormed")


@pytest.mark.parametrize("name", [n if n in OF_EACH_KIND else pytest.param(n, marks=pytest.mark.slow) for n in sorted(BLOCKS)])
def test_every_small_network_survives_the_export(name: str, tmp_path: Path) -> None:
    [proof] = export(randomised(BLOCKS[name]()).eval(), tmp_path / "net.onnx", example_inputs=X)
    assert proof
    assert proof.conclusive
    assert proof.needed_tolerance < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_bias_free_layers_that_share_an_input_survive(tmp_path: Path) -> None:
    """A ResNet's conv1 and downsample: an exporter once fused their norms into one another, and accuracy fell to 0."""
    model = randomised(BLOCKS["SharedInput"](), seed=7).eval()
    assert model.conv1[0].bias is None
    assert model.downsample[0].bias is None
    [proof] = export(model, tmp_path / "net.onnx", example_inputs=X)
    assert proof
    assert proof.variation > 0.1


def test_one_file_dynamic_batch_no_traces_of_the_exporter(tmp_path: Path) -> None:
    model = randomised(BLOCKS["Residual"]()).eval()
    path = tmp_path / "net.onnx"
    export(model, path, example_inputs=X)
    written = onnx.load(path, load_external_data=False)
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in written.graph.initializer)
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert opset(written) >= 17
    assert input_specs(path)[0].shape == (3, 8, 8)
    assert str(ROOT).encode() not in path.read_bytes()
    run = Session(path)
    for size in (1, 2, 7, 33):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(run((x,))[0], model(x).detach(), rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_found(tmp_path: Path) -> None:
    model = BLOCKS["Residual"]().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export(model, tmp_path / "net.onnx", example_inputs=X)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_wrong_file_never_appears(tmp_path: Path, monkeypatch) -> None:
    """The writer is made to write another network; the old file stays."""
    import compressor.exporters.onnx as writer

    model, other = randomised(BLOCKS["Plain"]()).eval(), randomised(BLOCKS["Plain"](), seed=1).eval()
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")
    right = writer.write
    monkeypatch.setattr(writer, "write", lambda _, path, *more: right(other, path, *more))
    with pytest.raises(NotEquivalent, match="nothing was written"):
        export(model, target, example_inputs=X)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("net.onnx", b"old")]


def test_all_are_proven_before_any_appears(lenet5, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exporters, "write_checkpoint", lambda model, path: path.write_bytes(b"broken"))
    with pytest.raises(BadInput):
        export(lenet5, tmp_path / "a.onnx", tmp_path / "b.safetensors", example_inputs=(torch.randn(4, 1, 28, 28),))
    assert not list(tmp_path.iterdir())


def test_equivalence_between_any_two_formats(lenet5, tmp_path: Path) -> None:
    x = (torch.randn(9, 1, 28, 28),)
    paths = [tmp_path / f"net{suffix}" for suffix in (".onnx", ".safetensors", ".pt")]
    export(lenet5, *paths, example_inputs=x)
    for a in (lenet5, *paths):
        for b in (lenet5, *paths):
            assert check_equivalence(a, b, x), (a, b)
    with torch.no_grad():
        lenet5.classifier[0].weight[0] += 0.05
    proof = check_equivalence(lenet5, paths[0], x)
    assert not proof
    assert check_equivalence(lenet5, paths[0], x, tolerance=proof.needed_tolerance * 1.01)


def test_what_cannot_be_run_is_refused(tmp_path: Path, lenet5) -> None:
    x = (torch.randn(2, 1, 28, 28),)
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, message in (
        ("text.onnx", "not an ONNX file"),
        ("empty.onnx", "not an ONNX file"),
        ("no.onnx", "not an ONNX file"),
    ):
        with pytest.raises(BadInput, match=message):
            check_equivalence(lenet5, tmp_path / name, x)
    with pytest.raises(WrongUsage, match="unknown suffix"):
        export(lenet5, tmp_path / "x.bin", example_inputs=x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_provider_that_is_not_there_is_an_error_not_a_fallback(lenet5, tmp_path: Path) -> None:
    x = (torch.randn(2, 1, 28, 28),)
    export(lenet5, tmp_path / "net.onnx", example_inputs=x)
    with pytest.raises(MissingEnvironment, match="CUDAExecutionProvider"):
        Session(tmp_path / "net.onnx", "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_the_same(lenet5, tmp_path: Path) -> None:
    x = (torch.randn(16, 1, 28, 28),)
    proofs = export(lenet5, tmp_path / "net.onnx", example_inputs=x, providers=("cpu", "cuda"))
    assert all(proofs)


class Faint(nn.Module):
    """Its output varies by a millionth of its range, as a badly collapsed network's does."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.fc.weight *= weight

    def forward(self, x):
        return self.fc(x)


def test_a_proof_is_made_where_the_output_depends_on_the_input(tmp_path: Path) -> None:
    x = (torch.randn(4, 4),)
    [proof] = export(Faint(1e-5), tmp_path / "faint.onnx", example_inputs=x)
    assert proof.conclusive
    assert not check_equivalence(Faint(1e-5), tmp_path / "faint.onnx", x).conclusive
    with pytest.raises(NotEquivalent, match="hardly depends on its input"):
        export(Faint(0), tmp_path / "dead.onnx", example_inputs=x)
    assert [p.name for p in tmp_path.iterdir()] == ["faint.onnx"]
