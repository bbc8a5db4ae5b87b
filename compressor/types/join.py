"""The masks of two plans, one after the other, as those of one plan of the original network."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.errors import BadInput
from compressor.types.mask import Mask
from compressor.types.structure import Kept, Structure


def joined_masks(
    earlier: Mapping[str, Mask], later: Mapping[str, Mask], left: Kept, end: Kept, structure: Structure | None
) -> dict[str, Mask]:
    """Weight -> which of its entries stay, in the shapes of the original network.

    A node that a plan without masks removes loses the weights that are left of it then. One that a plan with masks removes was
    dead by those masks: its readers keep theirs, for what it always says moves into their biases.

    Args:
        earlier: masks of the first plan; empty where it only removes nodes.
        later: masks of the second plan, in the shapes that the first one leaves.
        left: nodes that the first plan leaves, as indices into the original network.
        end: nodes that both leave.
        structure: of the original network; None where no node goes.
    Raises:
        BadInput: a later mask does not fit what the earlier plan leaves of its weight.
    """
    between, after = ({} if structure is None else structure.kept_entries(kept) for kept in (left, end))
    shapes = dict(structure.shapes) if structure else {}
    shapes |= {name: mask.shape for name, mask in later.items() if name not in shapes}
    shapes |= {name: mask.shape for name, mask in earlier.items()}
    masks = {}
    for name in earlier.keys() | later.keys():
        places = [between.get((name, dim), torch.arange(size)) for dim, size in enumerate(shapes[name])]
        if later:
            there = _fitting(name, later, places)
        else:
            there = _all_of([torch.isin(at, after.get((name, dim), at)) for dim, at in enumerate(places)])
        stays = earlier[name].tensor() if name in earlier else torch.full(shapes[name], bool(earlier))
        grid = tuple(_along(dim, at, len(places)) for dim, at in enumerate(places))
        stays[grid] = stays[grid] & there if earlier else there
        masks[name] = Mask.of(stays)
    return masks


def _fitting(name: str, later: Mapping[str, Mask], places: list[Tensor]) -> Tensor:
    """The later plan's mask of a weight of which `places` are left along each dimension."""
    if name not in later or tuple(map(len, places)) != later[name].shape:
        raise BadInput(f"{name}: the later plan's mask does not fit what the earlier one leaves of it")
    return later[name].tensor()


def _all_of(sides: list[Tensor]) -> Tensor:
    """Booleans of as many dimensions as there are `sides`: true where that place of every side, `(size,)`, is."""
    return functools.reduce(torch.logical_and, (_along(dim, side, len(sides)) for dim, side in enumerate(sides)))


def _along(dim: int, values: Tensor, dims: int) -> Tensor:
    """The values `(size,)` along one of `dims` dimensions; the others have size 1."""
    return values.reshape([-1 if d == dim else 1 for d in range(dims)])
