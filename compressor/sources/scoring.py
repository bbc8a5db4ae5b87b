"""What a network is scored on: named data, the data that its checkpoint remembers, or noise; and inputs to prove it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor import networks
from compressor.data import Arrays, Batches, Images, Preprocessing, Samples, open_data
from compressor.errors import BadInput, WrongUsage, first_line
from compressor.inputs import Inputs, as_inputs, each, several, suited, tensors
from compressor.named import LIBRARIES, is_named
from compressor.objective import Batch, inputs_of, size_of
from compressor.state import origin_of, outputs_of
from compressor.types import InputSpec, Origin

NOISE = "No data was given, so synthetic noise was used: name real data with --data."
TEST_SAMPLES = 1000
PROOF_SAMPLES = 64


@dataclass(frozen=True)
class Source:
    """Data, ready for one network.

    Attributes:
        name: as the user gave it, or `synthetic`.
        train: batches for scoring.
        test: batches for accuracy and loss, read from the start at each use; None for noise.
        inputs: up to 64 samples to trace and prove with.
        remarks: sentences for the reader.
        opened: what the batches come from; None for noise.
    """

    name: str
    train: Iterable[Batch]
    test: Iterable[Batch] | None
    inputs: Inputs
    remarks: tuple[str, ...] = ()
    opened: Images | Arrays | Batches | None = None


def source_for(
    model: nn.Module, named: str | None, *, loss: str = "cross-entropy", count: int = 2560, batch_size: int = 64, seed: int = 0,
    proof_samples: int = PROOF_SAMPLES,
) -> Source:  # fmt: skip
    """Open the data for a loaded network: `named`, else what its checkpoint remembers, else noise.

    Raises:
        BadInput: the data cannot be used, does not fit the network, or the network's input shape is not known.
    """
    origin = origin_of(model) or Origin(None, {})
    source = _opened(model, origin, named, loss, count, batch_size, seed, proof_samples)
    return replace(source, remarks=(*origin.notes, *source.remarks))


def _opened(
    model: nn.Module, origin: Origin, named: str | None, loss: str, count: int, batch_size: int, seed: int, few: int
) -> Source:
    name = named or origin.data
    if named is None and origin.data is not None and is_named(origin.data):
        raise BadInput(f"its data is made by code; if you trust it, name it: --data {origin.data}")
    if name in (None, "synthetic"):
        return _noise(model, _known(origin), loss, count, batch_size, seed, few)
    try:
        data = open_data(name)
    except BadInput as error:
        raise error if named else BadInput(f"{error} (remembered by the checkpoint; name another with --data)") from error
    if isinstance(data, Images):
        source = _of_images(model, data, _known(origin), count, batch_size, seed, few)
    elif isinstance(data, Batches):
        source = _of_batches(model, data, count)
    else:
        source = _of_arrays(model, data, count, batch_size, seed, few)
    return replace(source, opened=data)


def noise_like(specs: tuple[InputSpec, ...], samples: int, generator: torch.Generator, highest: int = 2) -> Inputs:
    """Random inputs: normal floats, integers below `highest`."""
    try:
        parts = [_random(spec, samples, generator, highest) for spec in specs]
    except (RuntimeError, MemoryError, OverflowError) as error:
        text = ", ".join(map(str, specs))
        raise BadInput(f"an input of {text} for {samples} samples does not fit in memory ({first_line(error)})") from error
    if all(spec.name for spec in specs):
        return {str(spec.name): part for spec, part in zip(specs, parts, strict=True)}
    return tuple(parts)


def fresh_network(
    name: str, data: str, *, in_channels: int | None = None, classes: int | None = None, image_size: int | None = None,
    seed: int = 0, remembered: str | None = None, arguments: Mapping[str, Any] | None = None, inputs: Sequence[InputSpec] = (),
) -> nn.Module:  # fmt: skip
    """A fresh network for some data.

    Args:
        name: of one of ours, or a builder elsewhere: `torchvision:resnet18`, `timm:...`, `file.py:factory`.
        in_channels: the paper's by default, but three where the images are in colour.
        classes: as many as the data has by default, or 10.
        image_size: height and width; the paper's by default.
        remembered: the data that the network is to remember, see `Origin`.
        arguments: of a builder elsewhere.
        inputs: what a network of a builder elsewhere takes; the data as they are by default.
    Raises:
        WrongUsage: no such network, or fewer classes than the data has.
    """
    opened = open_data(data)
    has = getattr(opened, "classes", None)
    if classes is not None and has is not None and classes < has:
        raise WrongUsage(f"--classes {classes}: {data} has {has} classes; leave --classes out or raise it")
    if networks.is_builder(name):
        given, shape = dict(arguments or {}), _shape_of(opened, name, in_channels, image_size)
        if name.partition(":")[0] in LIBRARIES:
            given.setdefault("num_classes", classes or has or 10)
        elif classes is not None:
            raise WrongUsage("--classes: a builder of your own knows its classes; give what it takes with --network-arg")
        return networks.built(name, given, inputs or ((InputSpec(shape),) if shape else ()), seed, remembered)
    if in_channels is None and isinstance(opened, Images):
        in_channels = max(opened.native[0], networks.default_input(name)[0])
    return networks.build(
        name, in_channels=in_channels, classes=classes or has or 10, image_size=image_size, seed=seed, data=remembered
    )


def _shape_of(data: Images | Arrays | Batches, name: str, channels: int | None, size: int | None) -> tuple[int, ...] | None:
    """What one sample of the data is for a network of a builder elsewhere; None where only the data's code knows."""
    if isinstance(data, Arrays):
        return data.input_shape
    if not isinstance(data, Images):
        return None
    native = data.native
    colour = name.partition(":")[0] in LIBRARIES  # their networks take colour
    return channels or (3 if colour else native[0]), size or native[1], size or native[2]


def example_of(model: nn.Module, samples: int = PROOF_SAMPLES, seed: int = 0) -> Inputs:
    """Noise that fits a loaded network's inputs.

    Raises:
        BadInput: they are not known.
    """
    specs = _known(origin_of(model) or Origin(None, {})).inputs
    return noise_like(specs, samples, torch.Generator().manual_seed(seed), _vocabulary(model))


def _known(origin: Origin) -> Origin:
    if not origin.inputs:
        raise BadInput(
            "the network's input shape is not known; add --input 3x224x224 (channels, height, width, without the batch)"
        )
    if len({bool(spec.name) for spec in origin.inputs}) > 1:
        raise WrongUsage("--input: name all inputs or none")
    names = [spec.name for spec in origin.inputs if spec.name]
    if len(set(names)) < len(names):
        raise WrongUsage(f"--input: {max(names, key=names.count)} is named twice")
    return origin


def _of_images(model: nn.Module, images: Images, origin: Origin, count: int, batch_size: int, seed: int, few: int) -> Source:
    shape = origin.input_shape
    if len(origin.inputs) > 1:
        raise BadInput(
            f"data {images.name} are images, the network takes {len(origin.inputs)} inputs; give --data file.py:factory"
        )
    preprocessing = Preprocessing.from_dict(origin.preprocessing) if origin.preprocessing else Preprocessing()

    def draw(split, samples: int, size: int, seed: int) -> Samples:
        return Samples(split, shape, samples, size, seed, preprocessing)

    batches = draw(images.train, count, batch_size, seed)
    inputs = inputs_of(next(iter(draw(images.test, few, few, seed))))
    if origin.inputs[0].name:
        inputs = {str(origin.inputs[0].name): tensors(inputs)[0]}
    outputs = _outputs(model, inputs)
    if outputs.dim() == 2 and outputs.shape[1] < images.classes:
        raise BadInput(
            f"data {images.name} has {images.classes} classes, the network {outputs.shape[1]} outputs; use other data"
        )
    remarks = _fewer(batches.size, count, images.name)
    if images.native != tuple(shape):
        shapes = ["x".join(map(str, s)) for s in (images.native, shape)]
        remarks.append(f"Images of {shapes[0]} were converted to the network's input of {shapes[1]}.")
    if outputs.dim() == 2 and outputs.shape[1] > images.classes:
        remarks.append(
            f"The network has {outputs.shape[1]} outputs, the data {images.classes} classes: they are the first ones, in the "
            "order of the classes' names."
        )
    if origin.preprocessing:
        remarks.append(f"Images were normalised with {preprocessing.said()}.")
    test = _Afresh(lambda: draw(images.test, TEST_SAMPLES, batch_size, seed))
    return Source(images.name, _named(batches, origin), _named(test, origin), inputs, tuple(remarks))


def _of_arrays(model: nn.Module, arrays: Arrays, count: int, batch_size: int, seed: int, few: int) -> Source:
    batches = arrays.batches("train", count, batch_size, seed)
    inputs = inputs_of(next(iter(arrays.batches("test", few, few, seed))))
    _outputs(model, inputs)
    test = _Afresh(lambda: arrays.batches("test", TEST_SAMPLES, batch_size, seed))
    return Source(arrays.name, batches, test, inputs, tuple(_fewer(batches.size, count, arrays.name)))


def _of_batches(model: nn.Module, data: Batches, count: int) -> Source:
    """Batches of the user's own, which may never end; an iterator is kept, so that the first batch can be looked at."""
    train = _limited(data.train, count)
    test = None if data.test is None else _limited(data.test, max(TEST_SAMPLES, count))
    first = next(iter(train), None)
    if first is None or size_of(first) == 0:
        raise BadInput(f"data {data.name}: yields no batch, or an empty one first")
    inputs = each(inputs_of(first), lambda x: x[:PROOF_SAMPLES])
    _outputs(model, inputs)
    return Source(data.name, train, test, inputs)


def _limited(batches: Iterable[Batch], count: int) -> Iterable[Batch]:
    """As many whole batches as hold `count` samples."""

    def taken() -> Iterator[Batch]:
        left = count
        for batch in batches:
            yield batch
            left -= size_of(batch)
            if left <= 0:
                return

    return list(taken()) if isinstance(batches, Iterator) else _Afresh(taken, batches)


def _noise(model: nn.Module, origin: Origin, loss: str, count: int, batch_size: int, seed: int, few: int) -> Source:
    inputs = example_of(model, few, seed)
    if ":" in loss:
        raise BadInput("a loss of your own needs data with its targets: --data file.py:factory")
    outputs = _outputs(model, several(inputs)).shape[1:]
    if not outputs and loss not in ("mse", "bce"):
        raise BadInput(f"the network answers one number, {loss} needs outputs (batch, classes); choose --loss mse or bce")
    batches = Noise(origin.inputs, _vocabulary(model), outputs, loss, count, batch_size, seed)
    return Source("synthetic", batches, None, inputs, (NOISE,))


@dataclass
class Noise:
    """Batches of noise with random targets that fit a loss, for networks without data. What it says of accuracy is nothing.

    Attributes:
        specs: the network's inputs.
        vocabulary: integers are below it.
        outputs: shape of the network's output for one sample.
        loss: name of the loss that the targets are for.
        count: samples of one iteration, in batches of `batch_size`.
    """

    specs: tuple[InputSpec, ...]
    vocabulary: int
    outputs: tuple[int, ...]
    loss: str
    count: int
    batch_size: int
    seed: int = 0
    _iterations: int = field(default=0, init=False)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._iterations)
        self._iterations += 1
        for start in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - start)
            inputs = noise_like(self.specs, size, generator, self.vocabulary)
            yield inputs, self._targets(size, generator)

    def _targets(self, size: int, generator: torch.Generator) -> Tensor:
        if self.loss == "mse":
            return torch.randn(size, *self.outputs, generator=generator)
        if self.loss == "bce":
            return torch.randint(2, (size, *self.outputs), generator=generator).float()
        return torch.randint(self.outputs[0], (size, *self.outputs[1:]), generator=generator)


@dataclass(frozen=True)
class _Afresh:
    """The same batches at each iteration, whatever was drawn before.

    Attributes:
        source: what they come from, if that is of the user's own.
    """

    make: Callable[[], Iterable[Batch]]
    source: Iterable[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())


def _named(batches: Iterable[Batch], origin: Origin) -> Iterable[Batch]:
    """Batches whose input goes to the argument that the user named."""
    name = origin.inputs[0].name
    return batches if name is None else _Afresh(lambda: (({name: x}, *rest) for x, *rest in batches))


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    """The network's first output on a few inputs.

    Raises:
        BadInput: it does not run on them in eval mode.
    """
    few = suited(model, several(as_inputs(inputs)))
    try:
        found = outputs_of(model, few)
    except Exception as error:  # whatever the network's own code raises
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors(few))
        raise BadInput(
            f"the network does not run in eval mode on inputs {shapes}: {first_line(error)}; give other data or --input"
        ) from error
    if not found:
        raise BadInput("the network returns no tensor; wrap it in one that does")
    return found[0]


def _fewer(size: int, count: int, name: str) -> list[str]:
    return [f"Scored on {size:,} samples instead of {count:,}: {name} has no more."] if size < count else []


def _vocabulary(model: nn.Module) -> int:
    """What integers must stay below, for the smallest embedding has so many rows."""
    return min((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=2)


def _random(spec: InputSpec, samples: int, generator: torch.Generator, highest: int) -> Tensor:
    shape, dtype = (samples, *spec.shape), getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(2 if dtype == torch.bool else highest, shape, generator=generator).to(dtype)
