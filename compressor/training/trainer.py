"""Epochs: forward, backward, step. The network may be exchanged for a smaller one between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.data import Drawn
from compressor.errors import BadInput, CompressError, UnsupportedNetwork, first_line
from compressor.inputs import each, tensors
from compressor.objective import Batch, Objective, check_finite, hits_in, size_of, suited_batch, to_device
from compressor.recipe import Recipe
from compressor.state import tensors_in

Moments = dict[str, dict[str, Tensor]]
"""Parameter -> the optimizer's state of it: tensors of its shape, and scalars."""

Penalty = Callable[[nn.Module], Tensor | None]
"""What a method adds to the loss."""

PEEK = 25
"""Steps between two looks at the loss on a GPU, where each look waits for it."""


class Diverged(BadInput):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Seen:
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
        epochs_done: on the learning rate's schedule; a method that rewinds sets it back.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, objective: Objective, flip: float = 0.0, shift: int = 0) -> None:
        """Train `model` in place.

        Args:
            objective: loss, forward pass and device; its data are not used.
            flip: share of images that are mirrored.
            shift: pixels by which images are moved at most, up or down and left or right.
        """
        self.recipe, self.objective, self.flip, self.shift = recipe, objective, flip, shift
        self.epochs_done = 0
        self.adopt(model, {})

    def adopt(self, model: nn.Module, moments: Moments) -> None:
        """Go on with this network, and with what the optimizer knows of its parameters."""
        self.model = model
        if self.objective.example is not None and any(x.dim() == 4 for x in tensors(self.objective.example)):
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
    ) -> Seen:
        """One pass over the data. All that is random in it follows from `seed` and the epoch's number alone.

        Args:
            data: batches; what can be drawn anew is drawn as of iteration `number`.
            number: of the epoch, from 0.
            held: weight -> booleans of its shape; what is not set has no gradient, so that it stays as it is.
            progress: called with the steps done, of all (0 if unknown), and the loss.
        Raises:
            Diverged: the loss is not finite; the message names the step. The network is of no use then.
            BadInput: out of memory; the message names a batch size that fits.
            UnsupportedNetwork: the network does not run in train mode.
        """
        if isinstance(data, Drawn):
            data.skip_to(number)
        torch.manual_seed((seed * 1_000_003 + number) % 2**63)
        with _without_denormals():
            return self._pass(data, number, penalty, held or {}, progress)

    def _pass(
        self, data: Iterable[Batch], number: int, penalty: Penalty | None, held: Mapping[str, Tensor],
        progress: Callable[[int, int, float], None],
    ) -> Seen:  # fmt: skip
        lr = self.recipe.lr_at(self.epochs_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        masks = [(p := self.model.get_parameter(name), mask.to(p.device)) for name, mask in held.items()]
        tally, largest = _Tally(number), 0
        normalises = any(isinstance(m, _BatchNorm) for m in self.model.modules())
        started, total = time.perf_counter(), len(data) if isinstance(data, Sized) else 0
        for step, given in enumerate(data):
            batch = suited_batch(self.model, to_device(given, self.objective.device))
            if size_of(batch) == 1 < largest and normalises:
                continue  # a batch norm has nothing to normalise in a single sample that is left over
            largest = max(largest, size_of(batch))
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
        if not all(bool(torch.isfinite(t).all()) for t in tensors_in(dict(self.model.state_dict())) if t.is_floating_point()):
            raise Diverged(f"epoch {number + 1}, step {tally.looked}: the weights are not finite; a smaller --lr may help")
        self.epochs_done += 1
        return tally.seen(lr, time.perf_counter() - started)

    def _step(
        self, batch: Batch, penalty: Penalty | None, masks: list[tuple[nn.Parameter, Tensor]]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            outputs = self.objective.forward(self.model, batch)
            loss = self.objective.loss_from(outputs, batch)
        extra = None if penalty is None else penalty(self.model)
        (loss if extra is None else loss + extra).backward()
        for parameter, mask in masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        return loss.detach(), None if extra is None else extra.detach(), hits_in(outputs, batch)

    def _precision(self) -> Any:
        kind = torch.device(self.objective.device).type
        low = self.recipe.precision == "bfloat16" or (self.recipe.precision == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16) if low else nullcontext()

    def _augmented(self, batch: Batch) -> Batch:
        """The batch with some of its images mirrored, and all of them moved."""
        if not self.flip and not self.shift:
            return batch
        inputs, *rest = batch

        def augment(x: Tensor) -> Tensor:
            if x.dim() != 4:
                return x
            if self.flip:
                chosen = torch.rand(len(x), device=x.device) < self.flip
                x = torch.where(chosen[:, None, None, None], x.flip(-1), x)
            return _moved(x, self.shift) if self.shift else x

        return (augment(inputs) if isinstance(inputs, Tensor) else each(inputs, augment), *rest)

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
            return BadInput(f"out of memory with {size_of(batch)} samples in a step; {size} fit: --batch-size {size}")
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


def _moved(images: Tensor, most: int) -> Tensor:
    """Each image `(channels, height, width)` moved by up to `most` pixels on either axis; what comes in from outside is 0."""
    count, channels, height, width = images.shape
    device = images.device
    starts = torch.randint(2 * most + 1, (2, count, 1), device=device)
    rows, columns = starts[0] + torch.arange(height, device=device), starts[1] + torch.arange(width, device=device)
    samples, maps = torch.arange(count, device=device), torch.arange(channels, device=device)
    padded = nn.functional.pad(images, (most,) * 4)
    return padded[samples[:, None, None, None], maps[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A copy of a moment that lies in memory as its parameter does: torch's fused optimizers take that for granted."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
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
        return tuple(_first(part, size) for part in batch)
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
                    f"epoch {self.number + 1}, step {step}: the loss is {loss:g}; a smaller --lr, or --clip, may help"
                )
        self.looked = len(self.losses)
        self.last = fresh[-1] if fresh else self.last
        return self.last

    def seen(self, lr: float, seconds: float) -> Seen:
        total = sum(self.sizes)
        if not total:
            raise BadInput("the data yields no batch to train on")
        loss = sum(size * float(x) for size, x in zip(self.sizes, self.losses, strict=True)) / total
        known = [int(h) for h in self.hits if h is not None]
        accuracy = sum(known) / total if len(known) == len(self.hits) else None
        extra = sum(map(float, self.extras)) / len(self.extras) if self.extras else 0.0
        return Seen(len(self.sizes), total, loss, accuracy, extra, lr, seconds)
