"""How a network is trained: numbers only, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.errors import WrongUsage
from compressor.options import checked, option, spelled


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The SNIP-it paper's by default: Adam at 2e-3, L2 5e-5, gradients clipped at 10, batches of 512, no schedule.

    L2 is added to the gradient (coupled), as `torch.optim.Adam(weight_decay=...)` does and the authors' code has it.
    """

    epochs: int = option(80, "times that all samples are seen", least=0)
    batch_size: int = option(512, "samples of a training step", least=1)
    optimizer: Literal["adam", "sgd"] = option("adam", "of the weights; sgd has momentum")
    lr: float = option(2e-3, "learning rate", least=0.0)
    weight_decay: float = option(5e-5, "L2, added to the gradient", least=0.0)
    momentum: float = option(0.9, "of sgd", least=0.0, most=1.0)
    clip: float = option(10.0, "largest norm of all gradients together; 0 clips nothing", least=0.0)
    schedule: Literal["steps", "cosine"] = option(
        "steps", "how the learning rate falls: by steps of decay_every epochs, or from step to step along a cosine to 0"
    )
    decay_every: int = option(0, "epochs after which the learning rate falls; 0 keeps it", least=0)
    decay: float = option(0.1, "what it is multiplied with then", least=0.0)
    flip: float = option(
        -0.2, "share of images mirrored; negative: that share of colour images, none of grey ones", least=-1.0, most=1.0
    )
    shift: int = option(0, "pixels by which images are moved at most; negative: colour images only", least=-1024)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", "of the passes; auto is bfloat16 on a GPU, else float32")

    def __post_init__(self) -> None:
        """Refuse what no option can be.

        Raises:
            WrongUsage: a number is too small, or a choice is none.
        """
        checked(Recipe, "a recipe", vars(self))

    def lr_at(self, epoch: float) -> float:
        """The learning rate after so many epochs, and parts of one."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(epoch / self.epochs, 1))) / 2
        return self.lr * self.decay ** (epoch // self.decay_every) if self.decay_every else self.lr

    def flips(self, colour: bool) -> float:
        """The share of images to mirror."""
        return self.flip if self.flip >= 0 else -self.flip if colour else 0.0

    def shifts(self, colour: bool) -> int:
        """The pixels by which images are moved at most."""
        return self.shift if self.shift >= 0 else -self.shift if colour else 0


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "snip-it": {},
    "snip": {
        "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "clip": 0.0, "batch_size": 128, "decay_every": 77, "flip": -0.5,
        "shift": -4,
    },
    "fine-tune": {
        "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "clip": 0.0, "batch_size": 128, "schedule": "cosine",
        "flip": -0.5, "shift": -4,
    },
}  # fmt: skip
"""Named starting points: SNIP-it's (arXiv 2006.00896), and SNIP's for CIFAR-10 (arXiv 1810.02340): /10 every 30,000 steps,
images mirrored and moved by up to 4 pixels. The third is for networks that are trained: a small rate that falls to 0."""

FEWEST_STEPS = 100
"""Steps of an epoch of fine-tuning, where the data allow them with batches of `LEAST_BATCH`."""

LEAST_BATCH = 16


def fine_tuning(epochs: int, samples: int | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a fine-tuning.

    Args:
        samples: of an epoch, where that is known: few samples make smaller batches, and the rate falls with the batch.
        given: numbers of the user's own.
    """
    usual = RECIPES["fine-tune"]
    batch = usual["batch_size"] if samples is None else min(usual["batch_size"], max(LEAST_BATCH, samples // FEWEST_STEPS))
    rate = usual["lr"] * (given.get("batch_size", batch) / usual["batch_size"]) ** 0.5
    return recipe_named("fine-tune", {"batch_size": batch, "lr": rate, **given, "epochs": epochs})


def recipe_named(name: str, given: Mapping[str, Any]) -> Recipe:
    """A named recipe with some numbers of the user's own.

    Raises:
        WrongUsage: no such recipe, or an option that there is not or that is too small.
    """
    if name not in RECIPES:
        raise WrongUsage(f"no recipe {name!r}: choose {', '.join(RECIPES)}")
    found = Recipe(**checked(Recipe, "a recipe", {**RECIPES[name], **given}))
    if found.schedule == "cosine" and (steps := [option for option in ("decay_every", "decay") if option in given]):
        raise WrongUsage(
            f"{spelled(steps[0], given[steps[0]])} is for {spelled('schedule', 'steps')}, the rate falls by a cosine"
        )
    return found
