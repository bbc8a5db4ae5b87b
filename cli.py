"""The command line: parse, call, show. Torch is imported when a command needs it, so that `--help` is instant."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor import __version__
from compressor.errors import BadInput, CompressError, WrongUsage, nearest
from compressor.method import make, method_named, summaries
from compressor.options import names_of, options_of, pairs_of, speaking, spelled
from compressor.settings import (
    AUTO,
    DATA_FORMS,
    DENSE,
    Building,
    Data,
    Files,
    FilesAndPlan,
    Json,
    Machine,
    MicroBatches,
    Normalisation,
    Portions,
    Pruning,
    Reading,
    Running,
    Scoring,
    Screen,
    Searching,
    Seed,
    Task,
    Teaching,
    Timing,
    as_flag,
    refuse_without_method,
    refuse_without_search,
    refuse_without_teacher,
)
from compressor.system.files import CHECKPOINTS, WRITTEN, check_target, parsed, staged
from compressor.system.flags import PATH, flag_of, takes
from compressor.system.progress import Progress, shown_progress
from compressor.system.terminal import one_line, say
from compressor.training.recipe import RECIPES, Recipe, fine_tuning, recipe_named

if TYPE_CHECKING:
    from torch import nn

    from compressor.exporters.delivery import Written
    from compressor.objective.objective import Quality
    from compressor.proof.equivalence import Equivalence
    from compressor.pruning.course import Trained
    from compressor.pruning.result import Result
    from compressor.pruning.search import Search
    from compressor.sources.scoring import Source
    from compressor.sources.training import TrainingData

PROOF_SAMPLES = 64
SUMMARY = 150
"""Characters of a command's summary in the list of all."""


class Commands(click.Group):
    """The fixed commands, and one for each discovered method."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *summaries()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if fixed := super().get_command(ctx, cmd_name):
            return fixed
        return _method_command(cmd_name) if cmd_name in summaries() else None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with speaking(as_flag):
            return super().main(*args, **kwargs)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            hint = nearest(args[0], known, "`compress --help` lists commands and methods", 3)
            raise WrongUsage(f"no command or method {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods: compress METHOD MODEL --sparsity S -o OUT"):
            formatter.write_dl(list(summaries().items()))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=SUMMARY)) for name, command in sorted(self.commands.items())]
            )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Make networks smaller by removing whole channels and neurons, or single weights, and prove that the result is right.

    compress snapit vgg16.pt --sparsity 0.93 -o small.onnx
    """


@dataclass(frozen=True)
class Job:
    """What every command that writes a network was asked.

    Attributes:
        given: the file, or the name of the fresh network, that it starts from.
    """

    given: Path
    task: Task
    files: Files
    machine: Machine
    screen: Screen

    @property
    def plan(self) -> Path | None:
        """Where what was kept is written."""
        return self.files.plan if isinstance(self.files, FilesAndPlan) else None

    def check(self, *read: Path) -> None:
        """Refuse targets that cannot be written, and set the process up."""
        _check_targets((self.given, *read), self.files.outputs, WRITTEN, self.files.report, self.plan)
        _check_there(self.given, *read)
        _check_data(self.task.data)

        from compressor.objective.losses import loss_named
        from compressor.objective.metrics import metric_named

        _prepare(self.machine)
        loss_named(self.task.loss)
        metric_named(self.task.metric)

    def tell(self, document: dict[str, Any]) -> None:
        """Show the report."""
        if self.screen.json:
            _print_json(document)
        elif not self.screen.quiet:
            from compressor.benchmarks.report.terminal import show, show_training

            (show if "method" in document else show_training)(document)


@cli.command()
@click.argument("name")
@click.option("-o", "--output", required=True, type=PATH, help=".pt or .safetensors")
@click.option("--image-size", type=click.IntRange(1), help="height and width; the paper's by default")
@click.option("--in-channels", type=click.IntRange(1), help="channels of the input; the paper's, or 3 for colour, by default")
@click.option("--classes", type=click.IntRange(1), help="10, or as many as the data has")
@click.option("--data", default="digits", show_default=True, metavar="DATA", help="data set that the checkpoint remembers")
@takes(images=Normalisation, seed=Seed, building=Building)
def new(name: str, output: Path, data: str, images: Normalisation, seed: Seed, building: Building, **sizes: Any) -> None:
    """Make a fresh network: one of the papers by NAME, or a builder's, torchvision:resnet18, net.py:make."""
    check_target(output, CHECKPOINTS)
    from compressor import networks
    from compressor.checkpoint.checkpoint import save
    from compressor.model.origin import origin_of
    from compressor.sources.open import fresh

    model = fresh(name, data, building, images, seed.seed, **sizes)
    save(model, output)
    origin = origin_of(model)
    assert origin is not None
    parameters = sum(p.numel() for p in model.parameters())
    shape = networks.size_text(origin.input_shape) or "not known"
    say(f"{output}: {name}, {parameters:,} parameters, input {shape}, data {origin.data or 'none'}")


@cli.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--tolerance", type=click.FloatRange(0), help="allowed difference, as a fraction of the output's range")
@click.option("--samples", default=PROOF_SAMPLES, show_default=True, type=click.IntRange(1), help="inputs compared")
@takes(reading=Reading, task=Data, images=Normalisation, machine=Machine, screen=Screen)
def verify(
    a: Path, b: Path, tolerance: float | None, samples: int, reading: Reading, task: Data, images: Normalisation,
    machine: Machine, screen: Screen,
) -> None:  # fmt: skip
    """Check that two networks compute the same: exit 0 if so, 1 if not, 2 where that could not be found out."""
    with _as_diff():
        _check_there(a, b)
        _check_data(task.data)
        proof = _compared(a, b, tolerance, samples, reading, task, images, machine, screen)
    if not proof:
        raise click.exceptions.Exit(1)


def _compared(
    a: Path, b: Path, tolerance: float | None, samples: int, reading: Reading, task: Data, images: Normalisation,
    machine: Machine, screen: Screen,
) -> Equivalence:  # fmt: skip
    """Compare, and show the outcome."""
    from compressor.benchmarks.measure.networks import source_of
    from compressor.benchmarks.measure.runs import SCHEMA
    from compressor.exporters.equivalence import check_equivalence
    from compressor.pruning.result_text import proof_line
    from compressor.system.environment import environment

    _prepare(machine)
    if tolerance is not None and tolerance != tolerance:
        raise WrongUsage(f"{spelled('tolerance')}: nan is no number")
    one, other = (_to_compare(path, reading, images) for path in (a, b))
    modules, files = [m for m in (one, other) if not isinstance(m, Path)], [m for m in (one, other) if isinstance(m, Path)]
    source = source_of(modules, files, task.data, reading.inputs, samples=samples, seed=machine.seed)
    remarks = [f"Compared on {samples} samples of {'noise' if source.test is None else source.name}."]
    what = f"{a.name} = {b.name}"
    provider = "cuda" if machine.device.startswith("cuda") else "cpu"
    proof = check_equivalence(one, other, source.inputs, what=what, tolerance=tolerance, provider=provider)
    if screen.json:
        where = {"notes": remarks, "environment": environment(machine.device), "seed": machine.seed}
        _print_json({"schema": SCHEMA, **proof.as_dict(), **where})
    elif not screen.quiet:
        say(proof_line(proof.as_dict()))
        for remark in remarks:
            say(remark)
    return proof


@contextmanager
def _as_diff() -> Iterator[None]:
    """Exit codes as those of `diff`: 1 is for what differs and nothing else."""
    try:
        yield
    except CompressError as error:
        error.exit_code = max(error.exit_code, TROUBLE)
        raise
    except OSError as error:
        trouble = BadInput(f"{error.filename or 'a file'}: {error.strerror or error}")
        trouble.exit_code = TROUBLE
        raise trouble from error
    except Exception:  # noqa: BLE001 - a crash is no difference
        traceback.print_exc()
        raise click.exceptions.Exit(TROUBLE) from None


TROUBLE = 2


def _to_compare(path: Path, reading: Reading, images: Normalisation) -> nn.Module | Path:
    """A network to compare: files that run by themselves as they are, all others opened."""
    from compressor.sources.open import opened

    if path.suffix == ".pt2" and path.is_file() and not reading.trust_pickle:
        raise BadInput(
            f"{path}: torch reads exported programs by unpickling and evaluating them; if you trust it, "
            f"{spelled('trust_pickle', True)}"
        )
    return path if path.suffix in (".onnx", ".pt2") else opened(path, reading, images)


@cli.command()
@click.argument("model", type=PATH)
@takes(reading=Reading, screen=Json)
@click.option("--attention", type=click.Choice(("heads", "dims")), default="heads", show_default=True, help="see a method's")
def show(model: Path, reading: Reading, screen: Json, attention: Any) -> None:
    """Show a network: its layers, which of them are coupled, what stays whole and why."""
    _check_there(model)
    from compressor.benchmarks.report.network import describe, show_structure
    from compressor.coupling.validate import feasible
    from compressor.model.precision import working_copy
    from compressor.sources.noise import example_of
    from compressor.sources.open import opened

    with shown_progress(quiet=screen.json) as progress:
        progress("loading", 0, 0)
        network = opened(model, reading)
        inputs = example_of(network, samples=2)
        working = working_copy(network, inputs)
        progress("finding the groups", 0, 0)
        found = feasible(working, inputs, attention)
        document = describe(model, network, found, working, inputs)
    if screen.json:
        _print_json(document)
    else:
        show_structure(document)


@cli.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", "outputs", multiple=True, type=PATH, help=".json for --sensitivity, or .svg; may be repeated")
@click.option("--method", default=AUTO, metavar="METHOD", help="say by it which nodes go first; l-obs by default")
@click.option("--method-option", multiple=True, metavar="KEY=VALUE", help="option of the method; may be repeated")
@click.option("--as-cut", is_flag=True, help="measure what is cut, without refitting the layers behind")
@click.option("--attention", type=click.Choice(("heads", "dims")), default="heads", show_default=True, help="see a method's")
@takes(scoring=MicroBatches, task=Task, reading=Reading, images=Normalisation, machine=Machine, screen=Screen)
def sensitivity(
    model: Path, outputs: tuple[Path, ...], method: str, method_option: tuple[str, ...], as_cut: bool, attention: Any,
    scoring: MicroBatches, task: Task, reading: Reading, images: Normalisation, machine: Machine, screen: Screen,
) -> None:  # fmt: skip
    """Measure how much each layer of MODEL can spare, each alone; labels are not needed.

    compress sensitivity resnet.pt --data DATA -o curves.json -o curves.svg

    compress prune resnet.pt --target-macs 0.5 --data DATA --sensitivity curves.json -o small.onnx
    """
    options = pairs_of(method_option, "method_option")
    if method != AUTO:
        make(method, options)
    _check_targets((model,), outputs, (".json", ".svg"))
    _check_there(model)
    _check_data(task.data)
    _prepare(machine)
    from compressor.objective.losses import loss_named
    from compressor.pruning.sensitivity import sensitivity as measure
    from compressor.sources.open import opened
    from compressor.sources.scoring import source_for
    from compressor.system.environment import environment

    loss_named(task.loss)
    dense = opened(model, reading, images).to(machine.device)
    source = source_for(
        dense, task.data, loss=task.loss, count=scoring.samples, batch_size=scoring.score_batch, seed=machine.seed
    )
    if source.test is None:
        raise BadInput(f"no data to measure on: name some with {spelled('data')}")
    with shown_progress(screen.quiet) as progress:
        found = measure(
            dense, source.train, method, refits=not as_cut, pruning=Pruning(attention=attention), loss=task.loss,
            example_inputs=source.inputs, seed=machine.seed, progress=progress, **dict(options),
        )  # fmt: skip
    where = {"model": str(model), "data": source.name, "seed": machine.seed, "environment": environment(machine.device)}
    document = {**found.as_dict(), "sensitive": list(found.sensitive), "spare": list(found.spare), **where}
    with staged(*outputs) as files:
        for file in files:
            if file.suffix == ".svg":
                from compressor.benchmarks.report.plots import sensitivity_plot

                file.write_text(sensitivity_plot(found), encoding="utf-8")
            else:
                file.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if screen.json:
        _print_json(document)
    elif not screen.quiet:
        from compressor.benchmarks.report.sensitivity import show_sensitivity

        show_sensitivity(found, document)
        curves = next((f" {spelled('sensitivity', path)}" for path in outputs if path.suffix == ".json"), "")
        data = f" --data {source.name}"
        say(f"next: compress prune {model} {spelled('target_macs', 0.5)}{data}{curves} -o small.onnx")


@cli.command()
@click.argument("dense", type=PATH)
@click.argument("smalls", metavar="SMALL...", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", "outputs", multiple=True, type=PATH, help=".html, .md or .json; may be repeated")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="samples; 1 and 64 by default; may be repeated")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(2), help="values of each time")
@click.option("--no-memory", is_flag=True, help="leave out peak memory, which starts fresh processes")
@takes(task=Task, reading=Reading, images=Normalisation, machine=Machine, screen=Screen)
def bench(
    dense: Path, smalls: tuple[Path, ...], outputs: tuple[Path, ...], batches: tuple[int, ...], rounds: int, no_memory: bool,
    task: Task, reading: Reading, images: Normalisation, machine: Machine, screen: Screen,
) -> None:  # fmt: skip
    """Measure a dense network against small ones: operations, times, memory, storage."""
    from compressor.benchmarks.render import SUFFIXES as PAGES
    from compressor.benchmarks.render import render
    from compressor.benchmarks.report.page import headlines

    for path in (dense, *smalls):
        _check_targets((path,), outputs, PAGES)
        _check_there(path)
    _check_data(task.data)
    _prepare(machine)
    from compressor.benchmarks.measure.bench import bench as measure
    from compressor.benchmarks.measure.networks import BATCH, open_network, source_of
    from compressor.objective.losses import loss_named
    from compressor.objective.metrics import metric_named
    from compressor.sources.open import adapt

    loss_named(task.loss)
    metric_named(task.metric)
    loading: dict[str, Any] = {
        "network": reading.network, "arguments": dict(pairs_of(reading.arguments)), "inputs": list(reading.inputs),
        "key": reading.key, "trust_pickle": reading.trust_pickle,
    }  # fmt: skip
    networks = [open_network(path, **loading) for path in (dense, *smalls)]
    for network in networks:
        if network.module is not None:
            adapt(network.module, reading.image_size, images)
    modules, files = [n.module for n in networks if n.module is not None], [n.path for n in networks if n.module is None]
    source = source_of(modules, files, task.data, reading.inputs, loss=task.loss, samples=BATCH, seed=machine.seed)
    with shown_progress(screen.quiet) as progress:
        document = measure(
            networks, source, loss=task.loss, metric=task.metric, batches=sorted(set(batches)) or (1, 64), rounds=rounds,
            device=machine.device, threads=machine.threads, seed=machine.seed, memory=not no_memory, loading=loading,
            progress=progress,
        )  # fmt: skip
    _write_pages(outputs, document)
    if screen.json:
        _print_json(document)
    elif not screen.quiet and outputs:
        for name, claims in headlines(document).items():
            say(f"{name}: {', '.join(claims)}")
        say(f"written: {', '.join(map(str, outputs))}")
    elif not screen.quiet:
        say(render(document, ".md").rstrip("\n"))


@cli.command()
@click.argument("document", metavar="REPORT", type=PATH)
@click.option("-o", "--output", "outputs", required=True, multiple=True, type=PATH, help=".html, .md or .json; may be repeated")
@click.option("--title", help="of a sweep's page; the folder's name by default")
def report(document: Path, outputs: tuple[Path, ...], title: str | None) -> None:
    """Render a report as a page, as Markdown or as JSON.

    REPORT is a .json of `compress bench`, the folder of a sweep, or a sweep's study.

    A study is a sweep in one file, a line for each trial: `compress report results/ -o results/study.jsonl` makes it. The
    records in results/trials/ may go then: pages are rendered from the lines, and `compress sweep` repeats none of them.
    """
    from compressor.benchmarks.experiments.records import LINES
    from compressor.benchmarks.render import SUFFIXES as PAGES
    from compressor.benchmarks.render import read, titled

    is_sweep = document.is_dir() or document.suffix == LINES
    _check_targets((document,), outputs, (*PAGES, LINES) if is_sweep else PAGES)
    if is_sweep:
        from compressor.benchmarks.experiments.records import read_study

        _write_pages(outputs, dict(read_study(document, title)))
    else:
        _write_pages(outputs, titled(parsed(document, read), title))


@cli.command()
@click.argument("plan", type=PATH)
@click.argument("model", type=PATH)
@takes(files=Files, task=Task, reading=Reading, images=Normalisation, machine=Machine, screen=Screen)
def apply(
    plan: Path, model: Path, files: Files, task: Task, reading: Reading, images: Normalisation, machine: Machine, screen: Screen
) -> None:
    """Replay PLAN on MODEL, other weights of the architecture that it was made for."""
    job = Job(model, task, files, machine, screen)
    job.check(plan)
    from compressor.pruning.replay import replay
    from compressor.sources.open import opened
    from compressor.sources.scoring import source_for
    from compressor.types import Plan

    decided = parsed(plan, Plan.from_json)
    dense = opened(model, reading, images).to(machine.device)
    source = source_for(dense, task.data, loss=task.loss, seed=machine.seed)
    with shown_progress(screen.quiet) as progress:
        result = replay(decided, dense, source.inputs, progress)
        document = _finish(job, dense, result, source, progress)
    job.tell(document)


@cli.command()
@click.argument("model", metavar="NETWORK", type=PATH)
@click.option("--method", metavar="METHOD", help="prune, too; `compress --help` lists the methods")
@click.option("--method-option", multiple=True, metavar="KEY=VALUE", help="option of the method; may be repeated")
@click.option("--recipe", default="snip-it", show_default=True, type=click.Choice(list(RECIPES)), help="start from its numbers")
@click.option("--train-zeros", is_flag=True, help="train weights that come as zeros; else they are masked ones, and stay zero")
@click.option("--tensorboard", type=PATH, help="folder for TensorBoard's events")
@takes(
    timing=Timing, numbers=Recipe, teaching=Teaching, running=Running, pruning=Pruning, scoring=Scoring, files=FilesAndPlan,
    task=Task, reading=Reading, images=Normalisation, machine=Machine, screen=Screen,
)  # fmt: skip
def train(
    model: Path, method: str | None, method_option: tuple[str, ...], recipe: str, train_zeros: bool, tensorboard: Path | None,
    timing: Timing, numbers: Recipe, teaching: Teaching, running: Running, pruning: Pruning, scoring: Scoring,
    files: FilesAndPlan, task: Task, reading: Reading, images: Normalisation, machine: Machine, screen: Screen,
    said: frozenset[str],
) -> None:  # fmt: skip
    """Train NETWORK, a fresh one by its name or builder, or a file; with --method, prune it before, during or after."""
    own = {name: getattr(numbers, name) for name in names_of(Recipe) if name in said}
    options = pairs_of(method_option, "method_option")
    asked: dict[str, Any] = {}
    if method is None:
        of_pruning = (*names_of(Timing, Pruning, Scoring), "plan", "method_option")
        refuse_without_method([name for name in of_pruning if name in said])
    else:
        _check_target_said(pruning)
        if method != AUTO:
            make(method, options)
        when = {name: getattr(timing, name) for name in names_of(Timing)}
        asked = {"method": method, "pruning": pruning, **when, **options}
    if teaching.teacher is None:
        refuse_without_teacher(said)
    job = Job(model, task, files, machine, screen)
    job.check()
    from compressor.sources.open import fresh_or_opened, remember_data

    folder = _run_folder(running, files.outputs, screen.quiet)
    dense = fresh_or_opened(model, task.data, machine.seed, reading, images).to(machine.device)
    if task.data is not None:
        remember_data(dense, task.data)
    from compressor.training.tensorboard import watched

    with shown_progress(screen.quiet) as progress, watched(tensorboard) as on_epoch:
        by = recipe_named(recipe, own)
        held = _training_data(
            job, dense, progress, count=scoring.samples if method else 1, step_size=by.batch_size, seed=machine.seed
        )
        source = held.source
        trained = _trained(
            job, dense, held, by, progress, folder=folder, resume=running.resume, on_epoch=on_epoch,
            keep_zeros=not train_zeros, **_taught(teaching, dense), **asked,
        )  # fmt: skip
        if trained.pruning is None:
            document = _finish_training(job, trained, source, progress)
        else:
            document = _finish(job, dense, trained.pruning, source, progress, trained=trained)
    job.tell(document)


def _taught(teaching: Teaching, dense: nn.Module) -> dict[str, Any]:
    """What a training learns from beside the labels, as keywords."""
    if teaching.teacher is None:
        return {}
    from compressor.sources.open import opened

    how = {"temperature": teaching.temperature, "teacher_share": teaching.teacher_share}
    if teaching.teacher == DENSE:
        return {"teacher": dense, **how}
    device = next(dense.parameters()).device
    return {"teacher": opened(Path(teaching.teacher), Reading()).to(device), **how}


def _check_target_said(pruning: Pruning) -> None:
    if not pruning.has_target:
        targets = ", ".join(map(spelled, ("sparsity", "target_macs", "target_params", "target_size")))
        raise WrongUsage(f"give one of {targets}")


@cli.command()
@click.argument("file", metavar="SWEEP.toml", type=PATH)
@click.option("-o", "--output", "folder", required=True, type=PATH, help="folder of the records")
@click.option("-j", "--jobs", default=1, show_default=True, type=click.IntRange(1), help="trials at a time, a process each")
@takes(screen=Screen)
def sweep(file: Path, folder: Path, jobs: int, screen: Screen) -> None:
    """Run networks x methods x sparsities x seeds; what is done already is not done again."""
    _check_there(file)
    from compressor.benchmarks.experiments.sweep import read_sweep, run_sweep

    trials = read_sweep(file)
    if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise BadInput(f"{folder}: cannot be a folder for results; its parent must be a folder, and it must not be a file")
    with shown_progress(screen.quiet) as progress:
        outcome = run_sweep(trials, folder, file.parent, jobs, progress)
    if screen.json:
        _print_json(asdict(outcome))
    elif not screen.quiet:
        say(f"{folder}: {outcome.done} trials done, {outcome.skipped} were done before, {outcome.failed} failed")
    for name, error in outcome.errors.items():
        _fail(f"{name}: {error}", 1)
    if outcome.failed:
        raise click.exceptions.Exit(1)


def _run_folder(running: Running, outputs: tuple[Path, ...], quiet: bool) -> Path:
    """Where a training keeps its state."""
    folder = running.folder or outputs[0].with_suffix(".run")
    if running.resume and not (folder / "state.pt").is_file() and not quiet:
        say(f"{folder}: there is no run to go on with; this one begins anew", error=True)
    return folder


def _training_data(
    job: Job, model: nn.Module, progress: Progress, *, count: int, batch_size: int = 64, step_size: int = 128, seed: int
) -> TrainingData:
    """Named data to train on, or those that the network remembers."""
    from compressor.sources.training import training_data_for

    return training_data_for(
        model, job.task.data, loss=job.task.loss, count=count, batch_size=batch_size, step_size=step_size, seed=seed,
        progress=progress,
    )  # fmt: skip


def _trained(job: Job, model: nn.Module, held: TrainingData, recipe: Recipe, progress: Progress, **how: Any) -> Trained:
    """Train on data that were opened."""
    from compressor.pruning.train import train as train_network

    return train_network(
        model, held.train, recipe, test=held.test, scoring=held.source.train, loss=job.task.loss, metric=job.task.metric,
        forward=held.forward, example_inputs=held.source.inputs, colour=held.colour, seed=job.machine.seed, progress=progress,
        **how,
    )  # fmt: skip


def _finish_training(job: Job, trained: Trained, source: Source, progress: Progress) -> dict[str, Any]:
    """Write and prove what was trained, not pruned."""
    from compressor.benchmarks.report.document import training_document

    def document_of(written: Written) -> dict[str, Any]:
        return training_document(
            trained, source.inputs, written.proofs, written.sizes, str(job.given), source.name, list(source.remarks),
            job.machine.device, job.machine.seed,
        )  # fmt: skip

    return _write(job, trained.model, {}, document_of, source, progress)


def _method_command(name: str) -> click.Command:
    """The command of one method: the same for all, with the method's own options."""
    method = method_named(name)
    own = [flag_of(o) for o in options_of(method)]
    command = click.Command(name, params=[*own, *_PRUNE_OPTIONS], help=method.__doc__, short_help=summaries()[name])
    names = names_of(method)
    command.callback = lambda **values: _prune(name=name, options={key: values.pop(key) for key in names}, **values)
    return command


def _prune_by_state(method: str | None, method_option: tuple[str, ...], **values: Any) -> None:
    """Prune a network as suits its state: a trained one by what keeps its accuracy, a fresh one by SNAP-it.

    What it is, and what was chosen for it, the report says in its first note. Layers of a trained network are refitted to
    what they gave before: no labels and no training are needed for that, only some hundred samples.

    compress prune resnet.pt --target-macs 0.5 --data DATA -o small.onnx
    """
    options = dict(pairs_of(method_option, "method_option"))
    if method is None and options:
        raise WrongUsage(f"{spelled('method_option', method_option[0])} is a method's: name that with {spelled('method')}")
    _prune(name=method or AUTO, options=options, **values)


@click.argument("model", type=PATH)
@click.option("--plots", type=PATH, help="folder for pictures of what is left, .svg")
@click.option("--finetune", type=click.IntRange(1), metavar="EPOCHS", help="train the small network before it is written")
@takes(
    pruning=Pruning, searching=Searching, portions=Portions, numbers=Recipe, teaching=Teaching, scoring=MicroBatches,
    files=FilesAndPlan, running=Running, task=Task, reading=Reading, images=Normalisation, machine=Machine, screen=Screen,
)  # fmt: skip
def _prune(
    name: str, options: dict[str, Any], model: Path, plots: Path | None, finetune: int | None, pruning: Pruning,
    searching: Searching, portions: Portions, numbers: Recipe, teaching: Teaching, scoring: MicroBatches, files: FilesAndPlan,
    running: Running, task: Task, reading: Reading, images: Normalisation, machine: Machine, screen: Screen,
    said: frozenset[str],
) -> None:  # fmt: skip
    """Check everything that can be checked, then load, prune, export and report."""
    searches = searching.max_drop is not None
    if not searches:
        refuse_without_search(said)
        _check_target_said(pruning)
    elif pruning.has_target:
        raise WrongUsage(f"{spelled('max_drop', searching.max_drop)} searches for the target itself: give one of both")
    if name != AUTO:
        make(name, options)
    job = Job(model, task, files, machine, screen)
    own = {o: getattr(numbers, o) for o in names_of(Recipe) if o in said}
    of_a_run = names_of(Portions, Teaching) if searches else names_of(Portions, Running, Teaching)
    if finetune is None and (of_training := [o for o in (*own, *of_a_run) if o in said]):
        raise WrongUsage(f"{spelled(of_training[0])} is for a training: give {spelled('finetune', 'EPOCHS')}, too")
    if teaching.teacher is None:
        refuse_without_teacher(said)
    if plots is not None and (not plots.parent.is_dir() or (plots.exists() and not plots.is_dir())):
        raise BadInput(f"{plots}: cannot be a folder for pictures; its parent must be a folder, and it must not be a file")
    job.check()

    from compressor.data import Columns
    from compressor.pruning.compress import compress
    from compressor.sources.open import opened
    from compressor.sources.scoring import source_for

    dense = opened(model, reading, images).to(machine.device)
    with shown_progress(screen.quiet) as progress:
        drawn: dict[str, Any] = {"count": scoring.samples, "batch_size": scoring.score_batch, "seed": machine.seed}
        search: Search | None = None
        trained: Trained | None = None
        if searches:
            held = _training_data(job, dense, progress, step_size=own.get("batch_size", numbers.batch_size), **drawn)
            source = held.source
            before, odd = _judged(job, dense, source, pruning, progress)
            from compressor.pruning.max_drop import Tuning, smallest_within

            how = None if finetune is None else Tuning(finetune, own, portions.portions, _taught(teaching, dense))
            found = smallest_within(
                dense, held, searching, name, pruning, options, loss=task.loss, metric=task.metric, drawn=drawn,
                folder=_search_folder(running, files.outputs), resume=running.resume, tuning=how,
                progress=progress,
            )  # fmt: skip
            result, trained, search = found.result, found.trained, found.search
            odd = [*found.remarks, *odd]
        elif finetune is None:
            source = source_for(dense, task.data, loss=task.loss, **drawn)
            before, odd = _judged(job, dense, source, pruning, progress)
            result = compress(
                dense, name, source.train, pruning=pruning, loss=task.loss, seed=machine.seed, example_inputs=source.inputs,
                progress=progress, **options,
            )  # fmt: skip
        else:
            held = _training_data(job, dense, progress, step_size=own.get("batch_size", numbers.batch_size), **drawn)
            source = held.source
            before, odd = _judged(job, dense, source, pruning, progress)
            count = len(held.train) if isinstance(held.train, Columns) else None
            trained = _trained(
                job, dense, held, fine_tuning(finetune, count, own), progress, method=name, stage="before", pruning=pruning,
                folder=_run_folder(running, files.outputs, screen.quiet), resume=running.resume,
                portions=portions.portions, **_taught(teaching, dense), **options,
            )  # fmt: skip
            assert trained.pruning is not None
            result = trained.pruning
        source = replace(source, remarks=(*source.remarks, *odd))
        document = _finish(job, dense, result, source, progress, plots, trained, before, search)
    job.tell(document)
    if not (screen.json or screen.quiet):
        say(_next_command(job, source, trained is not None))


def _search_folder(running: Running, outputs: tuple[Path, ...]) -> Path:
    """Where a search keeps its steps."""
    folder = running.folder or outputs[0].with_suffix(".search")
    if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise BadInput(f"{folder}: cannot be a folder for a search; its parent must be a folder, and it must not be a file")
    return folder


_PRUNE_OPTIONS: list[click.Parameter] = [
    p for p in reversed(vars(_prune)["__click_params__"]) if p.name != "epochs"  # which --finetune says
]  # fmt: skip
for _option in _PRUNE_OPTIONS:
    if _option.name in RECIPES["fine-tune"]:
        _option.default = RECIPES["fine-tune"][_option.name]

cli.add_command(
    click.Command(
        "prune",
        callback=_prune_by_state,
        help=_prune_by_state.__doc__,
        params=[
            *_PRUNE_OPTIONS[:1],
            click.Option(["--method"], metavar="METHOD", help="prune by this one; `compress --help` lists them"),
            click.Option(["--method-option"], multiple=True, metavar="KEY=VALUE", help="option of the method; may be repeated"),
            *_PRUNE_OPTIONS[1:],
        ],
    )
)


def _judged(
    job: Job, dense: nn.Module, source: Source, pruning: Pruning, progress: Progress
) -> tuple[Quality | None, list[str]]:
    """How well a trained network does, told before anything is pruned; and what is odd about it."""
    from compressor.model.check import check_weights
    from compressor.objective.losses import loss_named
    from compressor.objective.metrics import metric_named
    from compressor.objective.objective import Objective, evaluate
    from compressor.pruning.choice import state_of
    from compressor.pruning.result_text import quality_text

    check_weights(dense)
    if source.test is None:
        return None, []
    metric = metric_named(job.task.metric)
    objective = Objective(source.test, loss_named(job.task.loss), device=job.machine.device, metric=metric)
    seen: Quality | None = None

    def quality() -> Quality:
        nonlocal seen
        progress("evaluating the dense network", 0, 0)
        seen = seen or evaluate(dense, objective)
        return seen

    if state_of(dense, pruning.state, quality).state == "fresh":
        return seen, []
    now = quality()
    quiet, odd = job.screen.json or job.screen.quiet, []
    if not quiet:
        say(f"{job.given}: {quality_text(asdict(now))} on {now.samples:,} samples of {source.name}, before anything is pruned")
    if now.near_chance:
        odd.append(
            f"The dense network's accuracy, {now.accuracy:.1%}, is near chance: look whether the images are normalised as they "
            f"were in its training ({spelled('mean')}, {spelled('std')}), whether the classes come in the same order, and "
            "whether these are its data."
        )
        say(f"compress: {odd[0]}", error=True)
    return now, odd


def _next_command(job: Job, source: Source, trained: bool) -> str:
    """What a user may want to type next."""
    small = job.files.outputs[0]
    data = "" if source.test is None else f" --data {source.name}"
    if trained or source.test is None:
        return f"next: compress bench {job.given} {small}{data}"
    return f"next: the same command with {spelled('finetune', 10)}, or compress bench {job.given} {small}{data}"


def _finish(
    job: Job, dense: nn.Module, result: Result, source: Source, progress: Progress, plots: Path | None = None,
    trained: Trained | None = None, before: Quality | None = None, search: Search | None = None,
) -> dict[str, Any]:  # fmt: skip
    """See how well it does, export what came out and prove the files; all of them appear, with the report, or none."""
    from compressor.benchmarks.report.document import make_document
    from compressor.model.cost import stored_bytes
    from compressor.objective.losses import loss_named
    from compressor.objective.metrics import metric_named
    from compressor.objective.objective import Objective, evaluate

    machine, given = job.machine, job.given
    qualities, stages = None, None if trained is None else trained.stages
    if source.test is not None:
        progress("evaluating", 0, 0)
        metric = metric_named(job.task.metric)
        objective = Objective(source.test, loss_named(job.task.loss), device=machine.device, metric=metric)
        qualities = [before or evaluate(dense, objective), evaluate(result.model, objective)]
        if result.pruned is not None:
            stages = {"dense": qualities[0], "as pruned": evaluate(result.pruned, objective), "repaired": qualities[1]}
    bytes_before = {given: stored_bytes(given, dense)}
    pictures: dict[Path, str] = {}
    if plots is not None:
        from compressor.benchmarks.report.plots import pictures_of

        pictures = pictures_of(result, plots)
    if search is not None and plots is not None:
        from compressor.benchmarks.report.plots import search_plot

        pictures[plots / "search.svg"] = search_plot(search)

    def document_of(written: Written) -> dict[str, Any]:
        return make_document(
            result, written.proofs, qualities, bytes_before | written.sizes, source.name, list(source.remarks), machine.device,
            machine.seed, trained, stages, search,
        )  # fmt: skip

    texts: dict[Path, Callable[[object], str]] = {path: _always(text) for path, text in pictures.items()}
    if job.plan is not None:
        texts[job.plan] = lambda _: result.plan.to_json()
    return _write(job, result.model, texts, document_of, source, progress, constant=result.summary.disconnected)


def _always(text: str) -> Callable[[object], str]:
    return lambda _: text


def _write(
    job: Job, network: nn.Module, texts: Mapping[Path, Callable[[dict[str, Any]], str]],
    document_of: Callable[[Written], dict[str, Any]], source: Source, progress: Progress, constant: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Export a network and prove the files; they appear with the report and the texts, or nothing does."""
    from compressor.exporters.delivery import deliver

    progress("exporting and proving", 0, 0)
    files, told = job.files, dict(texts)
    if files.report is not None:  # the last: where it is, all that it tells of is
        told[files.report] = lambda document: json.dumps(document, indent=1)
    providers = ("cpu", "cuda") if job.machine.device.startswith("cuda") else ("cpu",)
    return deliver(
        network, files.outputs, told, document_of, source.inputs, providers=providers, opset=files.opset, constant=constant
    )


def _check_targets(
    read: tuple[Path, ...], outputs: tuple[Path, ...], suffixes: tuple[str, ...], report: Path | None = None,
    plan: Path | None = None,
) -> None:  # fmt: skip
    """Refuse targets that cannot be written, or that are read, too."""
    for target in outputs:
        check_target(target, suffixes)
    told = [path for path in (report, plan) if path is not None]
    for path in told:
        check_target(path, (".json",))
    everything = [*read, *outputs, *told]
    if len({p.resolve() for p in everything}) < len(everything):
        raise WrongUsage("the model, the outputs, the plan and the report must be different files")


def _check_there(*paths: Path) -> None:
    """Refuse files that are not there, before anything is imported that takes long; a builder is no file."""
    for path in paths:
        is_file = path.suffix and ":" not in str(path)
        if is_file and not path.exists():
            raise BadInput(f"{path}: no such file")


def _check_data(data: str | None) -> None:
    """Refuse data that are named by a path which leads nowhere."""
    is_path = data is not None and (data.endswith(".npz") or data.startswith((".", "/", "~")))
    if data is not None and is_path and ":" not in data and not Path(data).exists():
        what = "no such file" if data.endswith(".npz") else f"no such folder; name {DATA_FORMS}"
        raise BadInput(f"data {data}: {what}")


def _prepare(machine: Machine) -> None:
    from compressor.system.environment import prepare

    prepare(machine.device, machine.threads)


def _print_json(document: Mapping[str, Any]) -> None:
    say(json.dumps(document, indent=1))


def _write_pages(paths: tuple[Path, ...], document: Mapping[str, Any]) -> None:
    """A benchmark's document in every form asked for: all of them or none."""
    from compressor.benchmarks.render import render

    with staged(*paths) as files:
        for file in files:
            file.write_text(render(document, file.suffix), encoding="utf-8")


class _Stopped(BaseException):
    """The system asks to end. No SystemExit, which is what code of the user's own may raise and is caught for."""


def _stop(number: int, frame: Any) -> None:
    raise _Stopped(number)  # unwinds, so that temporary files are removed


HELP: tuple[type[click.ClickException], ...] = tuple(
    kind for kind in (getattr(click.exceptions, "NoArgsIsHelpError", None),) if kind
)
"""What newer versions of click raise for a command without arguments: its message is the help."""


def main() -> None:
    """Entry point: every expected failure is one line on stderr and an exit code (see `compressor.errors`)."""
    signal.signal(signal.SIGTERM, _stop)
    gc.set_threshold(50_000)  # importing torch makes half a million objects, and they stay: looking through them takes long
    try:
        code = cli.main(standalone_mode=False)
    except CompressError as error:
        code = _fail(str(error), error.exit_code)
    except click.ClickException as error:
        code = error.exit_code
        if isinstance(error, HELP):
            say(error.format_message())
        else:
            _fail(error.format_message(), code)
    except (KeyboardInterrupt, click.Abort):
        trains = "train" in sys.argv[1:2] or any(word.startswith("--finetune") for word in sys.argv)
        resumable = "; the same command with --resume goes on from the last epoch" if trains else ""
        code = _fail(f"interrupted; no file was left half-written{resumable}", 130)
    except _Stopped as stop:
        code = 128 + stop.args[0]
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader that went away wants no message
            _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    say(f"compress: {one_line(message)}", error=True)
    return code


if __name__ == "__main__":
    main()
