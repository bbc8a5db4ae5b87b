"""Epochs: forward, backward, step. The network may be exchanged for a smaller one between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.data import epoch_of, epoch_seed, length_of, seed_all
from compressor.errors import BadInput, CompressError, UnsupportedNetwork, WrongUsage, first_line
from compressor.model.check import not_finite
from compressor.model.inputs import each
from compressor.model.observe import tensors_in
from compressor.model.speed import takes_channels_last
from compressor.objective.batches import Batch, check_finite, rebuilt, size_of, suited_batch, to_device
from compressor.objective.objective import Objective
from compressor.options import spelled
from compressor.training.recipe import Recipe
from compressor.training.teacher import Teacher

Moments = dict[str, dict[str, Tensor]]
"""Parameter -> the optimizer's state of it: tensors of its shape, and scalars."""

Penalty = Callable[[nn.Module], Tensor | None]
"""What a method adds to the loss."""

PEEK = 25
"""Steps between two looks at the loss on a GPU, where each look waits for it."""


class Diverged(BadInput):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class EpochStats:
    """What an epoch of training came to; see `history.Row`."""

    steps: int
    samples: int
    loss: float
    accuracy: float | None
    penalty: float
    lr: float
    seconds: float


class Trainer:
    """A network, its optimizer, and how far the schedule of its learning rate is.

    Attributes:
        model: being trained, in place.
        layout: of images and kernels in memory: channels_last, or the default where the network runs in that only.
        epochs_done: on the learning rate's schedule; a method that rewinds sets it back.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, objective: Objective, flip: float = 0.0, shift: int = 0,
        still: Sequence[str] = (), teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        """Train `model` in place.

        Args:
            objective: loss, forward pass and device; its data are not used.
            flip: share of images that are mirrored.
            shift: pixels by which images are moved at most, up or down and left or right.
            still: modules that stay in eval mode.
            teacher: learnt from beside the labels.
        """
        self.teacher = teacher
        self.recipe, self.objective, self.flip, self.shift = recipe, objective, flip, shift
        self.epochs_done, self.still = 0, still
        wide = objective.example is not None and takes_channels_last(model, objective.example)
        self.layout = torch.channels_last if wide else torch.contiguous_format
        self.adopt(model, {})

    def adopt(self, model: nn.Module, moments: Moments) -> None:
        """Go on with this network, and with what the optimizer knows of its parameters."""
        self.model = model
        if self.layout is torch.channels_last:
            self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = self._optimizer()
        for name, parameter in model.named_parameters():
            if name in moments:
                self.optimizer.state[parameter] = {key: _like(parameter, value) for key, value in moments[name].items()}

    def moments(self) -> Moments:
        """What the optimizer knows of each parameter; its own tensors, not copies."""
        state = self.optimizer.state
        return {name: dict(state[p]) for name, p in self.model.named_parameters() if p in state}

    def _optimizer(self) -> torch.optim.Optimizer:
        r, parameters = self.recipe, [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise BadInput("nothing to train: no parameter of the network requires a gradient")
        if r.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=r.lr, weight_decay=r.weight_decay, fused=True)
        return torch.optim.SGD(parameters, lr=r.lr, momentum=r.momentum, weight_decay=r.weight_decay, fused=True)

    def epoch(
        self,
        data: Iterable[Batch],
        number: int,
        seed: int,
        *,
        penalty: Penalty | None = None,
        held: Mapping[str, Tensor] | None = None,
        progress: Callable[[int, int, float], None] = lambda *_: None,
    ) -> EpochStats:
        """One pass over the data. All that is random in it follows from `seed` and the epoch's number alone.

        Args:
            data: batches; of what is known by epoch, those of `number`.
            number: of the epoch, from 0.
            held: weight -> booleans of its shape; what is not set has no gradient, so that it stays as it is.
            progress: called with the steps done, of all (0 if unknown), and the loss.
        Raises:
            Diverged: the loss is not finite; the message names the step. The network is of no use then.
            BadInput: out of memory; the message names a batch size that fits.
            UnsupportedNetwork: the network does not run in train mode.
        """
        seed_all(data, epoch_seed(seed, number))
        with _without_denormals():
            return self._pass(epoch_of(data, number), length_of(data) or 0, number, penalty, held or {}, progress)

    def _pass(
        self, data: Iterable[Batch], total: int, number: int, penalty: Penalty | None, held: Mapping[str, Tensor],
        progress: Callable[[int, int, float], None],
    ) -> EpochStats:  # fmt: skip
        lr = self.recipe.lr_at(self.epochs_done)
        self.model.train()
        for name, module in self.model.named_modules():
            if name in self.still:
                module.training = False
        masks = [(p := self.model.get_parameter(name), mask.to(p)) for name, mask in held.items()]  # as booleans 7 times slower
        tally, largest = _Tally(number), 0
        normalises = any(isinstance(m, _BatchNorm) for m in self.model.modules())
        started = time.perf_counter()
        for step, given in enumerate(data):
            batch = suited_batch(self.model, to_device(given, self.objective.device))
            if size_of(batch) == 1 < largest and normalises:
                continue  # a batch norm has nothing to normalise in a single sample that is left over
            largest = max(largest, size_of(batch))
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr_at(self.epochs_done + (step / total if total else 0))
            batch = self._augmented(batch)
            failure: Exception | None = None
            try:
                loss, extra, hits = self._step(batch, penalty, masks)
            except CompressError:
                raise
            except (RuntimeError, ValueError, MemoryError) as error:
                failure = error
            if failure is not None:
                raise self._explained(failure.with_traceback(None), batch) from failure
            tally.add(loss, extra, hits, size_of(batch))
            if self.objective.device == "cpu" or step % PEEK == PEEK - 1:
                try:
                    last = tally.look()
                except Diverged:
                    check_finite(batch)  # or it is the data's fault
                    raise
                progress(step + 1, total, last)
        tally.look()
        if not_finite(self.model) is not None:
            raise Diverged(
                f"epoch {number + 1}, step {tally.looked}: the weights are not finite; a smaller {spelled('lr')} may help"
            )
        self.epochs_done += 1
        return tally.seen(lr, time.perf_counter() - started)

    def _step(
        self, batch: Batch, penalty: Penalty | None, masks: list[tuple[nn.Parameter, Tensor]]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            outputs = self.objective.forward(self.model, batch)
            loss = self.objective.loss_from(outputs, batch)
            learnt = loss if self.teacher is None else self._taught(loss, outputs, batch)
        extra = None if penalty is None else penalty(self.model)
        (learnt if extra is None else learnt + extra).backward()
        for parameter, mask in masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        if self.recipe.optimizer == "sgd" and self.recipe.momentum:
            self._complete_momentum()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        return loss.detach(), None if extra is None else extra.detach(), self.objective.hits(outputs, batch)

    def _taught(self, loss: Tensor, outputs: Any, batch: Batch) -> Tensor:
        """The loss with the teacher's part."""
        assert self.teacher is not None
        share = self.teacher.share
        return (1 - share) * loss + share * self.teacher.loss(outputs, batch, self.objective)

    def _complete_momentum(self) -> None:
        """Momentum 0 for what has a gradient for the first time: torch's fused SGD cannot have some with and some without."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and "momentum_buffer" not in self.optimizer.state[p]:
                    self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)

    def _precision(self) -> Any:
        kind = torch.device(self.objective.device).type
        low = self.recipe.precision == "bfloat16" or (self.recipe.precision == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16) if low else nullcontext()

    def _augmented(self, batch: Batch) -> Batch:
        """The batch with some of its images mirrored, and all of them moved; all images of a sample alike."""
        if not self.flip and not self.shift:
            return batch
        if isinstance(batch, Mapping):
            raise WrongUsage(
                f"{spelled('flip')} and {spelled('shift')} know batches of (inputs, target) only; leave them out, augment in "
                "your data"
            )
        inputs, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
        images = [x for x in tensors_in(inputs) if x.dim() == 4]
        if not images:
            return batch
        sizes = {x.shape[2:] for x in images}
        if any(t.dim() > 2 and t.shape[-2:] in sizes for t in tensors_in(rest)):
            raise WrongUsage(
                f"{spelled('flip')} and {spelled('shift')} would not move targets that are maps; leave them out, "
                "augment in your data"
            )
        count, device = len(images[0]), images[0].device
        chosen = torch.rand(count, device=device) < self.flip if self.flip else None
        starts = torch.randint(2 * self.shift + 1, (2, count, 1), device=device) if self.shift else None

        def augment(x: Tensor) -> Tensor:
            if x.dim() != 4:
                return x
            if chosen is not None:
                x = torch.where(chosen[:, None, None, None], x.flip(-1), x)
            return x if starts is None else _moved(x, self.shift, starts)

        given = augment(inputs) if isinstance(inputs, Tensor) else each(inputs, augment)
        return rebuilt(batch, (given, *rest)) if isinstance(batch, (tuple, list)) else given

    def _explained(self, error: Exception, batch: Batch) -> CompressError:
        """Why a step failed, in one line with the way out.

        Args:
            error: without its traceback, whose frames would keep what the step has filled the memory with.
        """
        if not out_of_memory(error):
            return UnsupportedNetwork(f"the network does not run in train mode on this data: {first_line(error)}")
        size = size_of(batch)
        while size > 1:
            size //= 2
            self.optimizer.zero_grad(set_to_none=True)
            if torch.device(self.objective.device).type == "cuda":
                torch.cuda.empty_cache()
            try:
                part = _first(batch, size)
                with self._precision():
                    self.objective.loss_of(self.model, part).backward()
            except (RuntimeError, ValueError, MemoryError):
                continue
            return BadInput(f"out of memory with {size_of(batch)} samples in a step; {size} fit: {spelled('batch_size', size)}")
        return BadInput("out of memory even with one sample in a step; take a smaller network or prune it first")


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Within, a CPU takes numbers below 1e-38 for 0. Moments of weights that no longer matter fade into them, and a CPU that
    keeps them slows down tenfold."""
    already = float(torch.tensor(1e-40) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


def _moved(images: Tensor, most: int, starts: Tensor) -> Tensor:
    """Each image `(channels, height, width)` moved by up to `most` pixels on either axis; what comes in from outside is 0.

    Args:
        starts: `(2, count, 1)`, where in the image with its border the moved one begins.
    """
    count, channels, height, width = images.shape
    device = images.device
    rows, columns = starts[0] + torch.arange(height, device=device), starts[1] + torch.arange(width, device=device)
    samples, maps = torch.arange(count, device=device), torch.arange(channels, device=device)
    padded = nn.functional.pad(images, (most,) * 4)
    return padded[samples[:, None, None, None], maps[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A copy of a moment that lies in memory as its parameter does: torch's fused optimizers take that for granted."""
    if not value.dim():
        return value.to(parameter.device, copy=True)
    assert value.shape == parameter.shape, f"a moment of shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory that there is not."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _first(batch: Batch, size: int) -> Batch:
    """The first samples of a batch."""
    if isinstance(batch, Tensor):
        return batch[:size]
    if isinstance(batch, Mapping):
        return {name: _first(part, size) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return rebuilt(batch, (_first(part, size) for part in batch))
    return batch


class _Tally:
    """Sums over an epoch; on a GPU they stay there until they are looked at."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.losses: list[Tensor] = []
        self.looked = 0
        self.sizes: list[int] = []
        self.extras: list[Tensor] = []
        self.hits: list[Tensor | None] = []
        self.last = math.nan

    def add(self, loss: Tensor, extra: Tensor | None, hits: Tensor | None, size: int) -> None:
        self.losses.append(loss if extra is None else torch.where(torch.isfinite(extra), loss, extra))
        self.sizes.append(size)
        self.extras += [] if extra is None else [extra]
        self.hits.append(hits)

    def look(self) -> float:
        """The last loss.

        Raises:
            Diverged: one since the last look is not finite.
        """
        fresh = torch.stack(self.losses[self.looked :]).tolist() if self.looked < len(self.losses) else []
        for step, loss in enumerate(fresh, self.looked + 1):
            if not math.isfinite(loss):
                raise Diverged(
                    f"epoch {self.number + 1}, step {step}: the loss is {loss:g}; a smaller "
                    f"{spelled('lr')}, or {spelled('clip')}, may help"
                )
        self.looked = len(self.losses)
        self.last = fresh[-1] if fresh else self.last
        return self.last

    def seen(self, lr: float, seconds: float) -> EpochStats:
        total = sum(self.sizes)
        if not total:
            raise BadInput("the data yields no batch to train on")
        loss = sum(size * float(x) for size, x in zip(self.sizes, self.losses, strict=True)) / total
        known = [h.tolist() for h in self.hits if h is not None]
        right, labelled = map(sum, zip(*known, strict=True)) if known else (0, 0)
        accuracy = right / labelled if labelled and len(known) == len(self.hits) else None
        extra = sum(map(float, self.extras)) / len(self.extras) if self.extras else 0.0
        return EpochStats(len(self.sizes), total, loss, accuracy, extra, lr, seconds)
