"""What the tests share: real data, the small networks, and random numbers that repeat."""

from __future__ import annotations

import gc
import io
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each worker has a core, and so have its commands

import numpy as np
import pytest
import torch
from torch import nn

from compressor import networks
from compressor.data import Columns, Preprocessing, Samples, hold, open_data
from compressor.proof.prove import randomised
from tests import SHARED
from tests.blocks import BLOCKS

gc.freeze()  # what torch and the rest have made by now stays: looking through it again and again took a tenth of the time
gc.set_threshold(50_000)


def pytest_collectstart() -> None:
    """What a module draws while it is imported is the same in every process, whatever was imported before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Every test draws the same numbers whenever and wherever it runs: one that fails once fails again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the project's shared folder beside the checkout")
    return SHARED


@pytest.fixture(params=sorted(BLOCKS))
def block_network(request) -> nn.Module:
    """Each small network, with weights and norms that hide nothing."""
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


@pytest.fixture(scope="session")
def all_digits() -> tuple[Columns, Columns]:
    """The digits of training and of test, held as a 1x28x28 network sees them."""
    data = open_data("digits")
    return tuple(hold(part, (1, 28, 28), Preprocessing()) for part in (data.train, data.test))


@pytest.fixture(scope="session")
def few(all_digits) -> tuple[Columns, Columns]:
    """Enough digits to see what happens, not to learn."""
    return tuple(Columns(part.inputs[:192], part.targets[:192]) for part in all_digits)


@pytest.fixture(scope="session")
def few_npz() -> bytes:
    """The same digits as a `.npz` file."""
    data, chosen, parts = open_data("digits"), torch.arange(192), {}
    for name, split in (("train", data.train), ("test", data.test)):
        parts[f"{name}_images"] = (torch.stack(split.fetch(chosen)) * 255).byte().numpy()
        parts[f"{name}_labels"] = split.labels[chosen].numpy()
    file = io.BytesIO()
    np.savez(file, **parts)
    return file.getvalue()


@pytest.fixture
def few_folder(tmp_path: Path, few_npz: bytes) -> Path:
    """A folder whose `few.npz` holds a few digits."""
    (tmp_path / "few.npz").write_bytes(few_npz)
    return tmp_path


@pytest.fixture
def lenet5() -> nn.Module:
    return networks.build("lenet5", data="digits")
