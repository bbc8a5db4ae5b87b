"""The note that a network carries of where it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compressor.types.mask import Mask
from compressor.types.origin import Origin


def origin_of(model: nn.Module) -> Origin | None:
    """Where a network comes from; None for one that is not ours."""
    origin = getattr(model, "origin", None)
    return origin if isinstance(origin, Origin) else None


def planned_masks(model: nn.Module) -> Mapping[str, Mask]:
    """The masks of the weights that the network's plan, if it has one, set to zero."""
    origin = origin_of(model)
    return origin.plan.masks if origin and origin.plan else {}


def set_origin(model: nn.Module, origin: Origin) -> None:
    """Note, in place, where a network comes from; copies of it carry the note along."""
    model.__dict__["origin"] = origin
