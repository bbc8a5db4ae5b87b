"""The weights that single entries can be removed from."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

LAYERS = (_ConvNd, nn.Linear)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def maskable(model: nn.Module) -> dict[str, nn.Parameter]:
    """State-dict name -> weight, of all convolutions, linear layers and recurrent cells; a shared one once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            layer = isinstance(module, LAYERS) and name == "weight"
            if layer or (isinstance(module, RECURRENT) and name.startswith("weight_")):
                found.setdefault(id(parameter), (f"{prefix}.{name}".removeprefix("."), parameter))
    return dict(found.values())


def weight_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of all convolutions, linear layers and recurrent cells, outputs along the first dimension; shared ones once.

    Unlike `maskable`, it has what a parametrisation computes, too.
    """
    found: dict[int, Tensor] = {}
    seen: list[Tensor] = []  # alive until the end, so that no identity is given twice
    for module in model.modules():
        named = dict(module.named_parameters(recurse=False)) if isinstance(module, RECURRENT) else {}
        own = [p for name, p in named.items() if name.startswith("weight_")]
        for weight in [module.weight] if isinstance(module, LAYERS) else own:
            found[id(weight)] = weight.detach().transpose(0, 1) if isinstance(module, _ConvTransposeNd) else weight.detach()
            seen.append(weight)
    return list(found.values())


def present(model: nn.Module, planned: Collection[str]) -> dict[str, Tensor]:
    """Weight -> booleans of its shape, on the CPU: what was not masked before.

    What is zero beside other values was, and a weight that is zero whole where it is among `planned`; else it is a fresh start.
    """
    there = {name: weight.detach().cpu() != 0 for name, weight in maskable(model).items()}
    return {n: mask if bool(mask.any()) or n in planned else torch.ones_like(mask) for n, mask in there.items()}


def unset(model: nn.Module, planned: Collection[str]) -> int:
    """Entries of weights that are zero whole without being `planned`: they get their values in training."""
    there, weights = present(model, planned), maskable(model)
    return sum(int(mask.sum()) for name, mask in there.items() if not bool(weights[name].any()))


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter -> its first one, which is another where the parameter is shared."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def masked(model: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` whose weights are zero where `kept`, booleans of the weights' shapes by name, is not."""
    memo: dict[int, Tensor] = {}
    for name, mask in kept.items():
        parameter = model.get_parameter(name)
        value = parameter.detach().clone().masked_fill_(~mask.to(parameter.device), 0.0)  # times 0 would leave -0.0
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    return copy.deepcopy(model, memo)
