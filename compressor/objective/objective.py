"""What the scores are derivatives of: batches of data, a forward pass and a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from compressor.errors import BadInput, CompressError, WrongUsage, first_line
from compressor.inputs import Inputs, as_inputs, run, suited, tensors
from compressor.named import object_named
from compressor.state import observed, tensors_in

Batch = Any
"""What the data yields: `(inputs, target)`, where `inputs` is a tensor `(batch, ...)`, a tuple or a dict of them."""

Loss = Callable[[Any, Batch], Tensor]
"""(outputs of the network, batch) -> mean loss of the batch, a scalar."""


IGNORED = -100
"""torch's label for pixels that do not count."""


def cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    """The paper's loss: cross-entropy of logits `(batch, classes, ...)`, averaged over the batch (and its pixels)."""
    logits, target = _only(outputs), batch[1]
    _check_labels(logits, target)
    return F.cross_entropy(logits, target)


def nll_logits(outputs: Any, batch: Batch) -> Tensor:
    """What the SNIP-it authors' code computes: minus the mean logit of the true class, without log-softmax."""
    logits, target = _only(outputs), batch[1]
    _check_labels(logits, target)
    return F.nll_loss(logits, target)


def bce(outputs: Any, batch: Batch) -> Tensor:
    """Binary cross-entropy of logits, each output a yes or no of its own: multi-label targets `(batch, labels)` in [0, 1]."""
    logits, target = _alike(_only(outputs), batch[1])
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise BadInput("bce needs targets in [0, 1]; for class labels use cross-entropy")
    return F.binary_cross_entropy_with_logits(logits, target)


def mse(outputs: Any, batch: Batch) -> Tensor:
    """Mean squared error, for regression: targets shaped like the outputs."""
    return F.mse_loss(*_alike(_only(outputs), batch[1]))


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "bce": bce, "mse": mse, "nll-logits": nll_logits}


def loss_named(loss: str | Loss) -> Loss:
    """A loss by its name on the command line, `module:function` or `file.py:function`, or the callable itself.

    Raises:
        WrongUsage: no loss has that name.
    """
    if callable(loss):
        return loss
    if ":" in loss:
        found = object_named(loss, "--loss")
        if not callable(found):
            raise WrongUsage(f"--loss {loss}: not a function of (outputs, batch)")
        return found
    if loss not in LOSSES:
        raise WrongUsage(f"no loss {loss!r}: choose {', '.join(LOSSES)}, or name a function as file.py:function")
    return LOSSES[loss]


def _only(outputs: Any) -> Tensor:
    found = list(tensors_in(outputs))
    if len(found) != 1:
        raise BadInput(
            f"the network has {len(found)} outputs, this loss takes one; "
            "give a loss of your own: --loss file.py:function of (outputs, batch)"
        )
    return found[0]


def _check_labels(logits: Tensor, target: Tensor) -> None:
    if target.is_floating_point():
        _check_probabilities(logits, target)
        return
    if target.dim() == 0 or logits.dim() < 2:
        return
    lowest, highest = int(target.min()), int(target.max())
    if highest == IGNORED:
        raise BadInput(f"all labels of a batch are {IGNORED}, which are ignored: it has no loss; leave such samples out")
    if (lowest < 0 and lowest != IGNORED) or highest >= logits.shape[1]:
        way = "for yes or no take --loss bce" if logits.shape[1] == 1 and lowest >= 0 and highest <= 1 else "correct the data"
        raise BadInput(f"labels run from {lowest} to {highest}, the network has {logits.shape[1]} outputs; {way}")


def _check_probabilities(logits: Tensor, target: Tensor) -> None:
    fit = target.shape == logits.shape and logits.dim() > 1 and bool((target >= 0).all())
    if not fit or not torch.allclose(target.sum(1), torch.ones((), dtype=target.dtype, device=target.device), atol=1e-3):
        raise BadInput(
            f"targets {tuple(target.shape)} are neither class labels nor probabilities of {logits.shape[-1]} classes; "
            "for regression use --loss mse, for yes or no --loss bce"
        )


def _alike(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, for half precision rounds; the target in the outputs' shape where only sizes of 1 differ."""
    if [n for n in target.shape if n != 1] == [n for n in values.shape if n != 1]:
        target = target.reshape(values.shape)
    if target.shape != values.shape:  # torch would broadcast, and compare every sample with every other
        raise BadInput(f"targets {tuple(target.shape)} do not fit the network's outputs {tuple(values.shape)}; make them alike")
    precision = torch.promote_types(values.dtype, torch.float32)
    return values.to(precision), target.to(precision)


def inputs_of(batch: Batch) -> Inputs:
    """The network's inputs in a batch `(inputs, target)`.

    Raises:
        BadInput: they are not tensors, or the batch is a dict of the user's own form.
    """
    if isinstance(batch, Mapping):
        raise BadInput("batches are (inputs, target); for others give example_inputs= and forward=")
    return as_inputs(batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch)


def call(model: nn.Module, batch: Batch) -> Any:
    """The default forward pass: the batch's inputs, by position or, where they are a dict, by name."""
    return run(model, inputs_of(batch))


def size_of(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(next(tensors_in(batch)))


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
    """

    data: Iterable[Batch]
    loss: Loss = cross_entropy
    forward: Callable[[nn.Module, Batch], Any] = call
    device: str = "cpu"
    seed: int = 0
    example: Inputs | None = None
    _cache: list[Batch] | None = field(default=None, init=False)

    def batches(self) -> Iterator[Batch]:
        """The batches of one event, on the device.

        Raises:
            BadInput: there are none, or one holds NaN or infinity.
        """
        if self._cache is None and isinstance(self.data, Iterator):
            self._cache = list(self.data)
        empty = True
        for batch in self._cache if self._cache is not None else self.data:
            empty = False
            check_finite(batch)
            yield to_device(batch, self.device)
        if empty:
            raise BadInput("the data yields no batch; give at least one sample")

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

    def hits(self, outputs: Any, batch: Batch) -> Tensor | None:
        """How many of a batch's labels `(batch,)` are the arg-max of logits `(batch, classes)`, and how many there are, `(2,)`.

        Labels of -100 are none, as in cross-entropy. None where targets are not one label per sample, or where a loss of the
        user's own leaves open which part of the batch, or which output, that would be.
        """
        found = list(tensors_in(outputs))
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not found:
            return None
        if self.loss not in (cross_entropy, nll_logits) and (len(batch), len(found)) != (2, 1):
            return None
        logits, target = found[0], batch[1]
        if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
            return None
        if logits.dim() != 2 or logits.shape[1] < 2:
            return None
        return torch.stack([torch.eq(logits.argmax(1), target).sum(), (target != IGNORED).sum()])


def check_finite(batch: Any) -> None:
    """Refuse NaN and infinity in a batch, or in inputs.

    Raises:
        BadInput: there are some.
    """
    if not all(bool(torch.isfinite(x).all()) for x in tensors_in(batch) if x.is_floating_point()):
        raise BadInput("the data holds NaN or infinite values; correct or remove those samples")


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


def to_device(batch: Batch, device: str) -> Batch:
    """The same batch with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {name: to_device(part, device) for name, part in batch.items()}
        return batch if all(moved[name] is part for name, part in batch.items()) else moved
    if isinstance(batch, (tuple, list)):
        return rebuilt(batch, (to_device(part, device) for part in batch))
    return batch


def rebuilt(batch: Any, parts: Iterable[Any]) -> tuple[Any, ...]:
    """A tuple of other parts; where the batch's have names, theirs have them, too."""
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


@dataclass(frozen=True)
class Quality:
    """How well a network does on some data.

    Attributes:
        loss: mean over the samples.
        accuracy: share of samples whose arg-max is the label; None where targets are not one label per sample.
        samples: number of samples seen.
    """

    loss: float
    accuracy: float | None
    samples: int


def evaluate(model: nn.Module, objective: Objective) -> Quality:
    """The loss and the accuracy of a network in eval mode, in its own precision."""
    loss, right, labelled, told, total = 0.0, 0, 0, 0, 0
    with observed(model) as twin, torch.no_grad():
        for batch in objective.batches():
            batch, size = suited_batch(twin, batch), size_of(batch)
            outputs = objective.forward(twin, batch)
            loss += size * float(objective.loss_from(outputs, batch))
            total += size
            if (hits := objective.hits(outputs, batch)) is not None:
                right, labelled, told = right + int(hits[0]), labelled + int(hits[1]), told + size
    return Quality(loss / total, right / labelled if labelled and told == total else None, total)


def suited_batch(model: nn.Module, batch: Batch) -> Batch:
    """The batch, of the same form, with its inputs in the network's precision; another form than ours is left to `forward`."""
    try:
        inputs = suited(model, inputs_of(batch))
    except BadInput:
        return batch
    pair = isinstance(batch, (tuple, list))
    single = isinstance(batch[0] if pair else batch, Tensor)
    given = tensors(inputs)[0] if single else inputs
    return rebuilt(batch, (given, *batch[1:])) if pair else given
