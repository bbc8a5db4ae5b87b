"""Synaptic flow: what a weight or node carries in a network of positive weights, without any data (SynFlow, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from compressor.criteria.variables import variables
from compressor.errors import BadInput, UnsupportedNetwork
from compressor.model.inputs import Inputs, each, run
from compressor.model.observe import tensors_in
from compressor.settings import Unit
from compressor.types.scores import Scores
from compressor.types.structure import Structure


def synaptic_flow(model: nn.Module, structure: Structure, inputs: Inputs, unit: Unit) -> Scores:
    """theta * dR/dtheta / R, with R the sum of the outputs for an input of ones, all weights |w|, biases and running means 0.

    In a network of layers, (Leaky)ReLU and pooling the weights of each layer that all paths pass score 1 in sum (the paper's
    conservation law). |w| is made for one layer at a time, in float64, and made again on the way back, so that the network is
    never copied; R scales all scores alike, and dividing by it keeps them in range.

    Args:
        inputs: only their shapes matter.
    Raises:
        UnsupportedNetwork: R is not finite or not positive: some activation does not let positive values through.
        BadInput: no input is a tensor of numbers.
    """
    ones = each(inputs, lambda x: torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1])
    if not any(x.is_floating_point() for x in tensors_in(ones if isinstance(ones, dict) else tuple(ones))):
        raise BadInput("the input is not made of real numbers, so that there is no flow from it; use another method")
    with variables(model, structure, unit) as (twin, by):
        for module in twin.modules():
            if next(module.parameters(recurse=False), None) is not None or isinstance(module, _NormBase):
                _make_positive(module)
        flow = torch.stack([y.sum() for y in tensors_in(run(twin, ones))]).sum()
        if not bool(torch.isfinite(flow)) or flow.item() <= 0:
            why = "an activation or a norm over channels stops it; use another method"
            raise UnsupportedNetwork(f"the synaptic flow is {flow.item():g}, not positive: {why}")
        found = torch.autograd.grad(flow / flow.detach(), list(by.values()), allow_unused=True)
        values = {}
        for (name, variable), g in zip(by.items(), found, strict=True):
            its = torch.zeros_like(variable) if g is None else g * variable.detach()
            values[name] = its.double().cpu() if unit == "node" else its.cpu()
    return Scores(values, None, 0, unit)


def _make_positive(module: nn.Module) -> None:
    """Let a module compute, from now on, with |w| in float64, with biases of 0, and as a norm only scale."""
    whole: Callable[..., Any] = module.forward

    def positive(*args: Any, **options: Any) -> Any:
        def compute(*inner: Any) -> Any:
            own = module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention))
            tensors = {name: _positive(module, name, p) for name, p in own}
            tensors |= {name: _neutral(name, b) for name, b in module.named_buffers(recurse=False)}
            return functional_call(_Shell(module, whole), {f"module.{name}": t for name, t in tensors.items()}, inner, options)

        return checkpoint(compute, *args, use_reentrant=False)

    module.forward = positive


class _Shell(nn.Module):
    """A module's own forward pass, beneath the one that replaced it."""

    def __init__(self, module: nn.Module, whole: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.__dict__["whole"] = whole

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.__dict__["whole"](*args, **options)


def _positive(module: nn.Module, name: str, parameter: Tensor) -> Tensor:
    if "bias" in name:
        return torch.zeros_like(parameter, dtype=torch.float64)
    return parameter.double().abs()


def _neutral(name: str, buffer: Tensor) -> Tensor:
    if not buffer.is_floating_point():
        return buffer
    return torch.zeros_like(buffer, dtype=torch.float64) if "mean" in name else buffer.double()
