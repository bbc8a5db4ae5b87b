"""What a network loses as the nodes of one group go, the weakest first, and the layers behind them are refitted.

The nodes are silenced, not cut out: their entries of parameters are zero, so that one export of the network serves all. What
runs in front of a group runs once for all of its widths. A norm over channels takes the zeros in; the refit of what reads it
makes up for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from compressor.coupling.label_flow import Untraceable
from compressor.model.affine import affine_of
from compressor.model.cost import count
from compressor.model.inputs import Inputs, each, samples
from compressor.model.observe import outputs_of
from compressor.model.weights import first_names
from compressor.objective.distance import distance
from compressor.repair.chunks import CHUNK, cut, fitting, taken
from compressor.repair.least_squares import FEWEST, Chunk, Limits, Walk
from compressor.repair.walk import Program, Run
from compressor.surgery.network import GroupedNetwork
from compressor.system.progress import Progress
from compressor.types.curves import Curve
from compressor.types.scores import Scores
from compressor.types.structure import Group

SHARES, FEWER = (1 / 8, 3 / 8, 5 / 8, 7 / 8), (1 / 2, 7 / 8)
"""Of a group's nodes, gone at the points of its curve; at one more, a single node is left. The fewer where `LEAST` samples take
more than `WORK`, or there are more than `REFITS`."""

FITTED = 2 * FEWEST
"""Chunks that layers are refitted on."""

JUDGED = FEWEST
"""Chunks that the outcome is judged by."""

MOST, LEAST = 384, 24
"""Samples; fewer where they would not fit in memory, or would take more than `WORK` multiply-adds in all."""

WORK = 5e12

LIMITS = Limits(most=2048, work=2**31, fewer=1024, layers=24)
"""With more rows, all curves are lower alike; what so many layers could not make up for, more of them hardly can."""

REFITS = 1000
"""Layers that are refitted in all; with more, curves have the fewer points."""

WORST = 1e6
"""A loss that is larger, or infinite, is this one."""

Without = Callable[[Group, Tensor], float]
"""The distance to the dense outputs of a network that has lost some nodes of a group."""


def sensitivity(
    network: GroupedNetwork, scores: Scores, batches: Iterable[Inputs], *, refits: bool = True, seed: int = 0,
    progress: Progress = lambda *_: None,
) -> dict[str, Curve]:  # fmt: skip
    """Group -> its curve, all other groups whole.

    Args:
        scores: higher = stays longer.
        batches: inputs; labels are not needed.
        refits: refit the layers behind, where the network can be exported.
        seed: of the places drawn from each sample.
    """
    groups = network.structure.prunable
    work = 2.0 * count(network.model, network.inputs).macs * len(groups)  # of one sample at one point of each curve, at most
    affordable = int(WORK / max(1.0, work * (len(SHARES) + 1)))
    layers = sum(affine_of(module) is not None for module in network.model.modules())
    refits_in_all = len(groups) * min(LIMITS.layers or layers, layers) * (len(SHARES) + 1)
    shares = SHARES if affordable >= LEAST and refits_in_all <= 2 * REFITS else FEWER  # half of them lie behind a group
    inputs = taken(batches, max(LEAST, min(MOST, affordable)))
    most = max(FITTED + JUDGED, fitting(network.model, inputs))
    inputs = each(inputs, lambda x: x[:most])
    without, order = _as_cut(network, cut(inputs, CHUNK)), list(groups)
    if refits and (size := samples(inputs) // (FITTED + JUDGED)):
        try:
            trials = _Trials(network, cut(inputs, min(CHUNK, size), whole=True)[: FITTED + JUDGED], seed)
        except Untraceable:
            pass
        else:
            without, order = trials.without, sorted(groups, key=trials.start_of)
    curves = {}
    for number, group in enumerate(order):
        progress("measuring each layer's sensitivity", number, len(order))
        weakest = scores.values[group.name].argsort(stable=True)
        points = {group.width: 0.0}
        for gone in {*(round(group.width * share) for share in shares), group.width - 1} - {0, group.width}:
            points[group.width - gone] = min(WORST, without(group, weakest[:gone]))
        widths = tuple(sorted(points))
        curves[group.name] = Curve(widths, tuple(points[width] for width in widths))
    return {group.name: curves[group.name] for group in groups}


def silenced(model: nn.Module, group: Group, gone: Tensor) -> dict[tuple[str, int], Tensor]:
    """(Parameter, dimension) -> the entries that some nodes of a group have there, by the first of its names."""
    first = first_names(model)
    parts: dict[tuple[str, int], list[Tensor]] = {}
    for s in group.slices:
        if s.tensor in first:
            parts.setdefault((first[s.tensor], s.dim), []).append(s.index[gone.to(s.index.device)].flatten())
    return {key: torch.cat(indices) for key, indices in parts.items()}


class _Trials:
    """A network's program, and samples in it that have come as far as the group that is tried."""

    def __init__(self, network: GroupedNetwork, chunks: Sequence[Inputs], seed: int) -> None:
        self.model, self.seed = network.model, seed
        self.program = Program(network.model, chunks[0])
        self.starts: list[Run] = [self.program.begin(inputs) for inputs in chunks]
        self.chunks = chunks
        self.wanted = [self.program.begin(inputs).outputs() for inputs in chunks[FITTED:]]

    def start_of(self, group: Group) -> int:
        """The first operator that notices when a group loses nodes."""
        names = {name for name, _ in silenced(self.model, group, torch.zeros(0, dtype=torch.long))}
        behind = self.program.behind(names)
        return min((self.program.number[node] for node in behind), default=len(self.program.nodes))

    def without(self, group: Group, gone: Tensor) -> float:
        """As `Without`; groups come in the order of `start_of`."""
        start = self.start_of(group)
        for run in self.starts:
            run.until(start)
        zero = silenced(self.model, group, gone)
        small = self.program.with_zeros(zero)
        shown = [Chunk(*pair) for pair in zip(self.chunks[:FITTED], self.starts[:FITTED], strict=True)]
        Walk(self.program, small, {}, shown, self.seed, zero=zero, limits=LIMITS).all()
        return distance([run.fork(small).outputs() for run in self.starts[FITTED:]], self.wanted)


def _as_cut(network: GroupedNetwork, chunks: Sequence[Inputs]) -> Without:
    """What is left as it is, nothing refitted."""
    model = network.model
    wanted: list[list[Tensor]] = []

    def without(group: Group, gone: Tensor) -> float:
        wanted.extend(outputs_of(model, inputs) for inputs in chunks[len(wanted) :])
        values: dict[str, Tensor] = {}
        for (name, dim), index in silenced(model, group, gone).items():
            values.setdefault(name, model.get_parameter(name).detach().clone()).index_fill_(dim, index, 0)
        return distance([outputs_of(model, inputs, values) for inputs in chunks], wanted)

    return without
