"""Seeded damage to plans and our own checkpoints: one line or a sound result, never another exception."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from compressor import Plan, compress, load, networks, save
from compressor.errors import CompressError

JUNK = [None, True, -1, 0, 3, 10**9, 1e308, 0.5, "x", "", [], [1], {}, {"a": 1}, [[0, 1]], float("nan")]


@pytest.fixture(scope="module")
def pruned() -> tuple[torch.nn.Module, Plan]:
    model = networks.build("lenet300100", seed=1)
    data = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,)))]
    result = compress(model, "snapit", data, 0.9)
    return result.model, result.plan


def mutated(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    kind = draw.randrange(4)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    elif kind == 1:
        del changed[draw.randrange(len(changed)) :]
    elif kind == 2:
        place = draw.randrange(len(changed))
        changed[place:place] = draw.randbytes(draw.randint(1, 40))
    else:
        one, other = sorted(draw.randrange(len(changed)) for _ in range(2))
        del changed[one:other]
    return bytes(changed)


def places(value, path=()):
    """Every place in a JSON document."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_plans(seed: int, pruned) -> None:
    text, draw, refused = pruned[1].to_json(), random.Random(seed), 0
    everywhere = list(places(json.loads(text)))
    for number in range(150):
        if number % 2:
            damaged = mutated(text.encode(), draw).decode("utf-8", "replace")
        else:
            document = json.loads(text)
            path = draw.choice(everywhere[1:])
            inner = document
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = draw.choice(JUNK)
            damaged = json.dumps(document)
        try:
            plan = Plan.from_json(damaged)
        except CompressError as error:
            refused += "\n" not in str(error)
        else:
            assert all(len(k) and int(k.max()) < plan.widths[n] for n, k in plan.kept.items())
    assert refused > 90


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_checkpoints(suffix: str, pruned, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save(pruned[0], path)
    good, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        path.write_bytes(mutated(good, draw))
        try:
            load(path)
        except CompressError as error:
            refused += "\n" not in str(error)
    assert refused > 100
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_plans_that_no_pruning_made(pruned) -> None:
    def changed(**kept) -> str:
        document = json.loads(pruned[1].to_json())
        document["events"][-1]["kept"] |= kept
        return json.dumps(document)

    for kept, words in (
        ([0, 0, 1], "must rise"), ([1, 0], "must rise"), ([10**6], "out of range"), ([-1], "out of range"),
        ([0.5], "out of range"), ([], "keep at least one"),
    ):  # fmt: skip
        with pytest.raises(CompressError, match=words):
            Plan.from_json(changed(**{"1": kept}))
    with pytest.raises(CompressError, match="other groups"):
        Plan.from_json(changed(nosuch=[0]))
