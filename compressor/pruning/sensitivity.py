"""How much of each group of a network can go: curves that are measured without pruning it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from compressor.errors import WrongUsage
from compressor.method import Method, best_for
from compressor.model.inputs import Inputs
from compressor.objective.batches import Batch, call
from compressor.objective.losses import Loss
from compressor.pruning.events import measured
from compressor.pruning.setup import prepare
from compressor.settings import AUTO, Pruning
from compressor.system.progress import Progress
from compressor.types.curves import Sensitivity


def sensitivity(
    model: nn.Module,
    data: Iterable[Batch],
    method: str | Method = AUTO,
    *,
    refits: bool = True,
    pruning: Pruning | None = None,
    loss: str | Loss = "cross-entropy",
    forward: Callable[[nn.Module, Batch], Any] = call,
    example_inputs: Tensor | Inputs | None = None,
    seed: int = 0,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Sensitivity:
    """What a network loses as the nodes of each group go, all other groups whole. Labels are not needed but by some methods.

    Args:
        method: says which nodes of a group go first; `auto` is the one that is chosen for trained networks.
        refits: refit the layers behind at each point.
        pruning: what may lose nodes, and what the nodes of an attention are.
        options: of the method.
    Other arguments and errors as in `compress`.
    """
    if method == AUTO:
        method = best_for("trained", data=True)
    of = pruning or Pruning()
    asked = Pruning(sparsity=0.5, attention=of.attention, freeze=of.freeze, only=of.only, floor=of.floor, state=of.state)
    setup = prepare(
        model, method, data, asked, options, loss=loss, forward=forward, example_inputs=example_inputs, seed=seed,
        progress=progress,
    )  # fmt: skip
    events = setup.events
    if events.method.unit != "node":
        raise WrongUsage(f"{setup.name} removes single weights: name a method that removes nodes")
    progress("scoring", 0, 0)
    scores = events.method.score(events.dense, events.found, events.objective)
    curves = measured(events.network, scores, events.objective, progress, refits=refits)
    layers: Mapping[str, tuple[str, ...]] = {g.name: g.makers for g in events.found.prunable}
    return Sensitivity(setup.name, refits, curves, layers)
