"""What a network gives in training only, made to be the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode


@contextmanager
def in_branches(twin: nn.Module) -> Iterator[None]:
    """Let a twin take the branches of train mode: norms and torch's own modules stay in eval mode, dropout does nothing."""
    own = [m for m in twin.modules() if not type(m).__module__.startswith("torch.nn.modules")]
    others = [m for m in own if not isinstance(m, (_NormBase, _DropoutNd))]
    for module in others:
        module.training = True
    torch.manual_seed(0)  # noise, such as stochastic depth, is the same each time; the random state is put back by `observed`
    with _NoDropout():
        yield
    for module in others:
        module.training = False


class _NoDropout(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if function is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], *((0.0,) if len(args) > 4 else ()), *args[5:]), {**kwargs}
            kwargs |= {"dropout_p": 0.0} if len(args) < 5 else {}
        return function(*args, **kwargs)


_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.alpha_dropout, torch.feature_dropout,
}  # fmt: skip
