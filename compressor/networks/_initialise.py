"""Fresh weights as the papers have them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn


def initialise(model: nn.Module, weights: Literal["orthogonal", "glorot"] = "orthogonal") -> None:
    """Initialise every layer in place.

    Args:
        weights: `orthogonal` is SNIP-it's: orthogonal with the gain of LeakyReLU(0.05), gain 1 in the last layer, biases
            uniform in +-1/sqrt(fan_in). `glorot` is SNIP's variance scaling: normal with variance
            2 / (fan_in + fan_out), biases 0.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_parameters()
    for recurrent in (m for m in model.modules() if isinstance(m, nn.RNNBase)):
        for parameter in recurrent.parameters():
            nn.init.xavier_normal_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    for layer in layers:
        if weights == "glorot":
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            continue
        drawn = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device=layer.weight.device)  # in any layout
        nn.init.orthogonal_(drawn, 1.0 if layer is layers[-1] else nn.init.calculate_gain("leaky_relu", 0.05))
        with torch.no_grad():
            layer.weight.copy_(drawn)
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound)
