"""The peers on the same networks: what they removed is known, and their result is checked as ours is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor.benchmarks.studies.peers import at_macs, build, by_torch_pruning, kept_by, masked, node_sparsity, table
from compressor.benchmarks.studies.resnet50 import resnet50
from compressor.coupling import structure
from compressor.model.cost import count
from compressor.model.observe import outputs_of
from compressor.proof.equivalence import TORCH_TOLERANCE, Equivalence
from compressor.surgery.shrink import shrink


def test_our_resnet50_is_the_real_one() -> None:
    assert count(resnet50(1000), (torch.zeros(1, 3, 224, 224),)).macs == 4_089_184_256


def test_what_the_peer_removes_is_what_our_graph_removes() -> None:
    model, x = build("resnet18"), torch.randn(4, 3, 32, 32)
    found = structure(model, (x,))
    small, history = by_torch_pruning(model, x, 0.5, "group magnitude")
    kept = kept_by(history, found)
    assert kept is not None
    ours = shrink(model, found, kept)
    assert Equivalence.of("", outputs_of(ours, (x,)), outputs_of(small, (x,)), TORCH_TOLERANCE)
    assert node_sparsity(small, found, x) == pytest.approx(0.5, abs=0.1)
    target = count(small, (x,)).macs
    _, _, ratio = at_macs(target, model, x, "group magnitude")
    assert ratio == pytest.approx(0.5, abs=0.02)


def test_masks_remove_nothing() -> None:
    model, x = build("resnet18"), torch.randn(2, 3, 32, 32)
    small = masked(model, 0.75)
    assert count(small, (x,)).macs == count(model, (x,)).macs
    assert node_sparsity(small, structure(model, (x,)), x) == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
def test_one_network_beside_the_peers(tmp_path: Path) -> None:
    output = tmp_path / "peers.json"
    arguments = ["--network", "resnet18", "--samples", "64", "--rounds", "2", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "compressor.benchmarks.studies.peers", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert done.stdout.strip() == table(document)
    assert len(document["rows"]) == 7
    ours = document["rows"][1]
    assert ours["equivalent"] is True
    assert ours["reached"] == pytest.approx(0.93, abs=1e-3)
