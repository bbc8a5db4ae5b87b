"""The command line: parse, call, show. Torch is imported when a command needs it, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.errors import BadInput, CompressError, MissingEnvironment, WrongUsage, nearest
from compressor.method import make, method_named, summaries
from compressor.options import options_of
from compressor.training.recipe import RECIPES, Recipe, recipe_named

if TYPE_CHECKING:
    from torch import nn

    from compressor.proof.equivalence import Equivalence
    from compressor.pruning.events import Progress
    from compressor.pruning.result import Result
    from compressor.pruning.train import Trained
    from compressor.sources.scoring import Source
    from compressor.training import Row

PROOF_SAMPLES = 64
SUMMARY = 150
"""Characters of a command's summary in the list of all."""
SECONDS_PER_LINE = 30
"""Between two lines of progress where there is no terminal."""
SEED = click.IntRange(0, 2**32 - 1)


class Commands(click.Group):
    """The fixed commands, and one for each discovered method."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *summaries()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if fixed := super().get_command(ctx, cmd_name):
            return fixed
        return _method_command(cmd_name) if cmd_name in summaries() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods: compress METHOD MODEL --sparsity S -o OUT"):
            formatter.write_dl(list(summaries().items()))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=SUMMARY)) for name, command in sorted(self.commands.items())]
            )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compressor")
def cli() -> None:
    """Make networks smaller by removing whole channels and neurons, or single weights, and prove that the result is right.

    compress snapit vgg16.pt --sparsity 0.93 -o small.onnx
    """


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise WrongUsage(f"--{parameter.name} {value}: write numbers, such as 0.5 or 0.485,0.456,0.406") from None


_loss_option = click.option(
    "--loss", default="cross-entropy", show_default=True, help="cross-entropy, bce, mse, nll-logits or file.py:function"
)


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that opens a network someone else may have saved."""
    for decorate in (
        click.option("--trust-pickle", is_flag=True, help="run the code that MODEL names; never for a file from elsewhere"),
        click.option("--key", help="entry of MODEL that holds the weights; state_dict, model, ema are found without"),
        click.option("--image-size", type=click.IntRange(1), help="height and width of the input, in place of MODEL's"),
        click.option(
            "--input", "inputs", multiple=True, metavar="[NAME:][DTYPE:]SHAPE",
            help="what MODEL takes, without the batch: 3x224x224, ids:int64:128; may be repeated",
        ),
        click.option("--network-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="argument of the builder"),
        click.option(
            "--network", metavar="BUILDER",
            help="of a state dict's network: vgg16, torchvision:resnet50, timm:..., package.module:factory, file.py:factory",
        ),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _attention_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--attention", type=click.Choice(("heads", "dims")), default="heads", show_default=True,
        help="nodes of an attention: whole heads, or the dimensions inside all of them",
    )(command)  # fmt: skip


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that runs a network."""
    for decorate in (
        click.option("--quiet", is_flag=True, help="print nothing but errors"),
        click.option("--json", "as_json", is_flag=True, help="print the report as JSON on stdout"),
        click.option("--seed", default=0, show_default=True, type=SEED, help="of all random draws"),
        click.option("--threads", type=click.IntRange(1, 1024), help="threads of torch; all cores by default"),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda"),
        click.option("--std", metavar="X[,X...]", callback=_numbers, help="images are divided by it; per channel or one"),
        click.option("--mean", metavar="X[,X...]", callback=_numbers, help="is taken off images in [0, 1] first"),
        click.option("--data", metavar="DATA", help="folder, .npz, name on the Hugging Face hub, file.py:factory, or `digits`"),
    ):
        command = decorate(command)
    return command


def _pruning_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that prunes."""
    for decorate in (
        click.option("--calibrate-bn", is_flag=True, help="first give batch norms the statistics of the data"),
        click.option(
            "--ablation", type=click.Choice(["shuffle", "reinit", "invert"]),
            help="a control: random ones, fresh weights, the best go",
        ),
        click.option("--allow-disconnect", is_flag=True, help="also where the output no longer depends on the input"),
        _attention_option,
        click.option("--only", metavar="LAYER", multiple=True, help="in place of that: only these may lose nodes"),
        click.option(
            "--freeze", metavar="LAYER", multiple=True, help="keeps all its nodes; a pattern such as features.*; repeatable"
        ),
        click.option("--floor", default=1, show_default=True, type=click.IntRange(1), help="nodes that every group keeps"),
        click.option("--samples", default=2560, show_default=True, type=click.IntRange(1), help="scored at each event"),
        click.option(
            "--round-to", default="1", show_default=True, metavar="N|auto",
            help="widths are multiples of N, of N/2 where few stay; auto is fastest",
        ),
        click.option("--per", type=click.Choice(["macs", "parameters"]), help="rank nodes by score per what goes with them"),
        click.option("--target-size", metavar="LEFT", help="bytes of tensors left, likewise: 0.05, 500KB"),
        click.option("--target-params", metavar="LEFT", help="parameters left, likewise: 0.05, 500K"),
        click.option("--target-macs", metavar="LEFT", help="multiply-adds left, in place of --sparsity: a fraction, or 40M"),
        click.option("--sparsity", type=float, help="fraction of the nodes (or weights) removed, in [0, 1)"),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that writes a network."""
    for decorate in (
        click.option("--opset", type=click.IntRange(1), help="of .onnx files; the exporter's own choice by default"),
        click.option("--report", type=click.Path(path_type=Path), help="write the report as JSON"),
        click.option(
            "-o", "--output", "outputs", required=True, multiple=True, type=click.Path(path_type=Path),
            help=".onnx, .safetensors, .pt2 or .pt; may be repeated",
        ),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that trains."""
    command = click.option("--resume", is_flag=True, help="go on where the training stopped")(command)
    run = click.Path(path_type=Path)
    return click.option("--run", type=run, help="folder of a training's state and history; OUT.run by default")(command)


_plan_option = click.option("--plan", type=click.Path(path_type=Path), help="write what was kept as JSON, for `compress apply`")


@cli.command()
@click.argument("name")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".pt or .safetensors")
@click.option("--image-size", type=click.IntRange(1), help="height and width; the paper's by default")
@click.option("--in-channels", type=click.IntRange(1), help="channels of the input; the paper's, or 3 for colour, by default")
@click.option("--classes", type=click.IntRange(1), help="10, or as many as the data has")
@click.option("--data", default="digits", show_default=True, metavar="DATA", help="data set that the checkpoint remembers")
@click.option("--mean", metavar="X[,X...]", callback=_numbers, help="normalisation of images that the checkpoint remembers")
@click.option("--std", metavar="X[,X...]", callback=_numbers, help="see --mean")
@click.option("--seed", default=0, show_default=True, type=SEED, help="of the initialisation")
@click.option(
    "--input", "inputs", multiple=True, metavar="[NAME:][DTYPE:]SHAPE", help="what a BUILDER's network takes, 3x32x32"
)
@click.option("--network-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="argument of a BUILDER")
def new(
    name: str, output: Path, image_size: int | None, in_channels: int | None, classes: int | None, data: str,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, seed: int, inputs: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:  # fmt: skip
    """Make a fresh network: one of the papers by NAME, or a builder's, torchvision:resnet18, net.py:make."""
    from compressor import networks
    from compressor.checkpoint.checkpoint import SUFFIXES, save
    from compressor.model.origin import origin_of
    from compressor.system.files import check_target

    check_target(output, SUFFIXES)
    model = _fresh(name, data, in_channels, classes, image_size, seed, arguments, inputs)
    _choose(model, mean, std)
    save(model, output)
    origin = origin_of(model)
    assert origin is not None
    parameters = sum(p.numel() for p in model.parameters())
    shape = networks.size_text(origin.input_shape) or "not known"
    click.echo(f"{output}: {name}, {parameters:,} parameters, input {shape}, data {origin.data or 'none'}")


def _remembered(data: str) -> str:
    """The name of data as a checkpoint keeps it: found from any folder."""
    return data if data == "digits" or not Path(data).exists() else str(Path(data).resolve())


def _fresh(
    name: str, data: str, in_channels: int | None, classes: int | None, image_size: int | None, seed: int,
    arguments: tuple[str, ...] = (), inputs: tuple[str, ...] = (),
) -> nn.Module:  # fmt: skip
    """A fresh network for some data, which it remembers."""
    from compressor import networks
    from compressor.sources.fresh import fresh_network
    from compressor.types.origin import InputSpec

    remembered: str | None = _remembered(data)
    if networks.is_builder(name):
        return fresh_network(
            name, data, in_channels=in_channels, classes=classes, image_size=image_size, seed=seed, remembered=remembered,
            arguments=dict(_argument(text) for text in arguments), inputs=[InputSpec.parse(text) for text in inputs],
        )  # fmt: skip
    if given := [flag for flag, values in (("network-arg", arguments), ("input", inputs)) if values]:
        raise WrongUsage(f"--{given[0]} is for a builder elsewhere; {name} takes --in-channels, --image-size and --classes")
    if (in_channels or networks.default_input(name)[0]) not in (1, 3):
        remembered = None  # images cannot be converted to such an input
    return fresh_network(
        name, data, in_channels=in_channels, classes=classes, image_size=image_size, seed=seed, remembered=remembered
    )


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--tolerance", type=click.FloatRange(0), help="allowed difference, as a fraction of the output's range")
@click.option("--samples", default=PROOF_SAMPLES, show_default=True, type=click.IntRange(1), help="inputs compared")
@_model_options
@_shared_options
def verify(
    a: Path, b: Path, tolerance: float | None, samples: int, data: str | None, device: str, threads: int | None,
    seed: int, as_json: bool, quiet: bool, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, **model_options: Any,
) -> None:  # fmt: skip
    """Check that two networks compute the same: exit 0 if so, 1 if not."""
    from compressor.benchmarks.measure.networks import source_of
    from compressor.benchmarks.report.document import SCHEMA
    from compressor.benchmarks.report.terminal import proof_line
    from compressor.exporters.equivalence import check_equivalence
    from compressor.system.environment import environment

    _prepare(device, threads)
    if tolerance is not None and tolerance != tolerance:
        raise WrongUsage("--tolerance: nan is no number")
    pair = [_opened(path, mean, std, **model_options) for path in (a, b)]
    modules, files = [m for m in pair if not isinstance(m, Path)], [m for m in pair if isinstance(m, Path)]
    source = source_of(modules, files, data, model_options["inputs"], samples=samples, seed=seed)
    remarks = [f"Compared on {samples} samples of {'noise' if source.test is None else source.name}."]
    what = f"{a.name} = {b.name}"
    provider = "cuda" if device.startswith("cuda") else "cpu"
    proof = check_equivalence(*pair, source.inputs, what=what, tolerance=tolerance, provider=provider)
    if as_json:
        _print_json({"schema": SCHEMA, **proof.as_dict(), "notes": remarks, "environment": environment(device), "seed": seed})
    elif not quiet:
        click.echo(proof_line(proof.as_dict()))
        for remark in remarks:
            click.echo(remark)
    if not proof:
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@_attention_option
@_model_options
@click.option("--json", "as_json", is_flag=True, help="print it as JSON on stdout")
def show(model: Path, as_json: bool, attention: Any, **model_options: Any) -> None:
    """Show a network: its layers, which of them are coupled, what stays whole and why."""
    from compressor.benchmarks.report.network import describe, show_structure
    from compressor.coupling.validate import feasible
    from compressor.model.precision import working_copy
    from compressor.sources.noise import example_of

    with _progress(quiet=as_json) as progress:
        progress("loading", 0, 0)
        network = _load(model, None, None, **model_options)
        inputs = example_of(network, samples=2)
        working = working_copy(network, inputs)
        progress("finding the groups", 0, 0)
        found = feasible(working, inputs, attention)
        document = describe(model, network, found, working, inputs)
    if as_json:
        _print_json(document)
    else:
        show_structure(document)


@cli.command()
@click.argument("dense", type=click.Path(path_type=Path))
@click.argument("smalls", metavar="SMALL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help=".html, .md or .json; may be repeated"
)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="samples; 1 and 64 by default; may be repeated")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(2), help="values of each time")
@click.option("--no-memory", is_flag=True, help="leave out peak memory, which starts fresh processes")
@_loss_option
@_model_options
@_shared_options
def bench(
    dense: Path, smalls: tuple[Path, ...], outputs: tuple[Path, ...], batches: tuple[int, ...], rounds: int, no_memory: bool,
    loss: str, data: str | None, device: str, threads: int | None, seed: int, as_json: bool, quiet: bool,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, **model_options: Any,
) -> None:  # fmt: skip
    """Measure a dense network against small ones: operations, times, memory, storage."""
    from compressor.benchmarks.render import SUFFIXES as PAGES
    from compressor.benchmarks.render import render
    from compressor.benchmarks.report.page import headlines

    for path in (dense, *smalls):
        _check_targets((path,), outputs, None, None, suffixes=PAGES)
    _prepare(device, threads)
    from compressor.benchmarks.measure.bench import bench as measure
    from compressor.benchmarks.measure.networks import BATCH, open_network, source_of
    from compressor.objective.losses import loss_named

    loss_named(loss)
    image_size = model_options.pop("image_size")
    loading = {**model_options, "arguments": dict(_argument(text) for text in model_options["arguments"])}
    networks = [open_network(path, **loading) for path in (dense, *smalls)]
    for network in networks:
        if network.module is not None:
            _adapt(network.module, image_size, mean, std)
    modules, files = [n.module for n in networks if n.module is not None], [n.path for n in networks if n.module is None]
    source = source_of(modules, files, data, model_options["inputs"], loss=loss, samples=BATCH, seed=seed)
    with _progress(quiet) as progress:
        document = measure(
            networks, source, loss=loss, batches=sorted(set(batches)) or (1, 64), rounds=rounds, device=device, threads=threads,
            seed=seed, memory=not no_memory, loading=loading, progress=progress,
        )  # fmt: skip
    _write_pages(outputs, document)
    if as_json:
        _print_json(document)
    elif not quiet and outputs:
        for name, said in headlines(document).items():
            click.echo(f"{name}: {', '.join(said)}")
        click.echo(f"written: {', '.join(map(str, outputs))}")
    elif not quiet:
        click.echo(render(document, ".md"), nl=False)


@cli.command()
@click.argument("document", metavar="REPORT", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "outputs", required=True, multiple=True, type=click.Path(path_type=Path),
    help=".html, .md or .json; may be repeated",
)  # fmt: skip
@click.option("--title", help="of a sweep's page; the folder's name by default")
def report(document: Path, outputs: tuple[Path, ...], title: str | None) -> None:
    """Render a report as a page, as Markdown or as JSON.

    REPORT is a .json of `compress bench`, the folder of a sweep, or a sweep's study.

    A study is a sweep in one file, a line for each trial: `compress report results/ -o results/study.jsonl` makes it. The
    records in results/trials/ may go then: pages are rendered from the lines, and `compress sweep` repeats none of them.
    """
    from compressor.benchmarks.render import LINES, read, titled
    from compressor.benchmarks.render import SUFFIXES as PAGES

    is_sweep = document.is_dir() or document.suffix == LINES
    _check_targets((document,), outputs, None, None, suffixes=(*PAGES, LINES) if is_sweep else PAGES)
    if is_sweep:
        from compressor.benchmarks.experiments.records import read_study

        _write_pages(outputs, dict(read_study(document, title)))
    else:
        _write_pages(outputs, titled(_read(document, read), title))


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@_output_options
@_loss_option
@_model_options
@_shared_options
def apply(
    plan: Path, model: Path, outputs: tuple[Path, ...], report: Path | None, opset: int | None, loss: str, data: str | None,
    device: str, threads: int | None, seed: int, as_json: bool, quiet: bool, mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None, **model_options: Any,
) -> None:  # fmt: skip
    """Replay PLAN on MODEL, other weights of the architecture that it was made for."""
    _check_targets((plan, model), outputs, report, None)
    _prepare(device, threads)

    from compressor.objective.losses import loss_named
    from compressor.pruning.replay import replay
    from compressor.sources.scoring import source_for
    from compressor.types.plan import Plan

    loss_named(loss)
    decided = _read(plan, Plan.from_json)
    dense = _load(model, mean, std, **model_options).to(device)
    source = source_for(dense, data, loss=loss, seed=seed)
    with _progress(quiet) as progress:
        result = replay(decided, dense, source.inputs, progress)
        document = _finish(dense, result, source, loss, model, outputs, report, None, opset, device, seed, progress)
    _tell(document, as_json, quiet)


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The numbers of a recipe; what is not given is the named recipe's."""
    for o in reversed(options_of(Recipe)):
        kind: Any = click.Choice(o.choices) if o.choices else o.kind
        flag = f"--{o.name.replace('_', '-')}"
        command = click.option(flag, o.name, type=kind, help=f"{o.help}  [{o.default}]")(command)
    return click.option("--recipe", default="snip-it", show_default=True, type=click.Choice(list(RECIPES)))(command)


@cli.command()
@click.argument("model", metavar="NETWORK", type=click.Path(path_type=Path))
@click.option("--method", metavar="METHOD", help="prune, too; `compress --help` lists the methods")
@click.option("--method-option", "given", multiple=True, metavar="KEY=VALUE", help="option of the method; may be repeated")
@click.option(
    "--stage", type=click.Choice(["before", "during", "after"]), help="when to prune; the method's own choice by default"
)
@click.option("--interval", type=click.IntRange(1), help="epochs between events of stage during; 4 by default")
@click.option("--prune-at", type=click.IntRange(0), help="epoch of the events of stage after; 7/8 of all by default")
@_recipe_options
@_run_options
@click.option("--train-zeros", is_flag=True, help="train weights that come as zeros; else they are masked ones, and stay zero")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="folder for TensorBoard's events")
@_pruning_options
@_output_options
@_plan_option
@_loss_option
@_model_options
@_shared_options
def train(
    model: Path, method: str | None, given: tuple[str, ...], stage: Any, interval: int | None, prune_at: int | None,
    recipe: str, run: Path | None, resume: bool, train_zeros: bool, tensorboard: Path | None, outputs: tuple[Path, ...],
    report: Path | None, plan: Path | None, opset: int | None, loss: str, samples: int, data: str | None, device: str,
    threads: int | None, seed: int, as_json: bool, quiet: bool, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    **rest: Any,
) -> None:  # fmt: skip
    """Train NETWORK, a fresh one by its name or builder, or a file; with --method, prune it before, during or after."""
    numbers = {o.name: rest.pop(o.name) for o in options_of(Recipe)}
    chosen = recipe_named(recipe, {name: value for name, value in numbers.items() if value is not None})
    options = dict(_argument(text, "--method-option") for text in given)
    how, model_options = _pruning(rest, needed=method is not None)
    if method is not None:
        make(method, options)
    elif options or stage or interval is not None or prune_at is not None or plan is not None:
        raise WrongUsage("--method-option, --stage, --interval, --prune-at and --plan are for pruning: name a --method")
    elif rest_of := [name for name in (*PRUNING, "round_to") if how[name] not in (None, False, (), 1, "heads")]:
        raise WrongUsage(f"--{rest_of[0].replace('_', '-')} is for pruning: name a --method")
    _check_targets((model,), outputs, report, plan)
    folder = _run_folder(run, outputs, resume, quiet)
    _prepare(device, threads)

    from compressor.model.origin import origin_of, set_origin
    from compressor.objective.losses import loss_named

    loss_named(loss)
    dense = _fresh_or_loaded(model, data, seed, mean, std, model_options).to(device)
    if data is not None and (origin := origin_of(dense)) is not None:
        set_origin(dense, replace(origin, data=_remembered(data)))
    pruning = {} if method is None else {"method": method, "stage": stage, "interval": interval, "prune_at": prune_at, **how}
    with _progress(quiet) as progress, _watched(tensorboard) as on_epoch:
        trained, source = _trained(
            dense, data, chosen, loss, samples if method else 1, seed, progress, folder=folder, resume=resume,
            on_epoch=on_epoch, keep_zeros=not train_zeros, **pruning, **options,
        )  # fmt: skip
        if trained.pruning is None:
            document = _finish_training(dense, trained, source, model, outputs, report, opset, device, seed, progress)
        else:
            document = _finish(
                dense, trained.pruning, source, loss, model, outputs, report, plan, opset, device, seed, progress,
                trained=trained,
            )  # fmt: skip
    _tell(document, as_json, quiet)


@cli.command()
@click.argument("file", metavar="SWEEP.toml", type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="folder of the records")
@click.option("-j", "--jobs", default=1, show_default=True, type=click.IntRange(1), help="trials at a time, a process each")
@click.option("--json", "as_json", is_flag=True, help="print the outcome as JSON on stdout")
@click.option("--quiet", is_flag=True, help="print nothing but errors")
def sweep(file: Path, folder: Path, jobs: int, as_json: bool, quiet: bool) -> None:
    """Run networks x methods x sparsities x seeds; what is done already is not done again."""
    from dataclasses import asdict

    from compressor.benchmarks.experiments.sweep import read_sweep, run_sweep

    trials = read_sweep(file)
    if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise BadInput(f"{folder}: cannot be a folder for results; its parent must be a folder, and it must not be a file")
    with _progress(quiet) as progress:
        outcome = run_sweep(trials, folder, file.parent, jobs, progress)
    if as_json:
        _print_json(asdict(outcome))
    elif not quiet:
        click.echo(f"{folder}: {outcome.done} trials done, {outcome.skipped} were done before, {outcome.failed} failed")
    for name, error in outcome.errors.items():
        _fail(f"{name}: {error}", 1)
    if outcome.failed:
        raise click.exceptions.Exit(1)


def _fresh_or_loaded(
    network: Path, data: str | None, seed: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    model_options: dict[str, Any],
) -> nn.Module:  # fmt: skip
    """A fresh network by its name, or one from a file."""
    from compressor import networks

    if not network.exists() and networks.is_builder(str(network)):
        if set_ones := [flag for flag in ("network", "key", "trust_pickle") if model_options[flag]]:
            raise WrongUsage(f"--{set_ones[0].replace('_', '-')} is for files; {network} is a fresh network")
        how = model_options["image_size"], seed, model_options["arguments"], model_options["inputs"]
        model = _fresh(str(network), data or "digits", None, None, *how)
        _choose(model, mean, std)
        return model
    if network.exists() or str(network) not in networks.names():
        if not network.exists() and not network.suffix:
            hint = nearest(str(network), networks.names(), f"there are {', '.join(networks.names())}")
            raise WrongUsage(f"{network}: neither a file nor a network; {hint}")
        return _load(network, mean, std, **model_options)
    size = model_options.pop("image_size")
    if set_ones := [name for name, value in model_options.items() if value]:
        flag = {"inputs": "input", "arguments": "network-arg"}.get(set_ones[0], set_ones[0].replace("_", "-"))
        raise WrongUsage(f"--{flag} is for files; {network} is a fresh network")
    model = _fresh(str(network), data or "digits", None, None, size, seed)
    _choose(model, mean, std)
    return model


def _run_folder(run: Path | None, outputs: tuple[Path, ...], resume: bool, quiet: bool) -> Path:
    """Where a training keeps its state."""
    folder = run or outputs[0].with_suffix(".run")
    if resume and not (folder / "state.pt").is_file() and not quiet:
        click.echo(f"{folder}: there is no run to go on with; this one begins anew", err=True)
    return folder


def _trained(
    model: nn.Module, data: str | None, recipe: Recipe, loss: str, samples: int, seed: int, progress: Progress,
    batch_size: int = 64, **how: Any,
) -> tuple[Trained, Source]:  # fmt: skip
    """Train on named data, or on those that the network remembers."""
    from compressor.pruning.train import train as train_network
    from compressor.sources.training import training_data_for

    held = training_data_for(
        model, data, loss=loss, count=samples, batch_size=batch_size, step_size=recipe.batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    trained = train_network(
        model, held.train, recipe, test=held.test, scoring=held.source.train, loss=loss, forward=held.forward,
        example_inputs=held.source.inputs, colour=held.colour, seed=seed, progress=progress, **how,
    )  # fmt: skip
    return trained, held.source


@contextmanager
def _watched(folder: Path | None) -> Iterator[Callable[[Row], None]]:
    """Epochs as TensorBoard's events, where that was asked for."""
    if folder is None:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingEnvironment("TensorBoard is not installed here: pip install tensorboard") from error
    from dataclasses import asdict

    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--tensorboard {folder}: is a file; name a folder")
    with SummaryWriter(str(folder)) as writer:

        def on_epoch(row: Row) -> None:
            for name, value in asdict(row).items():
                if value is not None and name != "epoch":
                    writer.add_scalar(name, value, row.epoch)

        yield on_epoch


def _finish_training(
    dense: nn.Module, trained: Trained, source: Source, network: Path, outputs: tuple[Path, ...], report: Path | None,
    opset: int | None, device: str, seed: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Write and prove what was trained, not pruned."""
    from compressor.benchmarks.report.document import training_document

    def document_of(proofs: list[Equivalence], sizes: dict[Path, int]) -> dict[str, Any]:
        return training_document(
            trained, source.inputs, proofs, sizes, str(network), source.name, list(source.remarks), device, seed
        )

    return _write(trained.model, outputs, report, {}, document_of, source, opset, device, progress)


def _method_command(name: str) -> click.Command:
    """The command of one method: the same for all, with the method's own options."""
    method = method_named(name)
    own = []
    for o in options_of(method):
        kind: Any = click.Choice(o.choices) if o.choices else o.kind
        flag = f"--{o.name.replace('_', '-')}"
        own.append(click.Option([flag, o.name], type=kind, default=o.default, show_default=True, help=o.help))
    command = click.Command(name, params=[*own, *_PRUNE_OPTIONS], help=method.__doc__, short_help=summaries()[name])
    names = [o.name for o in options_of(method)]
    command.callback = lambda **values: _prune(name, {key: values.pop(key) for key in names}, **values)
    return command


@click.argument("model", type=click.Path(path_type=Path))
@_pruning_options
@_output_options
@_plan_option
@_loss_option
@click.option(
    "--batch-size",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="samples of a micro-batch; data from file.py has its own",
)
@click.option("--plots", type=click.Path(path_type=Path), help="folder for pictures of what is left, .svg")
@click.option("--finetune", type=click.IntRange(1), metavar="EPOCHS", help="train the small network before it is written")
@_run_options
@_model_options
@_shared_options
def _prune_parameters() -> None:
    """Carries the options that all methods share."""


_PRUNE_OPTIONS: list[click.Parameter] = list(reversed(vars(_prune_parameters)["__click_params__"]))


def _prune(
    name: str, options: dict[str, Any], *, model: Path, outputs: tuple[Path, ...], report: Path | None, plan: Path | None,
    opset: int | None, loss: str, samples: int, batch_size: int, plots: Path | None, finetune: int | None, run: Path | None,
    resume: bool, data: str | None, device: str, threads: int | None, seed: int, as_json: bool, quiet: bool,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, **rest: Any,
) -> None:  # fmt: skip
    """Check everything that can be checked, then load, prune, export and report."""
    how, model_options = _pruning(rest)
    make(name, options)
    _check_targets((model,), outputs, report, plan)
    if finetune is None and (run is not None or resume):
        raise WrongUsage(f"--{'resume' if resume else 'run'} is for a training: give --finetune EPOCHS, too")
    if plots is not None and (not plots.parent.is_dir() or (plots.exists() and not plots.is_dir())):
        raise BadInput(f"{plots}: cannot be a folder for pictures; its parent must be a folder, and it must not be a file")
    _prepare(device, threads)

    from compressor.objective.losses import loss_named
    from compressor.pruning.compress import compress
    from compressor.sources.scoring import source_for

    loss_named(loss)
    dense = _load(model, mean, std, **model_options).to(device)
    with _progress(quiet) as progress:
        if finetune is None:
            source, trained = source_for(dense, data, loss=loss, count=samples, batch_size=batch_size, seed=seed), None
            result = compress(
                dense,
                name,
                source.train,
                loss=loss,
                seed=seed,
                example_inputs=source.inputs,
                progress=progress,
                **how,
                **options,
            )
        else:
            trained, source = _trained(
                dense, data, Recipe(epochs=finetune), loss, samples, seed, progress, batch_size=batch_size, method=name,
                stage="before", folder=_run_folder(run, outputs, resume, quiet), resume=resume, **how, **options,
            )  # fmt: skip
            assert trained.pruning is not None
            result = trained.pruning
        document = _finish(
            dense, result, source, loss, model, outputs, report, plan, opset, device, seed, progress, plots, trained
        )
    _tell(document, as_json, quiet)


PRUNING = ("per", "freeze", "only", "attention", "floor", "calibrate_bn", "allow_disconnect", "ablation")


def _pruning(values: dict[str, Any], needed: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `compress`, checked, from those of `_pruning_options`; and what else was among the values."""
    from compressor.selection.budget import Budget
    from compressor.selection.select import check_sparsity

    rest = dict(values)
    sparsity, round_to = rest.pop("sparsity"), rest.pop("round_to")
    asked = {unit: rest.pop(f"target_{name}") for unit, name in (("macs", "macs"), ("parameters", "params"), ("bytes", "size"))}
    given = {unit: text for unit, text in asked.items() if text is not None}
    if len(given) + (sparsity is not None) != 1 and (needed or given or sparsity is not None):
        raise WrongUsage("give one of --sparsity, --target-macs, --target-params and --target-size")
    if not needed and (given or sparsity is not None):
        raise WrongUsage("a sparsity is for pruning: name a --method")
    budget = next((Budget.parse(unit, text) for unit, text in given.items()), None)
    check_sparsity(sparsity or 0.0)
    if round_to != "auto" and not (round_to.isdecimal() and 1 <= int(round_to) <= 1024):
        raise WrongUsage(f"--round-to {round_to}: write auto, or a whole number such as 8 or 16")
    multiple = round_to if round_to == "auto" else int(round_to)
    how = {"sparsity": sparsity or 0.0, "budget": budget, "round_to": multiple} | {name: rest.pop(name) for name in PRUNING}
    return how, rest


def _finish(
    dense: nn.Module, result: Result, source: Source, loss: str, model: Path, outputs: tuple[Path, ...], report: Path | None,
    plan: Path | None, opset: int | None, device: str, seed: int, progress: Progress, plots: Path | None = None,
    trained: Trained | None = None,
) -> dict[str, Any]:  # fmt: skip
    """See how well it does, export what came out and prove the files; all of them appear, with the report, or none."""
    from compressor.benchmarks.report.document import make_document
    from compressor.model.cost import tensor_bytes
    from compressor.objective.losses import loss_named
    from compressor.objective.objective import Objective, evaluate

    qualities = None
    if source.test is not None:
        progress("evaluating", 0, 0)
        objective = Objective(source.test, loss_named(loss), device=device)
        qualities = [evaluate(m, objective) for m in (dense, result.model)]
    bytes_before = {model: model.stat().st_size if model.is_file() else tensor_bytes(dense)}
    pictures = {} if plots is None else _pictures(result, plots)

    def document_of(proofs: list[Equivalence], sizes: dict[Path, int]) -> dict[str, Any]:
        return make_document(
            result, proofs, qualities, bytes_before | sizes, source.name, list(source.remarks), device, seed, trained
        )

    texts = {path: (lambda _, text=text: text) for path, text in pictures.items()}
    if plan is not None:
        texts[plan] = lambda _: result.plan.to_json()
    constant = result.summary.disconnected
    return _write(result.model, outputs, report, texts, document_of, source, opset, device, progress, constant)


def _write(
    network: nn.Module, outputs: tuple[Path, ...], report: Path | None, texts: dict[Path, Callable[[dict[str, Any]], str]],
    document_of: Callable[[list[Equivalence], dict[Path, int]], dict[str, Any]], source: Source, opset: int | None, device: str,
    progress: Progress, constant: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Export a network and prove the files; they appear with the report and the texts, or nothing does."""
    from compressor import exporters
    from compressor.system.files import staged

    progress("exporting and proving", 0, 0)
    providers = ("cpu", "cuda") if device.startswith("cuda") else ("cpu",)
    told = dict(texts) if report is None else {report: lambda document: json.dumps(document, indent=1), **texts}
    with (
        exporters.exporting(
            network, *outputs, example_inputs=source.inputs, providers=providers, opset=opset, constant=constant
        ) as written,
        staged(*told) as files,
    ):
        document = document_of(written.proofs, written.sizes)
        for file, text_of in zip(files, told.values(), strict=True):
            file.write_text(text_of(document) + "\n", encoding="utf-8")
    return document


def _pictures(result: Result, folder: Path) -> dict[Path, str]:
    """Path -> picture of what the pruning did; the folder is made."""
    from compressor.benchmarks.report.plots import pruning_plots

    s, masks = result.summary, result.plan.masks
    left = s.weights.by_layer if s.weights else s.widths
    first = next(((name, mask.tensor()) for name, mask in masks.items()), None)
    drawn = pruning_plots(left, "weights" if s.weights else "nodes", result.curves, first)
    folder.mkdir(exist_ok=True)
    return {folder / f"{name}.svg": picture for name, picture in drawn.items()}


def _tell(document: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from compressor.benchmarks.report.terminal import show, show_training

    if as_json:
        _print_json(document)
    elif not quiet:
        (show if "method" in document else show_training)(document)


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """What a text file says."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(f"{path}: {error}") from error


def _load(
    path: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, *, network: str | None,
    arguments: tuple[str, ...], inputs: tuple[str, ...], image_size: int | None, key: str | None, trust_pickle: bool,
) -> nn.Module:  # fmt: skip
    """The network in a file, with what the user said of it."""
    from compressor.checkpoint.checkpoint import load
    from compressor.types.origin import InputSpec

    specs = tuple(InputSpec.parse(text) for text in inputs)
    model = load(
        path, network=network, arguments=dict(_argument(text) for text in arguments), inputs=specs, key=key,
        trust_pickle=trust_pickle,
    )  # fmt: skip
    _adapt(model, image_size, mean, std)
    return model


def _adapt(model: nn.Module, image_size: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Let the network remember, in place, what the user said of its images."""
    from compressor.model.origin import origin_of, set_origin
    from compressor.types.origin import InputSpec

    origin = origin_of(model)
    if image_size is not None and origin is not None:
        known = origin.inputs or (InputSpec((3, image_size, image_size)),)
        resized = replace(known[0], shape=(*known[0].shape[:-2], image_size, image_size))
        set_origin(model, replace(origin, inputs=(resized, *known[1:])))
    _choose(model, mean, std)


def _choose(model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Let the network remember, in place, how its images are normalised, if the user said so."""
    from compressor.data import Preprocessing
    from compressor.model.origin import origin_of, set_origin

    origin = origin_of(model)
    if (mean or std) and origin is not None:
        set_origin(model, replace(origin, preprocessing=Preprocessing(mean, std).as_dict()))


def _argument(text: str, flag: str = "--network-arg") -> tuple[str, Any]:
    """`key=value`; the value as JSON where it is (numbers, true, lists), else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise WrongUsage(f"{flag} {text}: write KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _check_targets(
    read: tuple[Path, ...], outputs: tuple[Path, ...], report: Path | None, plan: Path | None,
    suffixes: tuple[str, ...] | None = None,
) -> None:  # fmt: skip
    """Refuse targets that cannot be written; by default they are networks."""
    from compressor.system.files import check_target

    if suffixes is None:
        from compressor.exporters import SUFFIXES as suffixes
    for target in outputs:
        check_target(target, suffixes)
    told = [path for path in (report, plan) if path is not None]
    for path in told:
        check_target(path, (".json",))
    everything = [*read, *outputs, *told]
    if len({p.resolve() for p in everything}) < len(everything):
        raise WrongUsage("the model, the outputs, the plan and the report must be different files")


def _prepare(device: str, threads: int | None) -> None:
    from compressor.system.environment import prepare

    prepare(device, threads)


def _opened(
    path: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, **model_options: Any
) -> nn.Module | Path:
    """A network to compare: files that run by themselves as they are, all others loaded."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.suffix == ".pt2" and not model_options["trust_pickle"]:
        raise BadInput(
            f"{path}: torch reads exported programs by unpickling and evaluating them; if you trust it, --trust-pickle"
        )
    return path if path.suffix in (".onnx", ".pt2") else _load(path, mean, std, **model_options)


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=1))


def _write_pages(paths: tuple[Path, ...], document: dict[str, Any]) -> None:
    """A benchmark's document in every form asked for: all of them or none."""
    from compressor.benchmarks.render import render
    from compressor.system.files import staged

    with staged(*paths) as files:
        for file in files:
            file.write_text(render(document, file.suffix), encoding="utf-8")


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr when that is a terminal; else, as in the log of a cluster's job, a line now and then."""
    if quiet:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield report


def _lines() -> Progress:
    """Progress as lines on stderr, `SECONDS_PER_LINE` apart: short work says nothing."""
    said = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_PER_LINE:
            said = time.monotonic()
            click.echo(f"{what} ({done} of {total})" if total else what, err=True)

    return report


class _Stopped(BaseException):
    """The system asks to end. No SystemExit, which is what code of the user's own may raise and is caught for."""


def _stop(number: int, frame: Any) -> None:
    raise _Stopped(number)  # unwinds, so that temporary files are removed


def main() -> None:
    """Entry point: every expected failure is one line on stderr and an exit code (see `compressor.errors`)."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = cli.main(standalone_mode=False)
    except CompressError as error:
        code = _fail(str(error), error.exit_code)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
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
    click.echo(f"compress: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
