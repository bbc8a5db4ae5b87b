"""Where a network comes from, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.errors import WrongUsage
from compressor.types.plan import Plan


@dataclass(frozen=True)
class InputSpec:
    """One input of a network: `3x224x224`, `int64:128`, or with the argument's name `ids:int64:128`.

    Attributes:
        shape: of one sample, without the batch.
        dtype: name of the data type.
        name: the argument of `forward`; None for an input given by position.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None

    DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        named = [self.name] if self.name else []
        return ":".join([*named, *([self.dtype] if named or self.dtype != "float32" else []), shape])

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read `[name:][dtype:]3x224x224`.

        Raises:
            WrongUsage: it is written otherwise, or a size is 0.
        """
        *before, size = text.split(":")
        dtype = before.pop() if before and before[-1] in cls.DTYPES else "float32"
        if len(before) > 1 or not all(name.isidentifier() for name in before):
            raise WrongUsage(f"input {text}: write SHAPE, DTYPE:SHAPE or NAME:DTYPE:SHAPE; DTYPE is {', '.join(cls.DTYPES)}")
        sizes = size.split("x")
        if not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) > 0 for part in sizes):
            raise WrongUsage(f"input {text}: a shape is sizes of at least 1 without the batch, such as 3x224x224")
        return cls(tuple(int(part) for part in sizes), dtype, before[0] if before else None)


@dataclass(frozen=True)
class Origin:
    """Where a network comes from; travels with it as `model.origin` and in our checkpoints.

    Attributes:
        network: its builder: a name in `compressor.networks`, `torchvision:resnet50`, `timm:...`, `package.module:factory`
            or `file.py:factory`; None for a network that was loaded as a whole.
        arguments: what the builder was called with.
        inputs: what it takes; empty where that is not known.
        data: name or path of the data set it belongs to; None for none.
        plan: what was removed since it was built; by the last pruning alone, where it and an earlier one cannot be joined.
        preprocessing: mean and standard deviation that images are normalised with, where they were chosen.
        notes: sentences about how the file was read; they are not saved.
        sizes: numbers of channels that modules remember in their attributes, where nodes were removed: `attn.num_heads` -> 3.
        trained: whether it was trained since it was built; None where that is not known.
    """

    network: str | None
    arguments: Mapping[str, Any]
    inputs: tuple[InputSpec, ...] = ()
    data: str | None = None
    plan: Plan | None = None
    preprocessing: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    trained: bool | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input."""
        return self.inputs[0].shape if self.inputs else ()
