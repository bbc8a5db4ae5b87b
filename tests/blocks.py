"""Small networks with every kind of coupling, on which every invariant is tested; and whether two are the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

BLOCKS: dict[str, Callable[[], nn.Module]] = {}


def block(maker: type[nn.Module]) -> type[nn.Module]:
    """Add a small network `(batch, 3, 8, 8) -> (batch, 5)` to those that every invariant is tested on."""
    BLOCKS[maker.__name__] = maker
    return maker


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same tensors under the same names."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Head(nn.Module):
    """Pool, flatten, classify."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(4 * channels, 5)

    def forward(self, x):
        return self.fc(self.pool(x).flatten(1))


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


@block
class Plain(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.LeakyReLU) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(3, 6), activation(), nn.MaxPool2d(2), conv(6, 8), activation(), Head(8))

    def forward(self, x):
        return self.net(x)


@block
class Swish(Plain):
    def __init__(self) -> None:
        super().__init__(nn.SiLU)


@block
class Residual(nn.Module):
    """A stem read by two blocks whose sums are tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.act = conv(3, 6, bias=False), Head(6), nn.LeakyReLU(0.05, inplace=True)
        self.branches = nn.ModuleList(nn.ModuleList([conv(6, 4), conv(4, 6)]) for _ in range(2))

    def forward(self, x):
        x = self.act(self.stem(x))
        for first, second in self.branches:
            x = self.act(second(self.act(first(x))) + x)
        return self.head(x)


@block
class SharedInput(nn.Module):
    """A ResNet's down-sampling block without biases: `conv1` and `downsample` read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = conv(3, 6, bias=False), conv(6, 8, bias=False), conv(8, 8, bias=False)
        self.downsample, self.head, self.act = conv(6, 8, 1, bias=False), Head(8), nn.ReLU()

    def forward(self, x):
        x = self.act(self.stem(x))
        return self.head(self.act(self.conv2(self.act(self.conv1(x))) + self.downsample(x)))


@block
class Depthwise(nn.Module):
    """Inverted bottleneck with a depthwise convolution of multiplier 2 and a squeeze-and-excitation gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = conv(3, 6, 1), conv(6, 12, groups=6), conv(12, 8, 1)
        self.squeeze, self.excite, self.head = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), Head(8)

    def forward(self, x):
        x = nn.functional.relu6(self.depth(nn.functional.relu6(self.expand(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x * gate))


@block
class Grouped(nn.Module):
    """A grouped convolution between dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12, groups=4), nn.ReLU(), conv(12, 6), nn.ReLU(), Head(6))

    def forward(self, x):
        return self.net(x)


@block
class Dense(nn.Module):
    """Concatenation, as in a DenseNet: every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.layers = nn.ModuleList(conv(4 + 3 * n, 3) for n in range(3))
        self.norm, self.head = nn.BatchNorm2d(13), Head(13)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(torch.relu(self.norm(x)))


@block
class Split(nn.Module):
    """Halves that go different ways and meet again in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = conv(3, 8), conv(4, 4), conv(4, 6), Head(10)

    def forward(self, x):
        a, b = torch.relu(self.stem(x)).split([4, 4], dim=1)
        return self.head(torch.cat([torch.relu(self.right(b)), torch.relu(self.left(a))], 1).flip(1))


@block
class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle, whose reshape carries the groups' number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.head = conv(3, 8), conv(4, 4), Head(8)

    def forward(self, x):
        a, b = torch.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([a, torch.relu(self.second(b))], 1)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


@block
class Scaled(nn.Module):
    """A layer scale and a bias that are parameters of the network itself, PReLU, and one convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = conv(3, 6), nn.Conv2d(6, 6, 3, padding=1), Head(6)
        self.act, self.scale = nn.PReLU(6), nn.Parameter(torch.rand(1, 6, 1, 1) + 0.5)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = x + self.twice(x) * self.scale
        return self.head(x + self.twice(x))


class Tokens(nn.Module):
    """A map as tokens `(batch, 16, 12)`, with a position embedding; the mean of them is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.position = nn.Conv2d(3, 12, 2, stride=2), nn.Parameter(torch.randn(1, 16, 12))
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 5)

    def mixed(self, x):
        raise NotImplementedError

    def forward(self, x):
        x = self.mixed(self.stem(x).flatten(2).transpose(1, 2) + self.position)
        return self.fc(self.norm(x).mean(1))


class OwnHeads(nn.Module):
    """Attention that remembers its heads; `from_input` takes the sizes from what comes in instead."""

    def __init__(self, from_input: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.from_input = 3, 4, from_input
        self.norm, self.qkv, self.proj = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.bias = nn.Parameter(torch.randn(1, 3, 1, 16))

    def forward(self, x):
        b, n, c = x.shape
        dims = c // self.num_heads if self.from_input else self.head_dim
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, dims).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 0.5 + self.bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c if self.from_input else -1))


@block
class Attention(Tokens):
    """Two blocks of attention and a perceptron, as in a vision transformer."""

    def __init__(self, from_input: bool = False) -> None:
        super().__init__()
        self.first, self.second = OwnHeads(from_input), OwnHeads(from_input)
        self.mlp = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))

    def mixed(self, x):
        x = x + self.first(x)
        return (x := x + self.second(x)) + self.mlp(x)


@block
class SizesFromInput(Attention):
    """The heads take their size from the stream, so both lose nodes together."""

    def __init__(self) -> None:
        super().__init__(from_input=True)


@block
class TorchAttention(Tokens):
    """torch's own attention, whose weights are applied by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))

    def mixed(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


@block
class OneHead(Tokens):
    """Queries and keys meet dimension by dimension, in an einsum; values are read by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 8)
        self.norm = nn.RMSNorm(12)
        self.out = nn.Linear(8, 12)

    def mixed(self, x):
        weights = torch.einsum("bnd,bmd->bnm", self.query(x), self.key(x)).softmax(-1)
        return x + self.out(torch.bmm(weights, self.value(x)))


@block
class Mixer(Tokens):
    """A perceptron over the tokens: its nodes are positions, and stay."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Linear(16, 16), nn.Linear(12, 12)

    def mixed(self, x):
        x = x + torch.relu(self.tokens(x.transpose(1, 2))).transpose(1, 2)
        return x + torch.relu(self.channels(x))


@block
class Recurrent(Tokens):
    """A layer before and a layer behind an LSTM of two layers that reads both ways, and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(12, 6, 2, batch_first=True, bidirectional=True), nn.GRU(12, 12, batch_first=True)

    def mixed(self, x):
        return self.gru(self.lstm(x)[0])[0]


@block
class GroupNormed(nn.Module):
    """Norms over groups of channels, over all of them, and a convolution that makes the map larger."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.up, self.all, self.head = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.GroupNorm(1, 6), Head(6)
        self.depth = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=6)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.depth(self.all(self.up(x)))))


class Auxiliary(nn.Module):
    """A head that runs only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.head, self.aux = conv(3, 8), conv(8, 6), Head(6), Head(8)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.head(torch.relu(self.second(x)))
        return (y, self.aux(x)) if self.training else y


class Stubborn(nn.Module):
    """A size in the code: removal there cannot run, the rest can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 6), conv(6, 8), Head(8)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.reshape(x.shape[0], 8, *x.shape[2:]))
