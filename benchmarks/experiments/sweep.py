"""Sweeps: networks x methods x sparsities x seeds, each a trial of its own with a record of its own."""

from __future__ import annotations

import multiprocessing
import shutil
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor import networks
from compressor.benchmarks.experiments.records import TRIALS, done_lines, read_record, relabel
from compressor.benchmarks.experiments.trial import (
    Trial,
    failed,
    files_of,
    found,
    network_file,
    serve,
    write_record,
)
from compressor.errors import BadInput, WrongUsage, first_line, nearest
from compressor.method import make, method_named
from compressor.objective.losses import loss_named
from compressor.objective.metrics import metric_named
from compressor.options import Option, names_of, options_of, speaking, spelled
from compressor.pruning.setup import check_effect
from compressor.settings import (
    Machine,
    Pruning,
    Reading,
    Scoring,
    Task,
    Timing,
    as_key,
    check_sparsity,
)
from compressor.system.files import file_sha256
from compressor.system.user_code import object_named
from compressor.training.recipe import recipe_named
from compressor.types.origin import InputSpec

RUNS = "runs"
DENSE = "dense"
"""The kind of trial that prunes nothing."""

LISTS: Mapping[str, Any] = {"networks": list, "methods": list, "sparsities": list, "seeds": list, "rounds": int, "recipe": dict}
"""A sweep's own keys; the rest are declared with all that may be asked."""

TARGET_LISTS = {"sparsities": "sparsity", "macs": "macs", "parameters": "parameters"}
"""Key of a list of targets -> what each of its values is called in a trial."""

ENTRY: Mapping[str, Any] = {"method": str, "label": str, "options": dict, "recipe": dict, **dict.fromkeys(TARGET_LISTS, list)}
"""An entry's own keys among `methods`; the rest are declared, too."""

COMMON = (Task, Scoring, Machine, Reading)
"""What may be said once for all trials, but for `WITHIN`."""

WITHIN = ("seed", "arguments", "key", "trust_pickle")
"""Options that a sweep has other ways to say, or none."""

SAME = ("image_size", "samples", "loss", "metric", "device", "threads", "rounds")
"""Keys that every trial has as they are."""


def keys_of(*owners: type) -> dict[str, Option]:
    """Key -> option, of what is declared."""
    return {as_key(o.name): o for owner in owners for o in options_of(owner) if o.name not in WITHIN}


def read_sweep(path: Path) -> list[Trial]:
    """The trials of a sweep's file; a folder of data and files of networks are named as seen from that file.

    Raises:
        BadInput: no such file, not TOML, an unknown key (the nearest known one is named), or a value of a wrong kind.
        WrongUsage: a network (its file, with a seed), method or option that there is not.
    """
    with speaking(as_key):
        return _trials(path)


def _trials(path: Path) -> list[Trial]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read ({first_line(error)})") from error
    _check(raw, LISTS, keys_of(*COMMON), str(path))
    for name in ("data", "networks", "methods"):
        if not raw.get(name):
            raise BadInput(f"{path}: says nothing of {name}")
    common: dict[str, Any] = {name: raw[name] for name in SAME if name in raw}
    if raw.get("rounds", 0) < 0:
        raise BadInput(f"{path}: rounds {raw['rounds']}: at least 0")
    inputs = [raw["input"]] if isinstance(raw.get("input"), str) else raw.get("input", [])
    try:
        loss_named(found(raw.get("loss", "cross-entropy"), path.parent))
        metric_named(found(raw["metric"], path.parent) if "metric" in raw else None)
        for text in inputs:
            InputSpec.parse(text)
    except WrongUsage as error:
        raise WrongUsage(f"{path}: {error}") from None
    common |= {"builder": raw.get("network"), "inputs": inputs}
    trials = []
    if not all(type(seed) is int and seed >= 0 for seed in raw.get("seeds", [0])):
        raise BadInput(f"{path}: seeds are whole numbers of at least 0")
    for seed in raw.get("seeds", [0]):  # outermost: a sweep that is stopped has as many of each kind
        for network in raw["networks"]:
            weights = _weights(network, seed, path)
            if weights is not None and "image_size" in raw:
                raise BadInput(f"{path}: image_size is for fresh networks; {network} is a file")
            if weights is None and "network" in raw:
                raise BadInput(f"{path}: network is for the networks of files; {network} is none")
            if network in networks.names() and "input" in raw:
                raise BadInput(f"{path}: input is for networks of others; {network} is one of the papers'")
            code = network if weights is None else None
            files = files_of((raw["data"], raw.get("loss"), raw.get("network"), code, raw.get("metric")), path.parent)
            base = {"network": network, "weights": weights, "files": files, "data": raw["data"], **common}
            for given in raw["methods"]:
                try:
                    trials += [Trial(**base, seed=seed, **part) for part in _kinds(given, raw, str(path))]
                except WrongUsage as error:
                    raise WrongUsage(f"{path}: {error}") from None
    if twice := [t.name for i, t in enumerate(trials) if t.key in {other.key for other in trials[:i]}]:
        raise BadInput(f"{path}: {twice[0]} is there twice")
    return trials


def _weights(network: Any, seed: int, path: Path) -> str | None:
    """What a network's file holds; None for a fresh one."""
    if network in networks.names():
        return None
    if isinstance(network, str) and networks.is_builder(network):
        if networks.is_code(network):
            object_named(found(network, path.parent), f"{path}: networks")  # a mistake shows before any trial
        return None
    file = network_file(network, seed, path.parent) if isinstance(network, str) else None
    if file is None:
        hint = nearest(str(network), networks.names(), f"choose {', '.join(networks.names())}")
        which = f" for seed {seed}" if "{seed}" in str(network) else ""
        raise WrongUsage(f"{path}: no network {network!r}, nor a file of that name{which}; {hint}")
    return file_sha256(file)


def _kinds(given: Any, raw: Mapping[str, Any], where: str) -> Iterable[dict[str, Any]]:
    """What the trials of one entry of `methods` have beside network, data and seed."""
    if not isinstance(given, (str, dict)):
        raise BadInput(f"{where}: methods are names or tables with a method, not {given!r}")
    entry: dict[str, Any] = {"method": given} if isinstance(given, str) else dict(given)
    chosen = entry.get("method", DENSE)
    own = () if chosen == DENSE else names_of(method_named(chosen))
    _check(entry, ENTRY, keys_of(Pruning, Timing), f"{where}, methods", own)
    if "method" not in entry:
        raise BadInput(f"{where}: a table of methods needs a method")
    numbers = {**raw.get("recipe", {}), **entry.pop("recipe", {})}
    recipe = numbers.pop("name", "snip-it")
    recipe_named(recipe, numbers)
    method, options = entry.pop("method"), entry.pop("options", {})
    shared = {"recipe": recipe, "numbers": numbers, "label": entry.pop("label", method)}
    targets = {name: entry.pop(name) for name in TARGET_LISTS if name in entry}
    if method == DENSE:
        if entry or options or targets:
            raise BadInput(
                f"{where}: {DENSE} prunes nothing: leave out {', '.join([*entry, *targets, *(['options'] if options else [])])}"
            )
        yield shared
        return
    pruning = Pruning(**{name: value for name, value in entry.items() if name in names_of(Pruning)})
    Timing(**{name: value for name, value in entry.items() if name in names_of(Timing)})
    check_effect(pruning, make(method, options))
    if pruning.has_target and not targets:
        yield {**shared, "method": method, "pruning": {**entry, **options}}
        return
    if pruning.has_target:
        raise BadInput(f"{where}: {method} has {' and '.join(targets)} beside a target of its own; give one of them")
    if len(targets) > 1:
        raise BadInput(f"{where}: {method} has {' and '.join(targets)}; give one of them")
    if not targets:
        targets = {"sparsities": raw.get("sparsities", [])}
    (kind, values), *_ = targets.items()
    if not values:
        raise BadInput(f"{where}: says nothing of sparsities")
    for value in values:
        if type(value) not in (int, float) or value <= 0:
            raise BadInput(f"{where}: {kind} are numbers above 0, not {value!r}")
        if kind == "sparsities":
            check_sparsity(value)
        yield {**shared, "method": method, TARGET_LISTS[kind]: value, "pruning": {**entry, **options}}


def _check(
    values: Mapping[str, Any], plain: Mapping[str, Any], declared: Mapping[str, Option], where: str, own: Collection[str] = ()
) -> None:
    """Refuse keys that there are not, and values of other kinds or ranges.

    Args:
        plain: key -> kind, of those that are not declared.
        own: options of a method, which have a place of their own.
    """
    for key, value in values.items():
        if key in own:
            raise BadInput(f"{where}: {key} is an option of the method's own: options = {{ {key} = ... }}")
        if key not in plain and key not in declared:
            known = [*plain, *declared]
            raise BadInput(f"{where}: unknown key {key!r}; {nearest(key, known, 'use ' + ', '.join(known))}")
        if key in plain and (not isinstance(value, plain[key]) or isinstance(value, bool)):
            raise BadInput(
                f"{where}: {key} is a {_TOML.get(type(value), type(value).__name__)}, it must be a {_TOML[plain[key]]}"
            )
        if key in declared and not (declared[key].accepts(value) or (key == "input" and isinstance(value, str))):
            raise BadInput(f"{where}: {spelled(declared[key].name, value)}: {declared[key].expected}")


_TOML = {str: "text", int: "whole number", float: "number", bool: "truth value", list: "list", dict: "table"}
"""What the kinds of values are called in messages."""


def record_path(trial: Trial, folder: Path) -> Path:
    """Where a trial's record lies, which another label may have given its name; or where it will lie."""
    there = (folder / TRIALS).glob(f"*-{trial.key}.json")
    return next(there, folder / TRIALS / f"{trial.name}-{trial.key}.json")


@dataclass
class Worker:
    """A process that does trials one after the other.

    Attributes:
        folder: of the sweep's results.
        base: where paths of data start.
    """

    folder: Path
    base: Path
    process: Any = None
    connection: Connection | None = None
    trial: Trial | None = None
    said: str = ""

    def start(self, trial: Trial) -> None:
        """Give it a trial; a process is started where there is none."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, self.folder / RUNS, self.base))
            self.process.start()
            theirs.close()
        assert self.connection is not None
        self.trial, self.said = trial, "starting"
        self.connection.send(trial.as_dict())

    def heard(self) -> dict[str, Any] | None:
        """The record, if it is done or dead; None for progress."""
        assert self.connection is not None
        assert self.trial is not None
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code, self.process = self.process.exitcode, None
            return failed(self.trial, f"the worker process died (exit code {code}); out of memory?")
        if kind == "progress":
            self.said = content[0]
            return None
        return dict(content[0])

    def stop(self) -> None:
        """End the process: at once if it does a trial, else by itself, so that nothing of it is left over."""
        if self.process is not None:
            assert self.connection is not None
            if self.trial is None:
                self.connection.send(None)
            else:
                self.process.terminate()
            self.process.join()


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to: numbers of trials."""

    done: int
    failed: int
    skipped: int
    errors: Mapping[str, str] = field(default_factory=dict)


def run_sweep(
    trials: Sequence[Trial],
    folder: Path,
    base: Path,
    jobs: int = 1,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Outcome:  # fmt: skip
    """Run what has no record yet, in processes of its own; failures are recorded, and tried again by the next call.

    Of a trial whose times could not be measured, the state is kept: the next call measures it, and trains no more.

    Args:
        folder: gets `trials/`, a record each, and `runs/`, the states of those under way.
        base: where paths of data start.
        jobs: processes at a time.
        progress: called with what is being done, trials done, and of all.
    Raises:
        BadInput: another sweep is at work in the folder.
    """
    for part in (folder, folder / TRIALS, folder / RUNS):
        part.mkdir(exist_ok=True)
    lock = FileLock(folder / RUNS / "lock", timeout=0)  # a process that dies lets go of it
    try:
        with lock:
            outcome = _run(trials, folder, base, jobs, progress)
        Path(lock.lock_file).unlink(missing_ok=True)
        return outcome
    except Timeout:
        raise BadInput(f"{folder}: another sweep is at work in it; wait for that, or name another folder") from None


def _run(
    trials: Sequence[Trial], folder: Path, base: Path, jobs: int, progress: Callable[[str, int, int], None],
) -> Outcome:  # fmt: skip
    lines = done_lines(folder)
    waiting = [t for t in trials if not _is_done(t, folder, lines)]
    for trial in trials:
        if trial not in waiting:  # a sweep that was stopped may not have come to this
            shutil.rmtree(folder / RUNS / trial.key, ignore_errors=True)
            _relabel(trial, folder)
    relabel(folder, {trial.key: trial.label for trial in trials})
    skipped, done = len(trials) - len(waiting), 0
    errors: dict[str, str] = {}
    queue, workers = list(waiting), [Worker(folder, base) for _ in range(min(jobs, len(waiting)))]
    try:
        for worker in workers:
            worker.start(queue.pop(0))
        while busy := [w for w in workers if w.trial is not None]:
            ready = wait([w.connection for w in busy if w.connection is not None])
            for worker in busy:
                if worker.connection not in ready or worker.trial is None:
                    continue
                record = worker.heard()
                if record is not None:
                    trial = worker.trial
                    path = record_path(trial, folder)
                    if record["status"] == "done" or not _is_trained(path):  # what is only measured anew is not lost
                        write_record(record, path)
                    if record["status"] == "failed":
                        errors[f"{trial.name}-{trial.key}"] = record["error"]
                    else:
                        done += 1
                        if "bench_failed" not in record:
                            shutil.rmtree(folder / RUNS / trial.key, ignore_errors=True)
                    worker.trial = None
                    if queue:
                        worker.start(queue.pop(0))
                said = "; ".join(f"{w.trial.name}: {w.said}" for w in workers if w.trial is not None)
                progress(said, skipped + done + len(errors), len(trials))
    finally:
        for worker in workers:
            worker.stop()
    return Outcome(done, len(errors), skipped, errors)


def _is_trained(path: Path) -> bool:
    return path.is_file() and read_record(path)["status"] == "done"


def _is_done(trial: Trial, folder: Path, lines: Collection[str]) -> bool:
    """Whether its record says so, or a line of the study, whose keys are `lines`."""
    path = record_path(trial, folder)
    if not _is_trained(path):
        return trial.key in lines
    return "bench_failed" not in read_record(path) or not (folder / RUNS / trial.key).is_dir()


def _relabel(trial: Trial, folder: Path) -> None:
    """Give a record the label that its trial has now."""
    path = record_path(trial, folder)
    if not path.is_file():  # a line of the study
        return
    record = read_record(path)
    if record["trial"]["label"] != trial.label:
        record["trial"]["label"] = trial.label
        write_record(record, path.with_name(f"{trial.name}-{trial.key}.json"))
        path.unlink()
