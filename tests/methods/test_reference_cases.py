"""The six golden cases made with the SNIP-it authors' published code, event by event.

Its choices: loss `nll-logits`, gate before the norm, signed sums, five batches of 32 in stored order.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor import networks
from compressor.coupling import structure
from compressor.criteria.elasticity import node_elasticity, weight_elasticity
from compressor.model.cost import csr_bits, macs
from compressor.objective.losses import nll_logits
from compressor.objective.objective import Objective
from compressor.selection.select import select, select_weights
from compressor.surgery.shrink import shrink
from compressor.types.scores import Scores
from compressor.types.structure import Structure
from tests import SHARED

COPIED = Path(__file__).parent / "reference"
NODE_CASES = (
    "LeNet5_digits28_torch_SNAP_0.5",
    "LeNet5_digits28_portable_warmbn_SNAPit_0.93",
    "LeNet5_digits28_torch_SNAPit_0.93",
    "MLP5_digits28_torch_SNAPit_0.93",
)
WEIGHT_CASES = ("LeNet5_digits28_torch_SNIP_0.9", "LeNet5_digits28_torch_SNIPit_0.98")


class Case:
    """One recorded run: the network it starts from, its data, its events."""

    def __init__(self, name: str) -> None:
        folder = COPIED if (COPIED / f"{name}.npz").exists() else SHARED / "reference-cases"
        if not (folder / f"{name}.npz").exists():
            pytest.skip("needs the project's shared folder beside the checkout")
        self.record = json.loads((folder / f"{name}.json").read_text())
        self.arrays = np.load(folder / f"{name}.npz")
        net, data, initial = self.record["net"], self.record["dataset"], self.record["init"]
        start = np.load(folder / f"init_{net}_{data}_{initial}.npz")
        self.model = networks.build(net.lower())
        own = self.model.state_dict()
        assert len(own) == len(start.files)
        self.model.load_state_dict({k: torch.from_numpy(start[f]) for k, f in zip(own, start.files, strict=True)})
        images = np.load(folder / f"data_{data}.npz")
        self.x, self.y = torch.from_numpy(images["x"]), torch.from_numpy(images["y"])
        self.objective = Objective(list(zip(self.x.split(32), self.y.split(32), strict=True)), nll_logits)
        weights = [f.removesuffix(".weight") for f in start.files if f.endswith(".weight") and start[f].ndim > 1]
        layers = [n for n, m in self.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        self.ours = dict(zip(weights, layers, strict=True))  # their layer -> our layer

    def kept(self, event: int, place: str) -> dict[str, torch.Tensor]:
        prefix = f"ev{event}/keep_{place}/"
        return {
            self.ours[f.removeprefix(prefix)]: torch.from_numpy(self.arrays[f]).long().sort().values
            for f in self.arrays.files
            if f.startswith(prefix)
        }


@pytest.mark.parametrize("name", NODE_CASES)
def test_node_elasticity_and_selection_follow_the_recorded_path(name: str) -> None:
    case = Case(name)
    small, left = case.model, structure(case.model, (case.x[:1],))
    for number, event in enumerate(case.record["events"]):
        scores = node_elasticity(small, left, case.objective, gate="pre-norm", aggregate="signed")
        assert scores.loss == pytest.approx(event["L"], rel=1e-4)
        for theirs, ours in case.ours.items():
            if ours in scores.values:
                gradient = torch.from_numpy(case.arrays[f"ev{number}/grad/{theirs}"]).double().abs()
                got = scores.values[ours] * abs(scores.loss)
                torch.testing.assert_close(got, gradient, rtol=0, atol=3e-6 * float(gradient.max()))
        _check_selection(case, scores, left, number, event)
        recorded = case.kept(number, "local")
        small, left = shrink(small, left, recorded), left.shrink(recorded)
    with torch.no_grad():
        logits = small.eval()(case.x[:32])
    recorded_logits = torch.from_numpy(case.arrays["final_logits_eval_first32"])
    torch.testing.assert_close(logits, recorded_logits, rtol=1e-4, atol=1e-5)


def _check_selection(case: Case, scores: Scores, left: Structure, number: int, event: dict) -> None:
    """The same nodes stay, but for those within 5e-3 of the threshold."""
    recorded = case.kept(number, "local")
    count = sum(len(indices) for indices in recorded.values())
    ours = select(scores, left, 1 - count / left.total_nodes)
    assert sum(len(indices) for indices in ours.kept.values()) == count
    for layer, indices in recorded.items():
        for node in set(indices.tolist()) ^ set(ours.kept[layer].tolist()):
            score = float(scores.values[layer][node])
            assert abs(score - event["threshold"]) / event["threshold"] < 5e-3, (number, layer, node)


def test_counts_agree_with_the_recorded_ones() -> None:
    case = Case("LeNet5_digits28_portable_warmbn_SNAPit_0.93")
    before, flops = case.record["before"], case.record["exact_flops_before"]
    weights = [m.weight for m in case.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d))]
    assert sum(w.numel() for w in weights) == before["weight_count_now"]  # theirs counts the norms' weights too
    layers = [w for w in weights if w.dim() > 1]
    biases = 6 * 28 * 28 + 16 * 10 * 10 + 120 + 84 + 10
    assert macs(case.model, (case.x,)) + biases == flops["conv"] + flops["linear"]
    norms = [w for w in weights if w.dim() == 1]
    csr = sum(csr_bits(w, 2) for w in layers) + sum(34 * w.numel() + 2 * (min(w.numel(), 1) + 1) for w in norms)
    assert csr == before["compressed_size_bits"]


@pytest.mark.parametrize("name", WEIGHT_CASES)
def test_weight_elasticity_follows_the_recorded_path(name: str) -> None:
    case = Case(name)
    ours = {f"{theirs}.weight": f"{layer}.weight" for theirs, layer in case.ours.items()}
    parameters = dict(case.model.named_parameters())
    for number, event in enumerate(case.record["events"]):
        scores = weight_elasticity(case.model, structure(case.model, (case.x[:1],)), case.objective)
        stride = event["score_stride"]
        masks = {}
        for theirs, name_here in ours.items():
            recorded = torch.from_numpy(case.arrays[f"ev{number}/score_stride{stride}/{theirs}"]).double()
            got = scores.values[name_here].double().flatten()[::stride] * abs(scores.loss) / (1e-8 + scores.loss)
            torch.testing.assert_close(got, recorded, rtol=0, atol=1e-5 * event["per_layer"][theirs]["max"])
            bits = np.unpackbits(case.arrays[f"ev{number}/maskbits/{theirs}"])[: parameters[name_here].numel()]
            masks[name_here] = torch.from_numpy(bits).bool().reshape(parameters[name_here].shape)
        _check_mask(scores, masks, event)
        with torch.no_grad():
            for name_here, mask in masks.items():
                parameters[name_here].mul_(mask)


def _check_mask(scores: Scores, masks: dict[str, torch.Tensor], event: dict) -> None:
    """Ours keeps exactly the asked number; theirs one less (strict >), and the rest within 5e-3 of the threshold."""
    flat = torch.cat([v.flatten() for v in scores.values.values()])
    mask = torch.cat([masks[name].flatten() for name in scores.values])
    wanted = event["k_topk"]
    whole = {name: torch.ones_like(m) for name, m in masks.items()}
    ours, _ = select_weights(scores, {n: whole[n] for n in scores.values}, len(flat), 1 - wanted / len(flat))
    kept = torch.cat([ours[name].flatten() for name in scores.values])
    assert int(kept.sum()) == wanted
    assert wanted - int(mask.sum()) == event["ties_at_threshold"] == 1
    assert int((kept & mask).sum()) >= int(mask.sum()) - 5
    near = (flat[kept ^ mask] - event["threshold"]).abs() / event["threshold"]
    assert bool((near < 5e-3).all())
