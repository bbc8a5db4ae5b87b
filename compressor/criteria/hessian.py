"""Criteria of second order: what removal does to the gradient (GraSP), and to the loss at a minimum (Optimal Brain Damage)."""

from __future__ import annotations

import torch
from torch import nn

from compressor.criteria.variables import gradient, hessian_product, variables
from compressor.errors import BadInput
from compressor.objective.objective import Objective
from compressor.settings import Unit
from compressor.types.scores import Scores
from compressor.types.structure import Structure


def gradient_flow(model: nn.Module, structure: Structure, objective: Objective, unit: Unit) -> Scores:
    """theta * H g, with H g the Hessian's product with the gradient (GraSP, eq. 8: S(-theta) = -theta * H g, high S goes).

    To first order, removal of an entry changes the squared norm of the gradient by -2 theta H g, so what the norm lives on
    scores high.
    """
    with variables(model, structure, unit) as (twin, by):
        g, loss, samples = gradient(twin, by, objective)
        product = hessian_product(twin, by, objective, g)
        values = {name: (by[name].detach() * product[name]).cpu() for name in by}
    if not any(bool(value.any()) for value in values.values()):
        raise BadInput("every score is 0: the Hessian's product with the gradient vanishes; use a criterion of first order")
    return _scores(values, loss, samples, unit)


def damage(model: nn.Module, structure: Structure, objective: Objective, unit: Unit, probes: int) -> Scores:
    """theta^2 h / 2, with h the Hessian's diagonal (Optimal Brain Damage, eq. 5): how much the loss rises without the entry.

    The diagonal is Hutchinson's mean of z * H z over random signs z: unbiased, and exact where the Hessian is diagonal.

    Args:
        probes: random sign vectors.
    """
    generator = torch.Generator().manual_seed(objective.seed)
    with variables(model, structure, unit) as (twin, by):
        _, loss, samples = gradient(twin, by, objective)
        diagonal = {name: torch.zeros_like(variable) for name, variable in by.items()}
        for _ in range(probes):
            signs = {n: torch.randint(0, 2, v.shape, generator=generator).to(v).mul_(2).sub_(1) for n, v in by.items()}
            product = hessian_product(twin, by, objective, signs)
            for name, total in diagonal.items():
                total.addcmul_(signs[name], product[name], value=1 / probes)
        values = {name: (by[name].detach() ** 2 * diagonal[name] / 2).cpu() for name in by}
    if not any(bool(value.any()) for value in values.values()):
        raise BadInput("every score is 0: the loss has no curvature; use a criterion of first order")
    return _scores(values, loss, samples, unit)


def _scores(values: dict[str, torch.Tensor], loss: float, samples: int, unit: Unit) -> Scores:
    return Scores({name: v.double() if unit == "node" else v for name, v in values.items()}, loss, samples, unit)
