"""What the scores are derivatives of: batches of data, a forward pass and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import epoch_of
from compressor.errors import BadInput, CompressError, first_line
from compressor.model.inputs import Inputs
from compressor.model.observe import observed, tensors_in
from compressor.objective.batches import Batch, call, check_finite, inputs_of, size_of, suited_batch, to_device
from compressor.objective.losses import IGNORED, Loss, cross_entropy, nll_logits
from compressor.objective.metrics import Judged, Metric, measured


@dataclass
class Objective:
    """Batches, forward and loss in one hand.

    Attributes:
        data: anything that yields batches: a re-iterable is read afresh at each event; an iterator is cached at the first.
        loss: mean loss of a batch.
        forward: how a batch goes through the network.
        device: where batches are moved to.
        seed: what a method's own random draws start from.
        example: inputs of the network's shapes, for criteria that need no data.
        metric: what else networks are judged by.
    """

    data: Iterable[Batch]
    loss: Loss = cross_entropy
    forward: Callable[[nn.Module, Batch], Any] = call
    device: str = "cpu"
    seed: int = 0
    example: Inputs | None = None
    metric: Metric | None = None
    _cache: list[Batch] | None = field(default=None, init=False)

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one event, on the device.

        Args:
            epoch: of data that are known by epoch; others are read as they come.
        Raises:
            BadInput: there are none, or one holds NaN or infinity.
        """
        empty = True
        for batch in self.as_given(epoch):
            empty = False
            check_finite(batch)
            yield to_device(batch, self.device)
        if empty:
            raise BadInput("the data yields no batch; give at least one sample")

    def as_given(self, epoch: int = 0) -> Iterable[Batch]:
        """The batches of one event as the data yields them, neither checked nor moved."""
        if self._cache is None and isinstance(self.data, Iterator):
            self._cache = list(self.data)
        return self._cache if self._cache is not None else epoch_of(self.data, epoch)

    def example_inputs(self) -> Inputs:
        """Inputs of the network's shapes: the example, else the first batch's."""
        return self.example if self.example is not None else inputs_of(next(self.batches()))

    def loss_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of one batch, a scalar with its graph.

        Raises:
            BadInput: the loss does not fit the outputs and targets.
        """
        return self.loss_from(self.forward(model, batch), batch)

    def loss_from(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean loss of one batch whose outputs are known already.

        Raises:
            BadInput: the loss does not fit the outputs and targets.
        """
        try:
            loss = self.loss(outputs, batch)
        except CompressError:
            raise
        except (Exception, SystemExit) as error:  # a loss of the user's own may raise anything, or even exit
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(outputs))
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"the loss does not fit the network's outputs {shapes} and the data's targets ({reason})") from error
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise BadInput(f"the loss must be one number per batch, a scalar tensor, not {got}")
        return loss

    def right(self, outputs: Any, batch: Batch) -> Tensor | None:
        """Which of a batch's labels `(batch,)` are the arg-max of logits `(batch, classes)`, as booleans `(labels,)`.

        Labels of -100 are none, as in cross-entropy. None where targets are not one label per sample, or where a loss of the
        user's own leaves open which part of the batch, or which output, that would be.
        """
        found = list(tensors_in(outputs))
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not found:
            return None
        if self.loss not in (cross_entropy, nll_logits):  # of one of the user's own nobody knows what its targets mean
            return None
        logits, target = found[0], batch[1]
        if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
            return None
        if logits.dim() != 2 or logits.shape[1] < 2:
            return None
        return torch.eq(logits.argmax(1), target)[target != IGNORED]

    def hits(self, outputs: Any, batch: Batch) -> Tensor | None:
        """How many of a batch's labels are right, and how many there are, `(2,)`; None as in `right`."""
        right = self.right(outputs, batch)
        return None if right is None else torch.stack([right.sum(), torch.tensor(len(right), device=right.device)])


@dataclass(frozen=True)
class Quality:
    """How well a network does on some data.

    Attributes:
        loss: mean over the samples.
        accuracy: share of samples whose arg-max is the label; None where targets are not one label per sample, or nobody knows,
            as with a loss of the user's own.
        samples: number of samples seen.
        classes: that it tells apart; None with the accuracy.
        metric: of the user's choice.
    """

    loss: float
    accuracy: float | None
    samples: int
    classes: int | None = None
    metric: Judged | None = None

    @property
    def near_chance(self) -> bool:
        """Whether it tells the classes apart hardly better than guesses do."""
        if self.accuracy is None or self.classes is None:
            return False
        guessed = 1 / self.classes
        return self.accuracy <= guessed + NEAR_CHANCE * (1 - guessed)


NEAR_CHANCE = 0.1
"""Of the way from guesses to no mistake."""


def evaluate(model: nn.Module, objective: Objective) -> Quality:
    """The loss and the accuracy of a network in eval mode, in its own precision."""
    loss, right, labelled, told, total, classes = 0.0, 0, 0, 0, 0, 0
    metric, counted, weights = objective.metric, 0.0, 0.0
    with observed(model) as twin, torch.no_grad():
        for batch in objective.batches():
            batch, size = suited_batch(twin, batch), size_of(batch)
            outputs = objective.forward(twin, batch)
            loss += size * float(objective.loss_from(outputs, batch))
            total += size
            if metric is not None:
                counted, weights = (a + b for a, b in zip((counted, weights), metric.on(outputs, batch), strict=True))
            if (hits := objective.hits(outputs, batch)) is not None:
                right, labelled, told = right + int(hits[0]), labelled + int(hits[1]), told + size
                classes = next(tensors_in(outputs)).shape[1]
    judged = None if metric is None else measured(metric, counted, weights)
    if not labelled or told < total:
        return Quality(loss / total, None, total, metric=judged)
    return Quality(loss / total, right / labelled, total, classes, judged)
