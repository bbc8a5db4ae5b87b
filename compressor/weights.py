"""The weights that single entries can be removed from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

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


def masked(model: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` whose weights are zero where `kept`, booleans of the weights' shapes by name, is not."""
    memo: dict[int, Tensor] = {}
    for name, mask in kept.items():
        parameter = model.get_parameter(name)
        value = parameter.detach().clone().masked_fill_(~mask.to(parameter.device), 0.0)  # times 0 would leave -0.0
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    return copy.deepcopy(model, memo)
