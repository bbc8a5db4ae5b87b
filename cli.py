"""The command line: parse, call, show. Torch is imported when a command needs it, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.errors import BadInput, CompressError, MissingEnvironment, WrongUsage
from compressor.method import make, method_named, options_of, summaries

if TYPE_CHECKING:
    from torch import nn

    from compressor.pipeline import Progress, Result
    from compressor.source import Source

PROOF_SAMPLES = 64
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
            formatter.write_dl([(name, command.get_short_help_str()) for name, command in sorted(self.commands.items())])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compressor")
def cli() -> None:
    """Make networks smaller by removing whole channels and neurons, and prove that the result is right.

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
        click.option("--network-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="argument of --network"),
        click.option(
            "--network", metavar="BUILDER",
            help="of a state dict: vgg16, torchvision:resnet50, timm:..., package.module:factory, file.py:factory",
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


@cli.command()
@click.argument("name")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".pt or .safetensors")
@click.option("--image-size", type=click.IntRange(1), help="height and width; the paper's by default")
@click.option("--in-channels", type=click.IntRange(1), help="channels of the input; the paper's by default")
@click.option("--classes", type=click.IntRange(1), help="10, or as many as the data has")
@click.option("--data", default="digits", show_default=True, metavar="DATA", help="data set that the checkpoint remembers")
@click.option("--mean", metavar="X[,X...]", callback=_numbers, help="normalisation of images that the checkpoint remembers")
@click.option("--std", metavar="X[,X...]", callback=_numbers, help="see --mean")
@click.option("--seed", default=0, show_default=True, type=SEED, help="of the initialisation")
def new(
    name: str, output: Path, image_size: int | None, in_channels: int | None, classes: int | None, data: str,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, seed: int,
) -> None:  # fmt: skip
    """Make a fresh network of the papers, initialised as they do."""
    from compressor import networks
    from compressor.checkpoint import SUFFIXES, save
    from compressor.files import check_target
    from compressor.state import origin_of

    check_target(output, SUFFIXES)
    classes = _classes(data, classes)
    remembered: str | None = data if data == "digits" or not Path(data).exists() else str(Path(data).resolve())
    if (in_channels or networks.default_input(name)[0]) not in (1, 3):
        remembered = None  # images cannot be converted to such an input
    model = networks.build(name, in_channels=in_channels, classes=classes, image_size=image_size, seed=seed, data=remembered)
    _choose(model, mean, std)
    save(model, output)
    origin = origin_of(model)
    assert origin is not None
    parameters = sum(p.numel() for p in model.parameters())
    shape = networks.size_text(origin.input_shape)
    click.echo(f"{output}: {name}, {parameters:,} parameters, input {shape}, data {remembered or 'none'}")


def _classes(data: str, asked: int | None) -> int:
    """How many outputs a fresh network gets: as asked, or as many as the data has."""
    from compressor.data import open_data

    has = getattr(open_data(data), "classes", None)
    if asked is not None and has is not None and asked < has:
        raise WrongUsage(f"--classes {asked}: {data} has {has} classes; leave --classes out or raise it")
    return asked or has or 10


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--tolerance", type=click.FloatRange(0), help="allowed difference, as a fraction of the output's range")
@click.option("--samples", default=PROOF_SAMPLES, show_default=True, type=click.IntRange(1), help="inputs compared")
@_model_options
@_shared_options
def verify(
    a: Path, b: Path, tolerance: float | None, samples: int, data: str | None, device: str, threads: int | None, seed: int,
    as_json: bool, quiet: bool, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, **model_options: Any,
) -> None:  # fmt: skip
    """Check that two networks compute the same: exit 0 if so, 1 if not."""
    from benchmarks.networks import source_of
    from benchmarks.report import SCHEMA, proof_line
    from compressor.environment import environment
    from exporters.equivalence import check_equivalence

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
    from benchmarks.report import describe, show_structure
    from compressor.feasible import feasible
    from compressor.precision import working_copy
    from compressor.source import example_of

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
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="batch size; 1 and 64 by default")
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
    from benchmarks.report import PAGES, headlines, render

    for path in (dense, *smalls):
        _check_targets((path,), outputs, None, None, suffixes=PAGES)
    _prepare(device, threads)
    from benchmarks.bench import bench as measure
    from benchmarks.networks import BATCH, open_network, source_of
    from compressor.objective import loss_named

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
def report(document: Path, outputs: tuple[Path, ...]) -> None:
    """Render a report of `compress bench`, which is its .json, as a page or as Markdown."""
    from benchmarks.report import PAGES, read

    _check_targets((document,), outputs, None, None, suffixes=PAGES)
    _write_pages(outputs, _read(document, read))


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "outputs", required=True, multiple=True, type=click.Path(path_type=Path),
    help=".onnx, .safetensors, .pt2 or .pt; may be repeated",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="write the report as JSON")
@click.option("--opset", type=click.IntRange(1), help="of .onnx files; the exporter's own choice by default")
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

    from compressor.objective import loss_named
    from compressor.pipeline import replay
    from compressor.source import source_for
    from compressor.types import Plan

    loss_named(loss)
    decided = _read(plan, Plan.from_json)
    dense = _load(model, mean, std, **model_options).to(device)
    source = source_for(dense, data, loss=loss, seed=seed)
    with _progress(quiet) as progress:
        result = replay(decided, dense, source.inputs, progress)
        document = _finish(dense, result, source, loss, model, outputs, report, None, opset, device, seed, progress)
    _tell(document, as_json, quiet)


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
@click.option("--sparsity", type=float, help="fraction of the nodes (or weights) removed, in [0, 1)")
@click.option("--target-macs", metavar="LEFT", help="multiply-adds left, in place of --sparsity: a fraction, or 40M")
@click.option("--target-params", metavar="LEFT", help="parameters left, likewise: 0.05, 500K")
@click.option("--target-size", metavar="LEFT", help="bytes of tensors left, likewise: 0.05, 500KB")
@click.option("--per", type=click.Choice(["macs", "parameters"]), help="rank nodes by their score per what goes with them")
@click.option(
    "--round-to",
    default="1",
    show_default=True,
    metavar="N|auto",
    help="widths are multiples of N, of N/2 where few stay; auto is fastest",
)
@click.option(
    "-o", "--output", "outputs", required=True, multiple=True, type=click.Path(path_type=Path),
    help=".onnx, .safetensors, .pt2 or .pt; may be repeated",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="write the report as JSON")
@click.option("--plan", type=click.Path(path_type=Path), help="write what was kept as JSON, for `compress apply`")
@click.option("--opset", type=click.IntRange(1), help="of .onnx files; the exporter's own choice by default")
@_loss_option
@click.option("--samples", default=2560, show_default=True, type=click.IntRange(1), help="scored at each event")
@click.option(
    "--batch-size",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="samples of a micro-batch; data from file.py has its own",
)
@click.option("--floor", default=1, show_default=True, type=click.IntRange(1), help="nodes that every group keeps")
@click.option(
    "--freeze", metavar="LAYER", multiple=True, help="keeps all its nodes; a pattern such as features.*, may be repeated"
)
@click.option("--only", metavar="LAYER", multiple=True, help="in place of that: only these may lose nodes")
@_attention_option
@click.option("--allow-disconnect", is_flag=True, help="also where the output no longer depends on the input")
@click.option(
    "--ablation",
    type=click.Choice(["shuffle", "reinit", "invert"]),
    help="a control: random ones, fresh weights, the best go",
)
@click.option("--plots", type=click.Path(path_type=Path), help="folder for pictures of what is left, .svg")
@click.option("--calibrate-bn", is_flag=True, help="first give batch norms the statistics of the data")
@_model_options
@_shared_options
def _prune_parameters() -> None:
    """Carries the options that all methods share."""


_PRUNE_OPTIONS: list[click.Parameter] = list(reversed(vars(_prune_parameters)["__click_params__"]))


def _prune(
    name: str, options: dict[str, Any], *, model: Path, sparsity: float | None, target_macs: str | None,
    target_params: str | None, target_size: str | None, per: str | None, round_to: str, freeze: tuple[str, ...],
    only: tuple[str, ...], attention: Any, outputs: tuple[Path, ...], report: Path | None, plan: Path | None,
    opset: int | None, loss: str, samples: int, batch_size: int, floor: int, calibrate_bn: bool, data: str | None,
    device: str, threads: int | None, seed: int, as_json: bool, quiet: bool, mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None, allow_disconnect: bool, ablation: Any, plots: Path | None, **model_options: Any,
) -> None:  # fmt: skip
    """Check everything that can be checked, then load, prune, export and report."""
    from compressor.budget import Budget
    from compressor.select import check_sparsity

    asked = {"macs": target_macs, "parameters": target_params, "bytes": target_size}
    given = {unit: text for unit, text in asked.items() if text is not None}
    if len(given) + (sparsity is not None) != 1:
        raise WrongUsage("give one of --sparsity, --target-macs, --target-params and --target-size")
    budget = next((Budget.parse(unit, text) for unit, text in given.items()), None)
    check_sparsity(sparsity or 0.0)
    if round_to != "auto" and not (round_to.isdecimal() and 1 <= int(round_to) <= 1024):
        raise WrongUsage(f"--round-to {round_to}: write auto, or a whole number such as 8 or 16")
    multiple: Any = round_to if round_to == "auto" else int(round_to)
    make(name, options)
    _check_targets((model,), outputs, report, plan)
    if plots is not None and (not plots.parent.is_dir() or (plots.exists() and not plots.is_dir())):
        raise BadInput(f"{plots}: cannot be a folder for pictures; its parent must be a folder, and it must not be a file")
    _prepare(device, threads)

    from compressor.objective import loss_named
    from compressor.pipeline import compress
    from compressor.source import source_for

    loss_named(loss)
    dense = _load(model, mean, std, **model_options).to(device)
    source = source_for(dense, data, loss=loss, count=samples, batch_size=batch_size, seed=seed)
    with _progress(quiet) as progress:
        result = compress(
            dense, name, source.train, sparsity or 0.0, budget=budget, per=per, round_to=multiple, freeze=freeze, only=only,
            attention=attention, allow_disconnect=allow_disconnect, ablation=ablation,
            loss=loss, floor=floor, seed=seed, calibrate_bn=calibrate_bn, example_inputs=source.inputs, progress=progress,
            **options,
        )  # fmt: skip
        document = _finish(dense, result, source, loss, model, outputs, report, plan, opset, device, seed, progress, plots)
    _tell(document, as_json, quiet)


def _finish(
    dense: nn.Module, result: Result, source: Source, loss: str, model: Path, outputs: tuple[Path, ...], report: Path | None,
    plan: Path | None, opset: int | None, device: str, seed: int, progress: Progress, plots: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """See how well it does, export what came out and prove the files; all of them appear, with the report, or none."""
    import exporters
    from benchmarks.report import make_document
    from compressor.files import staged
    from compressor.objective import Objective, evaluate, loss_named

    qualities = None
    if source.test is not None:
        progress("evaluating", 0, 0)
        objective = Objective(source.test, loss_named(loss), device=device)
        qualities = [evaluate(m, objective) for m in (dense, result.model)]
    progress("exporting and proving", 0, 0)
    providers = ("cpu", "cuda") if device.startswith("cuda") else ("cpu",)
    told = [path for path in (report, plan) if path is not None]
    pictures = {} if plots is None else _pictures(result, plots)
    with (
        exporters.exporting(
            result.model,
            *outputs,
            example_inputs=source.inputs,
            providers=providers,
            opset=opset,
            constant=result.summary.disconnected,
        ) as written,
        staged(*told, *pictures) as texts,
    ):
        sizes = {model: model.stat().st_size, **written.sizes}
        document = make_document(result, written.proofs, qualities, sizes, source.name, list(source.remarks), device, seed)
        contents = {report: json.dumps(document, indent=1), plan: result.plan.to_json()}
        contents = pictures | contents
        for target, text in zip((*told, *pictures), texts, strict=True):
            text.write_text(contents[target] + "\n", encoding="utf-8")
    return document


def _pictures(result: Result, folder: Path) -> dict[Path | None, str]:
    """Path -> picture of what the pruning did; the folder is made."""
    from benchmarks.report.plots import pruning_plots

    s, masks = result.summary, result.plan.masks
    left = s.weights.by_layer if s.weights else s.widths
    first = next(((name, mask.tensor()) for name, mask in masks.items()), None)
    drawn = pruning_plots(left, "weights" if s.weights else "nodes", result.curves, first)
    folder.mkdir(exist_ok=True)
    return {folder / f"{name}.svg": picture for name, picture in drawn.items()}


def _tell(document: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from benchmarks.report import show as show_report

    if as_json:
        _print_json(document)
    elif not quiet:
        show_report(document)


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
    from compressor.checkpoint import load
    from compressor.types import InputSpec

    specs = tuple(InputSpec.parse(text) for text in inputs)
    model = load(
        path, network=network, arguments=dict(_argument(text) for text in arguments), inputs=specs, key=key,
        trust_pickle=trust_pickle,
    )  # fmt: skip
    _adapt(model, image_size, mean, std)
    return model


def _adapt(model: nn.Module, image_size: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Let the network remember, in place, what the user said of its images."""
    from compressor.state import origin_of, set_origin
    from compressor.types import InputSpec

    origin = origin_of(model)
    if image_size is not None and origin is not None:
        known = origin.inputs or (InputSpec((3, image_size, image_size)),)
        resized = replace(known[0], shape=(*known[0].shape[:-2], image_size, image_size))
        set_origin(model, replace(origin, inputs=(resized, *known[1:])))
    _choose(model, mean, std)


def _choose(model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Let the network remember, in place, how its images are normalised, if the user said so."""
    from compressor.data import Preprocessing
    from compressor.state import origin_of, set_origin

    origin = origin_of(model)
    if (mean or std) and origin is not None:
        set_origin(model, replace(origin, preprocessing=Preprocessing(mean, std).as_dict()))


def _argument(text: str) -> tuple[str, Any]:
    """`key=value`; the value as JSON where it is (numbers, true, lists), else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise WrongUsage(f"--network-arg {text}: write KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _check_targets(
    read: tuple[Path, ...], outputs: tuple[Path, ...], report: Path | None, plan: Path | None,
    suffixes: tuple[str, ...] | None = None,
) -> None:  # fmt: skip
    """Refuse targets that cannot be written; by default they are networks."""
    from compressor.files import check_target

    if suffixes is None:
        from exporters import SUFFIXES as suffixes
    for target in outputs:
        check_target(target, suffixes)
    told = [path for path in (report, plan) if path is not None]
    for path in told:
        check_target(path, (".json",))
    everything = [*read, *outputs, *told]
    if len({p.resolve() for p in everything}) < len(everything):
        raise WrongUsage("the model, the outputs, the plan and the report must be different files")


def _prepare(device: str, threads: int | None) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingEnvironment("no CUDA device here; use --device cpu")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number or "0") != str(int(number) if number.isdecimal() else 0):
        raise WrongUsage(f"--device {device}: choose cpu, cuda or cuda:1")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MissingEnvironment(f"no device {device} here; there are {torch.cuda.device_count()}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # its 10 bits would drown a proof
    if threads:
        torch.set_num_threads(threads)


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
    from benchmarks.report import render
    from compressor.files import staged

    with staged(*paths) as files:
        for file in files:
            file.write_text(render(document, file.suffix), encoding="utf-8")


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr when that is a terminal; silence otherwise."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield report


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
        code = _fail("interrupted; no file was left half-written", 130)
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
