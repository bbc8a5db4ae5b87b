"""One trial of a sweep: a network, trained and pruned as its configuration says; the outcome as data."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import nn

from compressor import load, networks, save
from compressor.benchmarks.measure.bench import bench
from compressor.benchmarks.measure.bench_document import BenchDocument
from compressor.benchmarks.measure.networks import open_network
from compressor.benchmarks.report.document import make_document, training_document
from compressor.data import Columns, Rows
from compressor.errors import BadInput, CompressError, first_line
from compressor.model.origin import origin_of
from compressor.objective.losses import LOSSES
from compressor.options import speaking
from compressor.pruning.train import train
from compressor.settings import TARGETS, as_key
from compressor.sources.fresh import fresh_network
from compressor.sources.scoring import Source
from compressor.sources.training import TrainingData, training_data_for
from compressor.system.environment import prepare
from compressor.system.files import file_sha256, staged
from compressor.training.recipe import recipe_named
from compressor.types.origin import InputSpec

SCHEMA = 1


UNSAID: Mapping[str, Any] = {
    "rounds": 0,
    "weights": None,
    "loss": "cross-entropy",
    "metric": None,
    "builder": None,
    "files": None,
    "inputs": [],
}
"""Values that no trials are told apart by: those of before keep their keys."""


@dataclass(frozen=True)
class Trial:
    """What one trial is, all of it: two trials with the same values are the same trial.

    Attributes:
        network: a name of `compressor.networks`, a builder elsewhere, or a network's file; `{seed}` in its name stands for the
            seed.
        weights: of a network's file, its SHA-256; None for a fresh network.
        files: hash of the files that data, loss and builder are named by, code or `.npz`; None where there is none.
        inputs: as `--input`, of a network's file that does not say its own.
        builder: as `--network`, of a network's file that does not say its own, or that says code of the user's.
        data: as `--data`.
        label: what the trial's kind is called in tables.
        method: None trains the dense network.
        sparsity: of the method; `macs` or `parameters`, what is left of them, may stand in its place.
        loss: as `--loss`, of the training and of the scores.
        metric: as `--metric`, what the network is judged by.
        rounds: values of each time, of the dense and the small network in turn; 0 measures neither time nor memory.
        pruning: more arguments of `compressor.train`: stage, interval, prune_at, ablation, the method's options ...
    """

    network: str
    data: str
    label: str
    seed: int
    method: str | None = None
    sparsity: float | None = None
    macs: float | None = None
    parameters: float | None = None
    image_size: int | None = None
    samples: int = 2560
    device: str = "cpu"
    threads: int = 1
    rounds: int = 0
    recipe: str = "snip-it"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    pruning: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    loss: str = "cross-entropy"
    metric: str | None = None
    builder: str | None = None
    files: str | None = None
    inputs: Sequence[str] = ()

    @property
    def key(self) -> str:
        """A short name that follows from all values but the label, which is only said; newer ones count where they are said."""
        values = {k: v for k, v in self.as_dict().items() if k != "label" and (k not in UNSAID or UNSAID[k] != v)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """For people: network, kind, target, seed."""
        network = Path(self.network).stem.replace("{seed}", "").strip("-_. ") or "network"
        return re.sub(r"[^\w.-]+", "_", "-".join([network, self.label, self.target, f"seed{self.seed}"]))

    @property
    def aim(self) -> dict[str, Any]:
        """The target of the pruning, as an argument of `compressor.train`; one among `pruning` stands there."""
        given = {"sparsity": self.sparsity, "target_macs": self.macs, "target_params": self.parameters}
        return {name: value if name == "sparsity" else f"{value:.12f}" for name, value in given.items() if value is not None}

    @property
    def target(self) -> str:
        """What the pruning aims at, in words."""
        given = {"": self.sparsity, "macs ": self.macs, "parameters ": self.parameters}
        said = {f"{unit} ": self.pruning[name] for name, unit in TARGETS.items() if name in self.pruning}
        return next((f"{unit}{value:g}" for unit, value in given.items() if value is not None), "") or next(
            (f"{unit}{value}" for unit, value in said.items()), "dense"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**vars(self), "numbers": dict(self.numbers), "pruning": dict(self.pruning), "inputs": list(self.inputs)}


def run_trial(
    trial: Trial, folder: Path, base: Path = Path(), progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Do it, or go on with it where it was stopped; its record.

    Args:
        folder: of the run's state.
        base: where a path of data starts.
    Raises:
        CompressError: what `train` raises.
    """
    prepare(trial.device, trial.threads)
    data, loss = found(trial.data, base), found(trial.loss, base)
    metric = None if trial.metric is None else found(trial.metric, base)
    named = (trial.data, trial.loss, trial.builder, trial.network if trial.weights is None else None, trial.metric)
    if files_of(named, base) != trial.files:
        raise BadInput("the code or the data file that the sweep names changed since it began; run it again")
    model = _network(trial, data, base).to(trial.device)
    recipe = recipe_named(trial.recipe, trial.numbers)
    held = _held(trial, data, loss, model, recipe.batch_size, progress)
    scoring = Rows(held.train, trial.samples, 64, trial.seed) if isinstance(held.train, Columns) else held.source.train
    how = dict(trial.pruning)
    if trial.method is not None:
        how |= {"method": trial.method, **trial.aim}
    trained = train(
        model, held.train, recipe, test=held.test, scoring=scoring, loss=loss, metric=metric, forward=held.forward,
        example_inputs=held.source.inputs, colour=held.colour, seed=trial.seed, folder=folder, resume=True, progress=progress,
        **how,
    )  # fmt: skip
    inputs, remarks = held.source.inputs, list(held.source.remarks)
    if trained.pruning is None:
        document = training_document(trained, inputs, [], {}, trial.network, trial.data, remarks, trial.device, trial.seed)
    else:
        document = make_document(
            trained.pruning, [], None, {}, trial.data, remarks, trial.device, trial.seed, trained
        )  # fmt: skip
    record = {"schema": SCHEMA, "key": trial.key, "trial": trial.as_dict(), "status": "done", "document": document}
    if trial.weights is not None and (origin := origin_of(model)) is not None:
        record["builder"] = trial.builder or origin.network
    if trial.rounds and trained.pruning is not None:
        try:
            record["bench"] = _measured(trial, _network(trial, data, base), trained.model, held.source, loss, base, progress)
        except (CompressError, RuntimeError, OSError, MemoryError) as error:  # the training is worth more than its times
            record["bench_failed"] = first_line(error)
    return record


def network_file(name: str, seed: int, base: Path) -> Path | None:
    """The file of that name for a seed, as seen from `base`; None if there is none."""
    path = base / name.replace("{seed}", str(seed))
    return path if path.is_file() else None


def _network(trial: Trial, data: str, base: Path) -> nn.Module:
    """A fresh network of the trial's name and seed, or the one in its file."""
    inputs = [InputSpec.parse(text) for text in trial.inputs]
    if trial.weights is None:
        name = found(trial.network, base)
        return fresh_network(name, data, image_size=trial.image_size, seed=trial.seed, remembered=data, inputs=inputs)
    file = network_file(trial.network, trial.seed, base)
    if file is None or file_sha256(file) != trial.weights:
        raise BadInput(f"{trial.network}: the file for seed {trial.seed} is gone or changed since the sweep began")
    builder = None if trial.builder is None else found(trial.builder, base)
    return load(file, network=builder, inputs=inputs)


def files_of(names: Iterable[str | None], base: Path) -> str | None:
    """A hash of the files among what these names begin with; None if there is none."""
    places = [base / name.partition(":")[0] for name in names if name is not None and name not in LOSSES]
    hashes = [file_sha256(place) for place in places if place.is_file()]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None


def found(name: str, base: Path) -> str:
    """A name of data, a loss or a builder, with the path in it as seen from `base`, if there is such a file or folder."""
    path, colon, attribute = name.partition(":")
    return name if name in ("digits", *LOSSES) or not (base / path).exists() else f"{base / path}{colon}{attribute}"


MEASURED_BATCH = 64
"""Samples of a batch whose time and memory are measured."""


def _measured(
    trial: Trial, dense: nn.Module, small: nn.Module, source: Source, loss: str, base: Path,
    progress: Callable[[str, int, int], None],
) -> BenchDocument:  # fmt: skip
    """Times and peak memory of the dense and the small network, as `compress bench` measures them."""
    origin = origin_of(dense)
    builder = None if origin is None else origin.network
    loading: dict[str, Any] = {"network": found(builder, base)} if builder and networks.is_code(builder) else {}
    with tempfile.TemporaryDirectory() as folder:
        suffix = ".pt" if builder is None else ".safetensors"
        paths = [Path(folder) / f"{name}{suffix}" for name in ("dense", "small")]
        for model, path in zip((dense, small), paths, strict=True):
            save(model, path)
        document = bench(
            [open_network(path, **loading) for path in paths], replace(source, name=trial.data, test=None), loss=loss,
            batches=(MEASURED_BATCH,), rounds=trial.rounds, device=trial.device, threads=trial.threads, seed=trial.seed,
            loading=loading, progress=progress,
        )  # fmt: skip
    for network in document["networks"]:
        network["path"] = network["name"]  # the files were for this only
        if loading:
            network["network"] = trial.builder or trial.network  # as the sweep says it, from its own folder
    return document


_DATA: dict[tuple[Any, ...], TrainingData] = {}


def _held(trial: Trial, data: str, loss: str, model: Any, size: int, progress: Callable[[str, int, int], None]) -> TrainingData:
    """The data, read once in this process."""
    origin = origin_of(model)
    form = None if origin is None else json.dumps([str(origin.inputs), origin.preprocessing], default=str)
    key = (data, loss, form, trial.samples, size, trial.seed)
    if key not in _DATA:
        _DATA.clear()  # one at a time: they are large
        how: dict[str, Any] = {"loss": loss, "count": trial.samples, "step_size": size, "seed": trial.seed}
        _DATA[key] = training_data_for(model, data, progress=progress, **how)
    return _DATA[key]


def failed(trial: Trial, error: str) -> dict[str, Any]:
    """The record of a trial that came to nothing."""
    return {"schema": SCHEMA, "key": trial.key, "trial": trial.as_dict(), "status": "failed", "error": error}


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """As JSON, whole or not at all."""
    with staged(path) as [temporary]:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def serve(connection: Connection, folder: Path, base: Path) -> None:
    """What a worker process does: trials that come in, records that go out, until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked for the sweep ends it
    with speaking(as_key):
        _serve(connection, folder, base)


def _serve(connection: Connection, folder: Path, base: Path) -> None:
    while (values := connection.recv()) is not None:
        trial = Trial(**values)

        def progress(what: str, done: int, total: int) -> None:
            connection.send(("progress", what, done, total))

        try:
            record = run_trial(trial, folder / trial.key, base, progress)
        except CompressError as error:
            record = failed(trial, str(error))
        except Exception as error:  # noqa: BLE001 - the rest goes on, whatever one trial met
            last = traceback.extract_tb(error.__traceback__)[-1]
            record = failed(trial, f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {first_line(error)}")
        connection.send(("record", record))
