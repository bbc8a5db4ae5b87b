"""Which entries of a weight stay: one bit each."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_WEIGHTS = 10**10
MOST_DIMS = 8
"""Entries of all masks together, and dimensions of a weight: far above any network's; a plan that claims more is damaged."""


@dataclass(frozen=True)
class Mask:
    """Which entries of a weight stay.

    Attributes:
        shape: of the weight in the original network.
        bits: one for each entry, 1 = stays, the last index fastest, eight to a byte.
    """

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, kept: Tensor) -> Mask:
        """From booleans of the weight's shape."""
        return cls(tuple(kept.shape), np.packbits(kept.cpu().numpy().reshape(-1)).tobytes())

    def tensor(self) -> Tensor:
        """Booleans of the weight's shape, True = stays."""
        flat = np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=math.prod(self.shape))
        return torch.from_numpy(flat.reshape(self.shape)).bool()

    def packed(self) -> Tensor:
        """The bits as they are, uint8 `(bytes,)`, for a file that holds tensors."""
        return torch.frombuffer(bytearray(self.bits), dtype=torch.uint8)

    def as_json(self, *, bits: bool = True) -> dict[str, Any]:
        """For a plan's text: the shape, and the bits compressed; without them where a tensor of the file holds them."""
        text = {"bits": base64.b64encode(zlib.compress(self.bits)).decode()} if bits else {}
        return {"shape": list(self.shape), **text}

    @classmethod
    def from_json(cls, raw: Any, packed: Tensor | None = None) -> Mask:
        """Read a mask.

        Args:
            raw: what `as_json` gave.
            packed: what `packed` gave, where the text leaves the bits out.
        Raises:
            ValueError, KeyError, TypeError: damaged.
        """
        shape = _shape_from(raw)
        size = (math.prod(shape) + 7) // 8
        return cls(shape, _unzipped(raw["bits"], size) if packed is None else _unpacked(packed, size))


def masks_from(raw: Mapping[str, Any], packed: Mapping[str, Tensor]) -> dict[str, Mask]:
    """Read all masks of a plan.

    Args:
        raw: weight -> what `Mask.as_json` gave.
        packed: weight -> what `Mask.packed` gave, for exactly those whose bits the text leaves out.
    Raises:
        ValueError, KeyError, TypeError, AttributeError: damaged.
    """
    if sum(math.prod(_shape_from(mask)) for mask in raw.values()) > MOST_WEIGHTS:
        raise ValueError("the masks' shapes")
    if other := packed.keys() ^ {name for name, mask in raw.items() if "bits" not in mask}:
        raise ValueError(f"the mask of {min(other)} is missing, or the plan does not speak of it")
    return {str(name): Mask.from_json(mask, packed.get(name)) for name, mask in raw.items()}


def _shape_from(raw: Any) -> tuple[int, ...]:
    shape = tuple(raw["shape"])
    if len(shape) > MOST_DIMS or not all(type(size) is int and 0 < size <= MOST_WEIGHTS for size in shape):
        raise ValueError("a mask's shape")
    if math.prod(shape) > MOST_WEIGHTS:
        raise ValueError("a mask's shape")
    return shape


def _unzipped(text: str, size: int) -> bytes:
    """The bits in a text; what claims to be longer than it may be is not unpacked."""
    try:
        bits = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(bits) != size:
        raise ValueError("a mask's length")
    return bits


def _unpacked(tensor: Tensor, size: int) -> bytes:
    """The bits in a tensor of a file."""
    plain = tensor.dtype == torch.uint8 and tensor.layout == torch.strided and tensor.is_contiguous()
    if not plain or tuple(tensor.shape) != (size,):
        raise ValueError("a mask's tensor is not one byte for eight entries of its shape")
    return tensor.cpu().numpy().tobytes()
