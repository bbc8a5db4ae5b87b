"""The command line: parse, call, show. Torch is imported when a command needs it, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.errors import BadInput, CompressError, MissingEnvironment, WrongUsage
from compressor.method import make, method_named, options_of, summaries

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data import Images
    from compressor.pipeline import Progress

ACCURACY_SAMPLES = 1000
PROOF_SAMPLES = 64
SYNTHETIC = "Scored on synthetic noise, for no data was given: name real data with --data."


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


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that runs a network."""
    for decorate in (
        click.option("--quiet", is_flag=True, help="print nothing but errors"),
        click.option("--json", "as_json", is_flag=True, help="print the report as JSON on stdout"),
        click.option("--seed", default=0, show_default=True, help="of all random draws"),
        click.option("--threads", type=click.IntRange(1), help="threads of torch; all cores by default"),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda"),
        click.option("--data", metavar="DATA", help="folder of images or parquet files, or `digits`"),
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
@click.option("--seed", default=0, show_default=True, help="of the initialisation")
def new(
    name: str, output: Path, image_size: int | None, in_channels: int | None, classes: int | None, data: str, seed: int
) -> None:
    """Make a fresh network of the papers, initialised as they do."""
    from compressor import networks
    from compressor.checkpoint import SUFFIXES, save
    from compressor.data import open_data
    from compressor.files import check_target
    from compressor.state import origin_of

    check_target(output, SUFFIXES)
    images = open_data(data)
    if classes is not None and classes < images.classes:
        raise WrongUsage(f"--classes {classes}: {data} has {images.classes} classes; leave --classes out or raise it")
    remembered: str | None = data if data == "digits" else str(Path(data).resolve())
    if (in_channels or networks.default_input(name)[0]) not in (1, 3):
        remembered = None  # images cannot be converted to such an input
    model = networks.build(
        name, in_channels=in_channels, classes=classes or images.classes, image_size=image_size, seed=seed, data=remembered
    )
    save(model, output)
    origin = origin_of(model)
    assert origin is not None
    parameters = sum(p.numel() for p in model.parameters())
    shape = networks.size_text(origin.input_shape)
    click.echo(f"{output}: {name}, {parameters:,} parameters, input {shape}, data {remembered or 'none'}")


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--tolerance", type=click.FloatRange(0), help="allowed difference, as a fraction of the output's range")
@click.option("--samples", default=PROOF_SAMPLES, show_default=True, type=click.IntRange(1), help="inputs compared")
@_shared_options
def verify(
    a: Path, b: Path, tolerance: float | None, samples: int, data: str | None, device: str, threads: int | None, seed: int,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Check that two networks compute the same: exit 0 if so, 1 if not."""
    from benchmarks.report import SCHEMA, proof_line
    from compressor.environment import environment
    from exporters.equivalence import check_equivalence

    _prepare(device, threads)
    inputs, remarks = _inputs_for(a, b, data, samples, seed)
    proof = check_equivalence(a, b, inputs, tolerance=tolerance, provider="cuda" if device.startswith("cuda") else "cpu")
    if as_json:
        _print_json({"schema": SCHEMA, **proof.as_dict(), "notes": remarks, "environment": environment(device), "seed": seed})
    elif not quiet:
        click.echo(proof_line(proof.as_dict()))
        for remark in remarks:
            click.echo(remark)
    if not proof:
        raise click.exceptions.Exit(1)


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
@click.option("--sparsity", required=True, type=float, help="fraction of the nodes removed, in [0, 1)")
@click.option(
    "-o", "--output", "outputs", required=True, multiple=True, type=click.Path(path_type=Path),
    help=".onnx, .safetensors or .pt; may be repeated",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="write the report as JSON")
@click.option("--loss", default="cross-entropy", show_default=True, help="cross-entropy or nll-logits")
@click.option("--samples", default=2560, show_default=True, type=click.IntRange(1), help="scored at each event")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="samples of a micro-batch")
@click.option("--floor", default=1, show_default=True, type=click.IntRange(1), help="nodes that every group keeps")
@click.option("--calibrate-bn", is_flag=True, help="first give batch norms the statistics of the data")
@_shared_options
def _prune_parameters() -> None:
    """Carries the options that all methods share."""


_PRUNE_OPTIONS: list[click.Parameter] = list(reversed(_prune_parameters.__click_params__))  # type: ignore[attr-defined]


def _prune(
    name: str, options: dict[str, Any], *, model: Path, sparsity: float, outputs: tuple[Path, ...], report: Path | None,
    loss: str, samples: int, batch_size: int, floor: int, calibrate_bn: bool, data: str | None, device: str,
    threads: int | None, seed: int, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Check everything that can be checked, then load, prune, export and report."""
    from compressor.select import check_sparsity

    check_sparsity(sparsity)
    make(name, options)
    _check_targets(model, outputs, report)
    _prepare(device, threads)

    import exporters
    from benchmarks.report import make_document, show
    from compressor.checkpoint import load
    from compressor.data import Samples
    from compressor.objective import accuracy, loss_named
    from compressor.pipeline import compress
    from compressor.state import origin_of

    loss_named(loss)
    dense = load(model).to(device)
    origin = origin_of(dense)
    assert origin is not None
    images, data_name = _images(data, origin.data)
    batches, remarks = _batches(images, origin, samples, batch_size, seed)
    with _progress(quiet) as progress:
        result = compress(
            dense, name, batches, sparsity, loss=loss, floor=floor, seed=seed, calibrate_bn=calibrate_bn, progress=progress,
            **options,
        )  # fmt: skip
        progress("exporting and proving", 0, 0)
        inputs = _proof_inputs(images, origin.input_shape, PROOF_SAMPLES, seed)
        providers = ("cpu", "cuda") if device.startswith("cuda") else ("cpu",)
        proofs = exporters.export(result.model, *outputs, example_inputs=inputs, providers=providers)
        accuracies = None
        if images is not None:
            progress("accuracy", 0, 0)
            test = Samples(images.test, origin.input_shape, ACCURACY_SAMPLES, batch_size, seed)
            accuracies = [accuracy(m, Samples(test.split, test.input_shape, test.count, batch_size, seed), device)
                          for m in (dense, result.model)]  # fmt: skip
    document = make_document(result, proofs, accuracies, (model, *outputs), data_name, remarks, device, seed)
    if report is not None:
        _write_text(report, json.dumps(document, indent=1))
    if as_json:
        _print_json(document)
    elif not quiet:
        show(document)


def _check_targets(model: Path, outputs: tuple[Path, ...], report: Path | None) -> None:
    from compressor.files import check_target
    from exporters import SUFFIXES

    for target in outputs:
        check_target(target, SUFFIXES)
    if report is not None:
        check_target(report, (".json",))
    written = [*outputs, *([report] if report else [])]
    if len({p.resolve() for p in (model, *written)}) <= len(written):
        raise WrongUsage("the model, the outputs and the report must be different files")


def _prepare(device: str, threads: int | None) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingEnvironment("no CUDA device here; use --device cpu")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise WrongUsage(f"--device {device}: choose cpu or cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # its 10 bits would drown a proof
    if threads:
        torch.set_num_threads(threads)


def _images(named: str | None, remembered: str | None) -> tuple[Images | None, str]:
    """The data set: the one that was named, else the one that the checkpoint remembers, else none."""
    from compressor.data import open_data

    name = named or remembered
    if name is None or name == "synthetic":
        return None, "synthetic"
    try:
        return open_data(name), name
    except BadInput as error:
        raise error if named else BadInput(f"{error} (remembered by the checkpoint; name another with --data)") from error


def _batches(images: Images | None, origin: Any, samples: int, batch_size: int, seed: int) -> tuple[Any, list[str]]:
    from compressor.data import Samples, Synthetic

    classes = origin.arguments["classes"]
    if images is None:
        return Synthetic(origin.input_shape, classes, samples, batch_size, seed), [SYNTHETIC]
    if images.classes > classes:
        raise BadInput(f"data {images.name} has {images.classes} classes, the network {classes} outputs; use other data")
    batches = Samples(images.train, origin.input_shape, samples, batch_size, seed)
    remarks = []
    if batches.size < samples:
        remarks.append(f"Scored on {batches.size:,} samples instead of {samples:,}: {images.name} has no more.")
    if images.native != tuple(origin.input_shape):
        shapes = ["x".join(map(str, s)) for s in (images.native, origin.input_shape)]
        remarks.append(f"Images of {shapes[0]} were converted to the network's input of {shapes[1]}.")
    return batches, remarks


def _proof_inputs(images: Images | None, shape: tuple[int, ...], samples: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs to compare networks on: real samples where there are some."""
    import torch

    from compressor.data import Samples

    if images is None:
        return (torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed)),)
    return (next(iter(Samples(images.test, shape, samples, samples, seed)))[0],)


def _inputs_for(a: Path, b: Path, data: str | None, samples: int, seed: int) -> tuple[tuple[Tensor, ...], list[str]]:
    """Inputs for `verify`: from --data, else the data set that one of the networks remembers, else noise."""
    from compressor.checkpoint import SUFFIXES, load
    from compressor.state import origin_of

    shape: tuple[int, ...] | None = None
    remembered = None
    for path in (a, b):
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        origin = origin_of(load(path)) if path.suffix in SUFFIXES else None
        if origin is not None:
            shape, remembered = shape or origin.input_shape, remembered or origin.data
    if shape is None:
        from exporters.onnx import input_shape

        shape = input_shape(a if a.suffix == ".onnx" else b)
    if 0 in shape:
        raise BadInput(f"{a}: its input shape {shape} is open; verify it beside a checkpoint that knows its shape")
    images, name = _images(data, remembered)
    remarks = [f"Compared on {samples} samples of {name}."] if images else [f"Compared on {samples} samples of noise."]
    return _proof_inputs(images, shape, samples, seed), remarks


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=1))


def _write_text(path: Path, text: str) -> None:
    from compressor.files import staged

    with staged(path) as [temporary]:
        temporary.write_text(text + "\n", encoding="utf-8")


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


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)  # unwinds, so that temporary files are removed


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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    click.echo(f"compress: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
