"""A network that another learns from: its outputs stand beside the labels (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import BadInput
from compressor.model.observe import tensors_in
from compressor.objective.batches import Batch
from compressor.objective.losses import cross_entropy, nll_logits
from compressor.objective.objective import Objective
from compressor.options import spelled


@dataclass(frozen=True)
class Teacher:
    """What is learnt from it.

    Attributes:
        network: in eval mode, of no gradient.
        temperature: that the logits of both are divided by.
        share: of the loss that comes from it; the rest comes from the labels.
        forward: how a batch goes through it.
    """

    network: nn.Module
    temperature: float
    share: float
    forward: Callable[[nn.Module, Batch], Any]

    def loss(self, outputs: Any, batch: Batch, objective: Objective) -> Tensor:
        """How far outputs are from the teacher's, a scalar.

        Where the loss is a cross-entropy, T^2 KL(teacher / T, student / T) over the classes, dimension 1; else the mean square.

        Raises:
            BadInput: the teacher gives outputs of other shapes.
        """
        with torch.no_grad():
            wanted = [t for t in tensors_in(self.forward(self.network, batch)) if t.is_floating_point()]
        found = [t for t in tensors_in(outputs) if t.is_floating_point()]
        if [t.shape for t in wanted] != [t.shape for t in found]:
            shapes = [", ".join("x".join(map(str, t.shape[1:])) or "one number" for t in these) for these in (wanted, found)]
            raise BadInput(
                f"the teacher gives {shapes[0]} for a sample, the network {shapes[1]}: a network learns from one of the same "
                f"outputs; name another {spelled('teacher')}"
            )
        if objective.loss in (cross_entropy, nll_logits) and found[0].dim() > 1:
            t = self.temperature
            log_p, log_q = (F.log_softmax(x.float() / t, 1) for x in (found[0], wanted[0]))
            return t * t * F.kl_div(log_p, log_q, reduction="sum", log_target=True) / (log_p.numel() / log_p.shape[1])
        return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(found, wanted, strict=True)]).mean()
