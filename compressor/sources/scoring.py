"""What a network is scored on: named data, the data that its checkpoint remembers, or noise; and inputs to prove it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from compressor.data import Arrays, Batches, Images, Preprocessing, Samples, Split, epoch_of, length_of, open_data
from compressor.errors import BadInput, first_line
from compressor.model.inputs import Inputs, as_inputs, each, several, suited, tensors
from compressor.model.observe import outputs_of
from compressor.model.origin import origin_of
from compressor.objective.batches import Batch, inputs_of, size_of
from compressor.options import spelled
from compressor.sources.noise import PROOF_SAMPLES, Noise, example_of, known_inputs, noise_remark, vocabulary_of
from compressor.system.user_code import is_named
from compressor.types.origin import Origin

TEST_SAMPLES = 1000


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
        raise BadInput(f"its data is made by code; if you trust it, name it: {spelled('data', origin.data)}")
    if name in (None, "synthetic"):
        return _noise(model, known_inputs(origin), loss, count, batch_size, seed, few)
    try:
        data = open_data(name, fetch=named is not None)  # a file says nothing that makes this machine call others
    except BadInput as error:
        raise (
            error if named else BadInput(f"{error} (remembered by the checkpoint; name another with {spelled('data')})")
        ) from error
    if isinstance(data, Images):
        source = _of_images(model, data, known_inputs(origin), count, batch_size, seed, few)
    elif isinstance(data, Batches):
        source = _of_batches(model, data, count)
    else:
        source = _of_arrays(model, data, count, batch_size, seed, few)
    return replace(source, opened=data)


def _of_images(model: nn.Module, images: Images, origin: Origin, count: int, batch_size: int, seed: int, few: int) -> Source:
    shape = origin.input_shape
    if len(origin.inputs) > 1:
        raise BadInput(
            f"data {images.name} are images, the network takes {len(origin.inputs)} inputs; give "
            f"{spelled('data', 'file.py:factory')}"
        )
    preprocessing = Preprocessing.from_dict(origin.preprocessing) if origin.preprocessing else Preprocessing()

    def draw(split: Split, samples: int, size: int, seed: int) -> Samples:
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
    test = draw(images.test, TEST_SAMPLES, batch_size, seed)
    return Source(images.name, _named(batches, origin), _named(test, origin), inputs, tuple(remarks))


def _of_arrays(model: nn.Module, arrays: Arrays, count: int, batch_size: int, seed: int, few: int) -> Source:
    batches = arrays.batches("train", count, batch_size, seed)
    inputs = inputs_of(next(iter(arrays.batches("test", few, few, seed))))
    _outputs(model, inputs)
    test = arrays.batches("test", TEST_SAMPLES, batch_size, seed)
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
        raise BadInput(f"a loss of your own needs data with its targets: {spelled('data', 'file.py:factory')}")
    outputs = _outputs(model, several(inputs)).shape[1:]
    if not outputs and loss not in ("mse", "bce"):
        raise BadInput(f"the network answers one number, {loss} needs outputs (batch, classes); choose mse or bce")
    batches = Noise(origin.inputs, vocabulary_of(model), outputs, loss, count, batch_size, seed)
    return Source("synthetic", batches, None, inputs, (noise_remark(),))


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


@dataclass(frozen=True)
class _Named:
    """Batches whose input goes to the argument that the user named."""

    source: Iterable[Batch]
    name: str

    def __len__(self) -> int:
        return length_of(self.source) or 0

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0."""
        return (({self.name: x}, *rest) for x, *rest in epoch_of(self.source, number))


def _named(batches: Iterable[Batch], origin: Origin) -> Iterable[Batch]:
    """Batches whose input goes to the argument that the user named, if one did."""
    name = origin.inputs[0].name
    return batches if name is None else _Named(batches, name)


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
            f"the network does not run in eval mode on inputs {shapes}: {first_line(error)}; give other data or "
            f"{spelled('inputs')}"
        ) from error
    if not found:
        raise BadInput("the network returns no tensor; wrap it in one that does")
    return found[0]


def _fewer(size: int, count: int, name: str) -> list[str]:
    return [f"Scored on {size:,} samples instead of {count:,}: {name} has no more."] if size < count else []
