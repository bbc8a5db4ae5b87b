"""Whether a network's weights are fit to work with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from compressor.errors import BadInput
from compressor.types.plan import fingerprint


def not_finite(model: nn.Module) -> str | None:
    """The first tensor of a network's state that holds NaN, or infinity where only a mask would have it; None if there is none.

    Attention adds minus infinity to what must not be seen: buffers may hold that, but for the statistics of norms.
    """
    masks = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules() if not isinstance(module, _NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            good = ~torch.isnan(tensor) & (tensor != math.inf) if name in masks else torch.isfinite(tensor)
            if not bool(good.all()):
                return name
    return None


def architecture_of(model: nn.Module) -> str:
    """A fingerprint of the names and shapes of a network's tensors."""
    return fingerprint((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are not finite, and those that a hook computes from others.

    Raises:
        BadInput: naming the first such tensor.
    """
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise BadInput(
                    f"{prefix}.{attribute} is computed by a hook before each pass; make it permanent first: "
                    "torch.nn.utils.prune.remove or torch.nn.utils.remove_weight_norm"
                )
    for name, tensor in model.state_dict().items():
        if is_lazy(tensor):
            raise BadInput(f"{name} has no values yet; run the network once on data")
    if (broken := not_finite(model)) is not None:
        raise BadInput(f"{broken} has NaN or infinite values; repair or retrain the network first")
