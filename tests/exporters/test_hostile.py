"""ONNX files made to harm: none reads what lies elsewhere, none runs for ever, each ends in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compressor.errors import BadInput
from compressor.exporters import onnx as exporter
from compressor.exporters.equivalence import check_equivalence
from compressor.exporters.onnx import Session
from tests.command import COMMAND, run, wait_for

X = torch.zeros(12, 4)
WEIGHT = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)
PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


def written(path: Path, nodes: list, tensors: list) -> Path:
    takes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    gives = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "graph", takes, gives, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def elsewhere(**where: object) -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 2], data_location=TensorProto.EXTERNAL)
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def endless(path: Path) -> Path:
    def value(name: str, kind: int, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["v", "v"], ["twice"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, ["n", 2])],
        [value("goes", TensorProto.BOOL, []), value("twice", TensorProto.FLOAT, ["n", 2])],
    )
    loop = helper.make_node("Loop", ["", "true", "h"], ["y"], body=body)
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return written(path, [helper.make_node("MatMul", ["x", "w"], ["h"]), loop], [WEIGHT, true])


@pytest.mark.parametrize("kind", ["climbs", "absolute", "device", "link", "far", "long", "negative", "missing"])
def test_values_that_lie_elsewhere_are_not_read(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "beside").write_bytes(bytes(64))
    (folder / "link").symlink_to(tmp_path / "secret")
    tensor = {
        "climbs": elsewhere(location="../secret"), "absolute": elsewhere(location=tmp_path / "secret"),
        "device": elsewhere(location="/dev/zero", length=32), "link": elsewhere(location="link"),
        "far": elsewhere(location="beside", offset=2**62), "long": elsewhere(location="beside", length=2**62),
        "negative": elsewhere(location="beside", offset=-4), "missing": elsewhere(location="nothing"),
    }[kind]  # fmt: skip
    with pytest.raises(BadInput, match="not an ONNX file") as refusal:
        Session(written(folder / "x.onnx", [PRODUCT], [tensor]))
    assert "\n" not in str(refusal.value)


def test_values_that_lie_beside_are(tmp_path: Path) -> None:
    (tmp_path / "beside").write_bytes(torch.ones(8).numpy().tobytes())
    [y] = Session(written(tmp_path / "x.onnx", [PRODUCT], [elsewhere(location="beside")]))((torch.ones(1, 4),))
    assert y.tolist() == [[4, 4]]


DAMAGE = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "junk": lambda _: os.urandom(1000),
    "empty": lambda _: b"",
    "a length beyond the file": lambda whole: b"\x3a\xff\xff\xff\xff\x07" + whole,
    "a version of the far future": lambda whole: b"\x08\xff\xff\xff\xff\x07" + whole[2:],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_in_one_line(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.onnx", [PRODUCT], [WEIGHT])
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.raises(BadInput) as refusal:
        Session(path)
    assert "\n" not in str(refusal.value)


def shaped(size: int) -> list:
    return [helper.make_tensor("s", TensorProto.INT64, [2], [size, size]), WEIGHT]


def test_sizes_beyond_memory_end_in_one_line(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "s"], ["e"]), helper.make_node("ReduceSum", ["e"], ["r"], keepdims=0),
        helper.make_node("Add", ["h", "r"], ["y"]),
    ]  # fmt: skip
    path = written(tmp_path / "x.onnx", nodes, shaped(10**9))
    with pytest.raises(BadInput, match="does not run on the inputs"):
        check_equivalence(path, path, X)
    hollow = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2])
    with pytest.raises(BadInput, match="cannot run it"):
        Session(written(tmp_path / "y.onnx", [PRODUCT], [hollow]))


def test_a_loop_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "LONGEST", 1)
    path = endless(tmp_path / "x.onnx")
    with pytest.raises(BadInput, match=r"x\.onnx: does not end within 1 s"):
        check_equivalence(path, path, X)


def test_a_loop_without_end_hears_an_interrupt(tmp_path: Path) -> None:
    path, whole = endless(tmp_path / "x.onnx"), written(tmp_path / "y.onnx", [PRODUCT], [WEIGHT])
    process = subprocess.Popen(
        [*COMMAND, "verify", whole, path], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in a shell's background ignores it
    )  # fmt: skip
    try:
        wait_for(lambda: "onnxruntime" in Path(f"/proc/{process.pid}/maps").read_text(), process)
        time.sleep(2)  # by then it runs
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.communicate(timeout=60)[1]
        assert process.returncode == 130
    finally:
        process.kill()


def test_operators_named_to_reach_the_terminal(tmp_path: Path) -> None:
    evil = helper.make_node("Ev\x1b[31mil", ["x", "w"], ["y"], name="n\x1b[2J")
    written(tmp_path / "x.onnx", [evil], [WEIGHT])
    done = run("verify", "x.onnx", "x.onnx", cwd=tmp_path)
    assert done.returncode
    assert "\x1b" not in done.stderr + done.stdout
