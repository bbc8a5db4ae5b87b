"""Each layer of a small network, refitted from input to output to give what the dense network's layer gave.

From the small network's inputs x the layer is to give the dense outputs y at the channels that stayed, plus what a residual sum
that it closes has lost elsewhere: W = W0 + C_ex (C_xx + lambda I)^-1 with e = y - W0 x, in float64, the means apart.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, fx, nn

from compressor.errors import UnsupportedNetwork
from compressor.model.affine import draw
from compressor.model.inputs import Inputs
from compressor.model.moments import Moments, Rows
from compressor.repair.chunks import MEMORY
from compressor.repair.layers import Layer, arguments, layers_of
from compressor.repair.skips import Skip, skips_of
from compressor.repair.solve import Refit, refit, refit_dual
from compressor.repair.walk import Program, Run, correspond
from compressor.system.progress import Progress


@dataclass(frozen=True)
class Limits:
    """How much a walk may take.

    Attributes:
        layers: refitted: the first that notice, and the last one; None: all.
        most: rows of a layer's least squares, where its Gram matrix is cheap.
        work: multiply-adds that a Gram matrix may take; a layer of more columns gets fewer rows.
        fewer: rows of the widest layers, which are solved by the rows' inner products where they are fewer than the columns.
    """

    most: int = 16_384
    work: int = 2**36
    fewer: int = 4_096
    layers: int | None = None

    def rows(self, columns: int) -> int:
        """Of a layer of so many columns."""
        return min(self.most, max(self.fewer, self.work // columns**2))


FEWEST = 4
"""Chunks that wait at a layer: every fourth is kept aside for the choice of its ridge."""

LEAST_GAIN = 1e-2
"""Of the largest gain behind a layer: what a channel of less would have to make up for is let go."""


@dataclass(frozen=True)
class LayerRefit:
    """What became of a layer: its weight's name, the columns that it reads, and `refit`."""

    weight: str
    columns: int
    rows: int
    ridge: float | None
    before: float
    after: float


@dataclass
class Chunk:
    """Some samples on their way through both programs.

    Attributes:
        start: how far they are in both before a walk begins; None: nowhere.
        met: by the dense network's layer that it waits at.
    """

    inputs: Inputs
    start: Run | None = None
    dense: Run | None = None
    small: Run | None = None
    met: Tensor | None = None

    def begin(self, program: Program) -> Run:
        """These samples before a program's first operator, or where they are to start."""
        return program.begin(self.inputs) if self.start is None else self.start.fork(program)

    def bytes(self) -> int:
        return sum(run.bytes for run in (self.dense, self.small) if run is not None)


@dataclass
class _Sums:
    """What a weight's layers have gathered."""

    fit: Moments = field(default_factory=Moments)
    aside: Moments = field(default_factory=Moments)
    rows: tuple[list[Rows], list[Rows]] = field(default_factory=lambda: ([], []))


def least_squares(
    dense: nn.Module, small: nn.Module, stay: Mapping[tuple[str, int], Tensor], chunks: Sequence[Inputs], seed: int = 0,
    progress: Progress = lambda *_: None,
) -> list[LayerRefit]:  # fmt: skip
    """Refit, in place, the layers of `small`.

    Args:
        stay: (tensor, dimension) -> sorted indices of the dense network's entries that `small` has, of what shrank.
        chunks: samples, as many in each.
    Raises:
        Untraceable: one of the networks cannot be exported.
        UnsupportedNetwork: they do not run the same operators.
    """
    whole, program = Program(dense, chunks[0]), Program(small, chunks[0])
    if not correspond(whole, program):
        raise UnsupportedNetwork("the small network does not run the dense one's operators one by one")
    walk = Walk(whole, program, stay, [Chunk(inputs) for inputs in chunks], seed, progress)
    found = walk.all()
    program.put(small, walk.changed)
    return found


class Walk:
    """Two programs that run in step, the one's layers refitted to what the other's give.

    Attributes:
        found: weight -> what became of its layer.
        changed: tensors of the small program that are other ones now.
    """

    def __init__(
        self, dense: Program, small: Program, stay: Mapping[tuple[str, int], Tensor], chunks: Sequence[Chunk], seed: int,
        progress: Progress = lambda *_: None, *, zero: Mapping[tuple[str, int], Tensor] | None = None,
        limits: Limits = Limits(),
    ) -> None:  # fmt: skip
        """Begin.

        Args:
            stay: as in `least_squares`.
            zero: entries of the small program's tensors that stay zero, where nodes were not cut out but silenced; only layers
                behind those are refitted, and all chunks wait at each.
            limits: of the rows of each layer.
        """
        self.stay, self.progress, self.zero, self.limits = stay, progress, zero, limits
        self.dense, self.small, self.chunks = dense, small, chunks
        self.generator = torch.Generator().manual_seed(seed)
        self.stored = self.small.stored
        layers = layers_of(self.small)
        self.skips = skips_of(self.small.nodes, layers, self.stored)
        if zero is not None:
            behind = small.behind({name for name, _ in zero})
            layers = [a for a in layers if a.x in behind or (a.node in self.skips and self.skips[a.node].other in behind)]
        if limits.layers is not None and len(layers) > limits.layers:
            layers = [*layers[: limits.layers - 1], layers[-1]]
        calls: dict[str, list[Layer]] = defaultdict(list)
        for layer in layers:
            calls[layer.weight].append(layer)
        uses: dict[str, int] = defaultdict(int)
        for node, name in self.stored.items():
            uses[name] += sum(node in user.all_input_nodes for user in node.users)
        self.calls = {name: its for name, its in calls.items() if len(its) == uses[name] and self._same_use(its, uses)}
        self.uses = uses
        self.waiting: dict[int, int] = {}
        self.found: dict[str, LayerRefit] = {}
        self.changed: set[str] = set()

    @staticmethod
    def _same_use(its: Sequence[Layer], uses: Mapping[str, int]) -> bool:
        """Whether a weight's layers share their bias with no other, and all have it."""
        biases = {layer.bias for layer in its}
        return len(biases) == 1 and all(bias is None or uses[bias] == len(its) for bias in biases)

    def all(self) -> list[LayerRefit]:
        """Refit every layer."""
        ends = [self.small.number[layer.node] for its in self.calls.values() for layer in its]
        if not ends:
            return []
        if self.zero is None:
            self._measure(sorted(ends))
        shared = [name for name, its in self.calls.items() if len(its) > 1]
        if shared:  # what they meet is known only behind them: they are fitted in a walk of their own
            before = {name: t.clone() for name, t in self.small.tensors.items()}
            sums = self._walk(once=set(self.calls) - set(shared), gather=shared)
            for name, tensor in before.items():
                self.small.tensors[name].copy_(tensor)
            for name, its in sums.items():
                self._set(self.calls[name][0], its)
        self._walk(once=set(self.calls) - set(shared))
        return [self.found[name] for name in self.calls if name in self.found]

    def _measure(self, ends: Sequence[int]) -> None:
        """How many chunks may wait at each layer, from what one holds there; and never fewer at a later one."""
        probe = Chunk(self.chunks[0].inputs)
        held = []
        for end in ends:
            self._wait(probe, end)
            held.append(probe.bytes())
        most = [*accumulate(reversed(held), max)][::-1]
        self.waiting = {
            end: min(len(self.chunks), max(FEWEST, MEMORY // max(1, size))) for end, size in zip(ends, most, strict=True)
        }

    def _wait(self, chunk: Chunk, end: int, shared: bool = False) -> None:
        """Run a chunk up to an operator in the small network, and through it in the dense one.

        Args:
            shared: the operator's weight has others, too: what it meets in the dense network is kept.
        """
        chunk.dense = chunk.dense or chunk.begin(self.dense)
        chunk.small = chunk.small or chunk.begin(self.small)
        chunk.small.until(end)
        chunk.dense.until(end)
        node = self.dense.nodes[end]
        chunk.met = chunk.dense.value(node.all_input_nodes[0]) if shared else None
        chunk.dense.until(end + 1)

    def _walk(self, once: set[str], gather: Sequence[str] = ()) -> dict[str, _Sums]:
        """From input to output; the weights in `once` are refitted where they run, of those in `gather` rows are taken."""
        for chunk in self.chunks:
            chunk.dense = chunk.small = None
        sums: dict[str, _Sums] = defaultdict(_Sums)
        order = [(self.small.number[layer.node], layer) for name in (*once, *gather) for layer in self.calls[name]]
        for count, (end, layer) in enumerate(sorted(order, key=operator.itemgetter(0))):
            self.progress(f"refitting {layer.weight.rpartition('.')[0] or layer.weight}", count, len(order))
            awake = self.chunks[: self.waiting.get(end)]
            for chunk in awake:
                self._wait(chunk, end, len(self.calls[layer.weight]) > 1)
            its = sums[layer.weight] if layer.weight in gather else _Sums()
            if self._gather(layer, awake, its) and layer.weight in once:
                self._set(layer, its)
        return sums

    def _gather(self, layer: Layer, awake: Sequence[Chunk], its: _Sums) -> bool:
        """Add a layer's rows; False where the rows of both networks are not the same places."""
        matrix = layer.matrix(self.small.tensors[layer.weight].double())
        most = self.limits.rows(matrix.shape[2])
        total = prod(layer.positions(layer.node.meta["val"])) * len(awake)
        was = self._in_dense(layer.node)
        dual = min(most, total) < matrix.shape[2]
        if layer.positions(was.meta["val"]) != layer.positions(layer.node.meta["val"]):
            return False
        skip = self.skips.get(layer.node) if len(self.calls[layer.weight]) == 1 else None
        gain = None if skip is None else skip.gain(self.small.tensors, self.stored)
        bias = None if layer.bias is None else self.small.tensors[layer.bias].double()
        for place, chunk in enumerate(awake):
            assert chunk.dense is not None
            assert chunk.small is not None
            y, x = chunk.dense.value(was), chunk.small.value(layer.x)
            if len(self.calls[layer.weight]) > 1 and chunk.met is not None:
                x = self._met(layer, chunk.met, x)
            places = draw(layer.positions(y), -(-most // len(awake)), self.generator)
            places = [p.to(y.device) for p in places]
            target = self._kept(layer, layer.at(y, places)).double()
            if skip is not None:
                target = target + self._lost(layer, skip, gain, chunk, places)
            rows = layer.columns(x, places).double()
            given = rows @ matrix.transpose(1, 2)  # (groups, rows, outputs)
            missing = _by_group(target if bias is None else target - bias, layer.groups) - given
            part = Rows(rows, missing)
            if dual:
                its.rows[place % FEWEST == FEWEST - 1].append(part)
            else:
                (its.aside if place % FEWEST == FEWEST - 1 else its.fit).add(part)
        return True

    def _in_dense(self, node: fx.Node) -> fx.Node:
        """The dense network's operator that corresponds to one of the small one's."""
        return self.dense.nodes[self.small.number[node]]

    def _kept(self, layer: Layer, y: Tensor) -> Tensor:
        """Of the dense network's outputs `(rows, outputs)`, those that the small one has."""
        stay = self.stay.get((layer.weight, 1 if layer.transposed else 0))
        if layer.transposed and layer.groups > 1:  # the outputs of each group lie behind each other
            each, inputs = self.small.tensors[layer.weight].shape[1], self.stay.get((layer.weight, 0))
            if stay is not None:
                stay = (torch.arange(layer.groups)[:, None] * (y.shape[1] // layer.groups) + stay).flatten()
            elif inputs is not None and y.shape[1] != each * layer.groups:  # depthwise: its groups went
                stay = (inputs[:, None] * each + torch.arange(each)).flatten()
        return y if stay is None else y.index_select(1, stay.to(y.device))

    def _met(self, layer: Layer, was: Tensor, now: Tensor) -> Tensor:
        """What a layer of several calls would meet if all before it were repaired: the dense network's kept channels."""
        dim = 1 if layer.kernel else was.dim() - 1
        deep = layer.groups > 1
        stay = self.stay.get((layer.weight, 0 if layer.transposed or deep else 1))
        given = was if stay is None else was.index_select(dim, stay.to(was.device))
        return given if given.shape == now.shape else now

    def _lost(self, layer: Layer, skip: Skip, gain: Tensor | None, chunk: Chunk, places: Sequence[Tensor]) -> Tensor:
        """What the other summand lost, `(rows, outputs)`, as one of the layer's outputs would have to make up for it."""
        assert chunk.dense is not None
        assert chunk.small is not None
        was = self._kept(layer, layer.at(chunk.dense.value(self._in_dense(skip.other)), places)).double()
        now = layer.at(chunk.small.value(skip.other), places).double()
        lost = was - now
        if gain is None:
            return lost
        heard = gain.abs() > LEAST_GAIN * gain.abs().max()
        return torch.where(heard, lost / torch.where(heard, gain, torch.ones_like(gain)), torch.zeros_like(lost))

    def _set(self, layer: Layer, its: _Sums) -> None:
        """Solve a weight's least squares and put what comes of it in its place."""
        norm = None if layer.norm is None or len(self.calls[layer.weight]) > 1 else arguments(layer.norm)
        name = None if norm is None else self.stored[norm["running_mean"]]
        mean = None if name is None or self.uses[name] > 1 else self.small.tensors[name]  # of a norm that others share, too
        offset = self.small.tensors[layer.bias] if layer.bias is not None else mean
        fit, aside = its.rows
        found: Refit
        if fit and aside:
            found = refit_dual(Rows.joined(fit), Rows.joined(aside), offset is not None)
        elif its.fit.rows and its.aside.rows:
            found = refit(its.fit, its.aside, offset is not None)
        else:
            return
        weight = self.small.tensors[layer.weight]
        weight.add_(layer.weight_of(found.change, weight).to(weight.dtype))
        self.changed |= {n for n in (layer.weight, layer.bias, name if layer.bias is None and mean is not None else None) if n}
        if offset is not None:
            shift = found.shift.flatten().to(offset.dtype)
            offset.add_(shift if layer.bias is not None else -shift)
        if self.zero is not None:
            self.small.clear({key: index for key, index in self.zero.items() if key[0] in (layer.weight, layer.bias)})
        self.found[layer.weight] = LayerRefit(
            layer.weight, found.change.shape[2], found.rows, found.ridge, found.before, found.after
        )


def _by_group(values: Tensor, groups: int) -> Tensor:
    """`(rows, outputs)` as `(groups, rows, outputs / groups)`."""
    return values.reshape(len(values), groups, -1).transpose(0, 1)
