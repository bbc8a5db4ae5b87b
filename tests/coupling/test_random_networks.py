"""Networks drawn at random: whatever they are made of, what is left of them is the same network."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.coupling.validate import feasible
from compressor.proof.prove import prove_randomised
from compressor.surgery.network import GroupedNetwork

WIDTHS = (4, 6, 8, 12)


class Step(nn.Module):
    """`(batch, inputs, h, w) -> (batch, outputs, h, w)`."""

    def __init__(self, draw: random.Random, inputs: int) -> None:
        super().__init__()
        self.inputs = self.outputs = inputs
        self.build(draw)

    def build(self, draw: random.Random) -> None:
        raise NotImplementedError


class Conv(Step):
    def build(self, draw):
        self.outputs = draw.choice(WIDTHS)
        self.conv = nn.Conv2d(self.inputs, self.outputs, draw.choice((1, 3)), padding="same", bias=draw.random() < 0.5)
        self.norm = draw.choice((nn.BatchNorm2d, nn.Identity))(self.outputs)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)))


class Grouped(Step):
    def build(self, draw):
        self.conv = nn.Conv2d(self.inputs, self.inputs, 3, padding=1, groups=draw.choice((2, self.inputs)))

    def forward(self, x):
        return torch.relu(self.conv(x)) + 0.1


class Residual(Step):
    def build(self, draw):
        self.branch = Conv(draw, self.inputs)
        self.back = nn.Conv2d(self.branch.outputs, self.inputs, 1)
        self.subtract = draw.random() < 0.3

    def forward(self, x):
        y = self.back(self.branch(x))
        return x - y if self.subtract else x + y


class Concat(Step):
    def build(self, draw):
        self.left, self.right = Conv(draw, self.inputs), Conv(draw, self.inputs)
        self.outputs = self.left.outputs + self.right.outputs

    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], 1)


class Chunks(Step):
    def build(self, draw):
        self.part, self.how = Conv(draw, self.inputs // 2), draw.choice(("first", "sum"))
        self.outputs = self.inputs // 2 + self.part.outputs if self.how == "first" else self.part.outputs

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([a, self.part(b)], 1) if self.how == "first" else self.part(a) + self.part(b)


class Shuffled(Step):
    def build(self, draw):
        self.flip = draw.random() < 0.5

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x.flip(1) if self.flip else x.roll(1, 2)


class Gate(Step):
    def build(self, draw):
        self.narrow = draw.random() < 0.3
        self.squeeze = nn.Conv2d(self.inputs, 3, 1)
        self.excite = nn.Conv2d(3, 1 if self.narrow else self.inputs, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Normed(Step):
    def build(self, draw):
        self.norm = draw.choice((nn.GroupNorm(2, self.inputs), nn.GroupNorm(1, self.inputs)))
        self.last = draw.random() < 0.5
        self.layer = nn.LayerNorm(self.inputs)

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.norm(x)


class Attention(Step):
    def build(self, draw):
        self.heads, self.dims = draw.choice((1, 2, 3)), draw.choice((2, 4))
        self.qkv = nn.Linear(self.inputs, 3 * self.heads * self.dims)
        self.proj = nn.Linear(self.heads * self.dims, self.inputs)
        self.fused = draw.random() < 0.5

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(n, h * w, 3, self.heads, self.dims).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1), v)
        return x + self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(n, c, h, w)


class Shared(Step):
    def build(self, draw):
        self.conv = nn.Conv2d(self.inputs, self.inputs, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(self.inputs, 1, 1))

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x))) * self.scale + x


class Transposed(Step):
    def build(self, draw):
        self.outputs = draw.choice(WIDTHS)
        self.up = nn.ConvTranspose2d(self.inputs, self.outputs, 2, stride=2)

    def forward(self, x):
        return F.max_pool2d(F.silu(self.up(x)), 2)


STEPS = (Conv, Conv, Grouped, Residual, Concat, Chunks, Shuffled, Gate, Normed, Attention, Shared, Transposed)


class Drawn(nn.Module):
    """A stem, three to six steps, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        steps: list[nn.Module] = [Conv(draw, 3)]
        for _ in range(draw.randint(3, 6)):
            kind = draw.choice(STEPS) if steps[-1].outputs % 2 == 0 else Conv  # halves are equal
            steps.append(kind(draw, steps[-1].outputs))
        self.steps, self.fc = nn.Sequential(*steps), nn.Linear(4 * steps[-1].outputs, 5)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.steps(x), 2).flatten(1))


def check(seeds: range) -> None:
    x = (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
    opened = 0.0
    for seed in seeds:
        torch.manual_seed(seed)
        model = Drawn(seed).eval()
        found = feasible(model, x)
        assert found.found_by == "label flow", seed
        generator = torch.Generator().manual_seed(seed)
        kept = {g.name: torch.randperm(g.width, generator=generator)[: -(-g.width // 2)].sort().values for g in found.prunable}
        proof = prove_randomised(GroupedNetwork(model, found, x), kept, seed + 1)
        assert proof, f"seed {seed}: {proof}"
        wrong = [g for g in found.frozen if g.frozen and "changes the result" in g.frozen]
        assert not wrong, f"seed {seed}: the labels missed a coupling: {[(g.name, g.frozen) for g in wrong]}"
        opened += found.open_share
    assert opened / len(seeds) > 0.8


@pytest.mark.parametrize("start", range(0, 60, 15))
def test_random_networks_are_pruned_right(start: int) -> None:
    check(range(start, start + 15))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 600, 100))
def test_hundreds_of_random_networks_are_pruned_right(start: int) -> None:
    check(range(start, start + 100))
