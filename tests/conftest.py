"""What the tests share: real data, the reference cases, and small networks with every kind of coupling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import networks
from compressor.data import Samples, open_data

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
BLOCKS: dict[str, Callable[[], nn.Module]] = {}


def block(maker: type[nn.Module]) -> type[nn.Module]:
    """Add a small network `(batch, 3, 8, 8) -> (batch, 5)` to those that every invariant is tested on."""
    BLOCKS[maker.__name__] = maker
    return maker


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


class Stubborn(nn.Module):
    """A size in the code: removal there cannot run, the rest can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 6), conv(6, 8), Head(8)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.reshape(x.shape[0], 8, *x.shape[2:]))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the project's shared folder beside the checkout")
    return SHARED


@pytest.fixture(params=sorted(BLOCKS))
def block_network(request) -> nn.Module:
    """Each small network, with weights and norms that hide nothing."""
    from compressor.proof import randomised

    torch.manual_seed(0)
    return randomised(BLOCKS[request.param]()).eval()


@pytest.fixture
def image_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches for the small networks."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, 8, 8, generator=generator), torch.randint(5, (6,), generator=generator)) for _ in range(3)]


@pytest.fixture(scope="session")
def digits() -> Samples:
    """160 real digits for a 1x28x28 network."""
    return Samples(open_data("digits").train, (1, 28, 28), 160, 32, seed=0)


@pytest.fixture
def lenet5() -> nn.Module:
    return networks.build("lenet5", data="digits")
