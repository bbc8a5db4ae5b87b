"""Saving and loading networks, without ever running code from a file.

Two formats of our own hold the same: `.safetensors` (tensors, and everything else as JSON in the header) and `.pt` (a dict that
`torch.load(weights_only=True)` reads). The network's builder is named, and its pruned widths follow from the tensors' shapes.
Where single weights were removed, the file also holds a mask for each weight, its bits packed into bytes: in `.safetensors` as
tensors named `compressor.masks/` and the weight's name, which are not the network's; in `.pt` as the entry `masks`.
Files that others made are read too: state dicts, wherever they lie in the file, and networks that were pickled as a whole.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressor import networks
from compressor.checkpoint import unpickle
from compressor.checkpoint.state_dicts import Reading, are_tensors, check_stored, readings, tensors_of
from compressor.data import Preprocessing
from compressor.errors import BadInput, WrongUsage, first_line
from compressor.model.origin import origin_of, set_origin
from compressor.options import spelled
from compressor.surgery.shrink import is_depthwise, refit, remember
from compressor.system.files import CHECKPOINTS, check_name, check_target, parsed, staged
from compressor.types.origin import InputSpec, Origin
from compressor.types.plan import Plan

KEY = "compressor"
SCHEMA = 1
MASKS = "compressor.masks/"
"""How the names of masks begin, by which they are told from the network's tensors in a `.safetensors`."""
SPARE = 100
"""Parameters that a builder may make beside twice those that a file has."""
LONGEST_HEADER, LONGEST_ROW = 20_000_000, 200
"""Bytes of a whole header of a `.safetensors`, reading which takes ten times as many, and of a tensor's row in it."""


def save(model: nn.Module, path: str | Path, *, network: str | None = None, arguments: Mapping[str, Any] | None = None) -> None:
    """Write a network to `.pt` or `.safetensors`; one without a named builder is pickled as a whole, to `.pt` only.

    Args:
        network: builder of the network that `model` is, or was pruned from, such as `mynet.py:make`, where `model` does not
            say so itself; it is remembered as `model.origin`, and `load(path, network=...)` takes it, too.
        arguments: of that builder.
    Raises:
        BadInput: the network has no named builder and is not made of known classes alone, the folder cannot be written, or the
            header of a `.safetensors` would be too long.
        WrongUsage: another suffix, or a builder that cannot be called or makes another network.
    """
    path = Path(path)
    check_target(path, CHECKPOINTS)
    if network is not None:
        _name_builder(model, network, arguments)
    elif arguments:
        raise WrongUsage("arguments are for the builder that network= names; name it, or leave them out")
    with staged(path) as [temporary]:
        write(model, temporary, ', or name what builds it: save(model, path, network="mynet.py:make")')


def _name_builder(model: nn.Module, network: str, arguments: Mapping[str, Any] | None) -> None:
    """Let a network remember, in place, what builds it, if that gives its tensors or wider ones."""
    origin = origin_of(model) or Origin(None, {})
    is_other = origin.network not in (None, network)
    if is_other and not (networks.is_code(str(origin.network)) and networks.is_code(network)):
        raise WrongUsage(f"the network is {origin.network}, not {network}; leave network= out")
    given = dict(origin.arguments if arguments is None else arguments)
    full, known = networks.unfilled(network, given)
    try:
        _check_state(full, model.state_dict(), f"{network} builds another network")
    except BadInput as error:
        raise WrongUsage(str(error)) from error
    set_origin(model, replace(origin, network=network, arguments=given, inputs=origin.inputs or known.inputs))


def write(model: nn.Module, path: Path, advice: str = "") -> None:
    """Write to exactly this file; `save` adds the checks and the rename.

    Args:
        advice: what else could be done where the network cannot be written; the end of the message.
    """
    origin = origin_of(model) or Origin(None, {})
    header = json.dumps(_as_json(origin))
    masks = {name: mask.packed() for name, mask in origin.plan.masks.items()} if origin.plan else {}
    more = {"masks": masks} if masks else {}
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if origin.network is None:
        _write_whole(model, {KEY: header, **more}, path, advice)
    elif path.suffix == ".safetensors":
        if reserved := [name for name in state if name.startswith(MASKS)]:
            raise BadInput(f"{reserved[0]}: such names are for masks in {path.suffix}; rename it, or write .pt")
        _write_safetensors(_unshared(state) | {f"{MASKS}{name}": mask for name, mask in masks.items()}, header, path)
    else:
        torch.save({KEY: header, "state_dict": state, **more}, path)


def _write_safetensors(tensors: dict[str, Tensor], header: str, path: Path) -> None:
    """Write tensors and our header, unless the library could not read the file back."""
    size = len(json.dumps({KEY: header})) + sum(len(json.dumps(name)) + LONGEST_ROW for name in tensors)
    if size > LONGEST_HEADER:
        raise BadInput(
            f"{path.suffix}: a header of {size:,} bytes, more than the {LONGEST_HEADER:,} that are read; "
            "write .pt, which has no such limit"
        )
    safetensors.torch.save_file(tensors, path, metadata={KEY: header})


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory (tied weights), each with its own: the format knows no sharing."""
    first = {t.data_ptr(): name for name, t in reversed(state.items())}
    return {name: t if first[t.data_ptr()] == name else t.clone() for name, t in state.items()}


def _write_whole(model: nn.Module, beside: dict[str, Any], path: Path, advice: str) -> None:
    """A network without a named builder, pickled as it is, if this tool could read it back."""
    elsewhere = f"write .pt2 (runs without this package) or .onnx instead{advice}"
    if path.suffix == ".safetensors":
        raise BadInput(f"{path.suffix} needs a network with a named builder ({spelled('network')}); {elsewhere}")
    bare = copy.copy(model)
    bare.__dict__ = {name: value for name, value in model.__dict__.items() if name != "origin"}
    try:
        torch.save({**beside, "model": bare}, path)
        unpickle.read(path)
    except (BadInput, pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadInput(f"{path.suffix}: the network is not made of known classes alone; {elsewhere}") from error


@dataclass(frozen=True)
class _Content:
    """What a file holds: our header or none, a state dict or a whole network, and the masks of its plan."""

    header: str | None
    state: dict[str, Tensor]
    module: nn.Module | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)


def load(
    path: str | Path,
    *,
    network: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    inputs: Sequence[InputSpec] = (),
    key: str | None = None,
    trust_pickle: bool = False,
) -> nn.Module:
    """Bring a network back, in train mode as any new module, in its own precision; its `.origin` says where it comes from.

    Args:
        path: a checkpoint of ours (nothing else is needed then), a state dict, bare or inside a dict, or a network pickled
            as a whole; `.safetensors`, or any other suffix for what `torch.save` wrote; or the folder of a state dict over
            several files, with their list (`*.safetensors.index.json`).
        network: builder of a state dict's network: one of `compressor.networks`, `torchvision:resnet50`, `timm:...`,
            `package.module:factory` or `file.py:factory`; not needed where it is one of ours.
        arguments: of the builder.
        inputs: what the network takes, where the file does not say.
        key: entry of the file that holds the weights; `state_dict`, `model` or `ema` are found without.
        trust_pickle: run whatever code the file names. Never for a file from elsewhere.
    Raises:
        BadInput: no such file, damaged, a state dict that does not fit, or a pickle that names code (which is never run).
        WrongUsage: no such builder, or none was named and the state dict is none of ours.
    """
    path = Path(path)
    check_name(path)
    if path.is_dir():
        index = _index_of(path)
    elif not path.is_file():
        fresh = f"; `compress new {path} -o {path}.pt` makes a fresh one" if str(path) in networks.names() else ""
        raise BadInput(f"{path}: no such file{fresh}")
    elif path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty")
    content = _read_shards(index, trust_pickle) if path.is_dir() else _read_one(path, key, trust_pickle)
    if content.header is not None and (arguments or key):
        raise WrongUsage(
            f"{path}: a checkpoint of this tool, which needs neither {spelled('arguments')} nor "
            f"{spelled('key')}; leave them out"
        )
    if content.module is not None and content.header is None and network is not None:
        raise WrongUsage(f"{path}: holds a whole network; leave {spelled('network')} out")
    if arguments and network is None:
        raise WrongUsage(f"{spelled('arguments')} is for the builder that {spelled('network')} names; name it, or leave it out")
    if content.header is not None:
        model, origin = _ours(content, path, network)
    elif content.module is not None:
        model, origin = content.module, Origin(None, {}, networks.inputs_of(content.module))
    else:
        model, origin = _foreign(content, path, network, dict(arguments or {}))
    set_origin(model, replace(origin, inputs=tuple(inputs) or origin.inputs))
    return model.train()


def _read_one(path: Path, key: str | None, trust: bool) -> _Content:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _found_in(unpickle.read(path, trust=trust), path, key)


INDEX = (".safetensors.index.json", ".bin.index.json")
"""How the list of the files ends over which large state dicts are spread."""


def _index_of(folder: Path) -> Path:
    """The list of a folder's files.

    Raises:
        BadInput: there is none, or several.
    """
    found = sorted(file for ending in INDEX for file in folder.glob(f"*{ending}"))
    if len(found) != 1:
        which = "name the file in it" if not found else f"it has {len(found)} lists of files ({found[0].name}, ...)"
        raise BadInput(f"{folder}: is a folder; {which}")
    return found[0]


def _read_shards(index: Path, trust: bool) -> _Content:
    """A state dict that is spread over files: only such as lie beside their list are read."""
    listed = parsed(index, json.loads)
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) and Path(file).name == file for file in places.values()):
        raise BadInput(f"{index}: damaged (no weight_map to files beside it)")
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if not (shard := index.parent / file).is_file():
            raise BadInput(f"{index}: names {file}, which is not there; copy the whole folder")
        state |= _read_one(shard, None, trust).state
    if lost := sorted(set(places) - set(state)):
        raise BadInput(f"{index}: names {lost[0]}, which is in none of the files")
    return _Content(None, state)


def _ours(content: _Content, path: Path, network: str | None) -> tuple[nn.Module, Origin]:
    """A checkpoint of ours: its header names the builder; code of the user's own is run only if the user names it too."""
    assert content.header is not None
    try:
        raw = json.loads(content.header)
        if raw["schema"] > SCHEMA:
            raise BadInput(f"{path}: made by a newer version (schema {raw['schema']}); update compressor")
        named = _from_json(raw, content.masks)
        if network and named.network and networks.is_code(named.network) and networks.is_code(network):
            named = replace(named, network=network)  # the same code may lie elsewhere now; its tensors must fit
        if network not in (None, named.network):
            raise WrongUsage(f"{path}: its network is {named.network}, not {network}; leave {spelled('network')} out")
        if named.network is None:
            if content.module is None:
                raise BadInput(f"{path}: damaged checkpoint (neither builder nor network)")
            return content.module, named
        if networks.is_code(named.network) and network is None:
            raise BadInput(
                f"{path}: its network is built by code; if you trust it, name it: {spelled('network', named.network)}"
            )
        _check_described(named, content.state, path)
        model, fresh = networks.unfilled(named.network, named.arguments)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: its header is damaged ({first_line(error)})") from error
    except (WrongUsage, BadInput) as error:
        raise error if str(path) in str(error) else BadInput(f"{path}: {error}") from error
    _fill(model, content.state, path)
    try:
        for name, number in named.sizes.items():
            remember(model, name, number)
    except AttributeError as error:
        raise BadInput(f"{path}: its header is damaged ({first_line(error)})") from error
    return model, replace(named, inputs=named.inputs or fresh.inputs)


def _check_described(named: Origin, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a header that describes another library's network with other tensors, before that takes memory."""
    if named.network is None or not networks.is_builder(named.network) or networks.is_code(named.network):
        return
    described = networks.hollow(named.network, named.arguments, 2 * len(state) + SPARE)  # some are made and thrown away
    if described is not None:
        _check_state(described, state, path)


def _foreign(content: _Content, path: Path, network: str | None, arguments: dict[str, Any]) -> tuple[nn.Module, Origin]:
    """A state dict of others: its network was named, or is recognised by its tensors."""
    if network is None:
        for reading in readings(content.state):
            for name, found in networks.recognised(reading.tensors):
                if all(tensor.partition(".")[0].isdigit() for tensor in reading.tensors):
                    raise BadInput(
                        f"{path}: its tensors would fit {name}, but their names say nothing of what lies between them; "
                        f"if it is that, {spelled('network', name)}, else {spelled('network', 'file.py:factory')}"
                    )
                model, origin = networks.unfilled(name, found)
                _fill(model, reading.tensors, path)
                takes = networks.size_text(origin.input_shape)
                note = (
                    f"Recognised by its tensors as {name}, input {takes}; where that is wrong, {spelled('network')} names "
                    "another."
                )
                return model, replace(origin, notes=(note, *reading.notes))
        raise BadInput(
            f"{path}: a state dict of {len(content.state)} tensors, which does not say of which network; name its builder: "
            f"{spelled('network')} vgg16, torchvision:resnet50, timm:resnet50 or file.py:factory"
        )
    model, origin = networks.unfilled(network, arguments)
    expected = model.state_dict().keys()
    reading = max(readings(content.state), key=lambda reading: len(expected & reading.tensors.keys()), default=Reading({}))
    check_stored(reading.tensors, expected, path)
    _check_arguments(model, reading.tensors, path, network, arguments)
    _fill(model, reading.tensors, path)
    return model, replace(origin, notes=(*origin.notes, *reading.notes))


def _check_arguments(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, network: str, arguments: Mapping[str, Any]
) -> None:
    """Refuse an argument of the builder that the tensors contradict: they have the shapes that it gives without.

    Tensors may be narrower than the network is built, but never as many classes fewer.
    """
    made = model.state_dict()
    for name, value in arguments.items():
        try:
            plain = networks.unfilled(network, {k: v for k, v in arguments.items() if k != name})[0].state_dict()
        except (WrongUsage, BadInput):  # it cannot be built without
            plain = None
        for tensor in made.keys() & state.keys():
            has, asked = tuple(state[tensor].shape), tuple(made[tensor].shape)
            usual = asked if plain is None or tensor not in plain else tuple(plain[tensor].shape)
            if len(has) != len(asked) or len(usual) != len(asked):
                continue
            for size, now, before in zip(has, asked, usual, strict=True):
                follows = now == value if plain is None else now != before
                if size < now and follows and (size == before or "class" in name):
                    raise BadInput(
                        f"{path}: {tensor} has shape {has}; {spelled('arguments', f'{name}={value}')} makes it {asked}; "
                        "leave it out, or give the number that the file has"
                    )


KEYS = ("state_dict", "model", "ema", "model_state_dict", "model_ema", "state_dict_ema", "net", "weights")
"""Entries under which training scripts keep their weights, in the order in which they are looked for."""


def _found_in(content: Any, path: Path, key: str | None) -> _Content:
    """The weights or the network in what `torch.save` wrote."""
    if isinstance(content, nn.Module):
        return _Content(None, {}, _bare(content))
    if not isinstance(content, Mapping):
        raise BadInput(f"{path}: holds {type(content).__name__}, neither a network nor a state dict")
    header = content.get(KEY)
    if isinstance(header, str):
        masks, state = content.get("masks", {}), content.get("state_dict")
        if not are_tensors(masks):
            raise BadInput(f"{path}: damaged checkpoint (its masks are no tensors)")
        if isinstance(module := content.get("model"), nn.Module):
            return _Content(header, {}, module, masks)
        if not are_tensors(state):
            raise BadInput(f"{path}: damaged checkpoint (no state_dict of tensors)")
        tensors: dict[str, Tensor] = dict(state or {})
        return _Content(header, tensors, None, masks)
    found = [name for name in ([key] if key else KEYS) if _holds_weights(content.get(name))]
    if found:
        inner = content[found[0]]
        return _found_in(inner, path, None) if isinstance(inner, nn.Module) else _Content(None, tensors_of(inner))
    if key or not _holds_weights(content):
        has = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise BadInput(
            f"{path}: no weights under {key or ', '.join(KEYS[:3])}; it holds {has}; name the entry with {spelled('key')}"
        )
    return _Content(None, tensors_of(content))


def _holds_weights(value: Any) -> bool:
    return isinstance(value, nn.Module) or (isinstance(value, Mapping) and bool(tensors_of(value)))


def _bare(model: nn.Module) -> nn.Module:
    """The network inside wrappers for several devices."""
    while isinstance(model, nn.DataParallel):
        model = model.module
    return model


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors of whatever width into a network as its builder makes it, and let its modules remember the new sizes."""
    _check_state(model, state, path)
    expected = model.state_dict()
    originals = dict(model.named_parameters(remove_duplicate=False))
    tied: dict[int, nn.Parameter] = {}  # by the identity of the originals, which live on until all are replaced
    for name, old in expected.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = state[name] if name in state else torch.zeros(old.shape, dtype=old.dtype)
        if attribute in module._parameters:
            module._parameters[attribute] = tied.setdefault(id(originals[name]), nn.Parameter(tensor))
        else:
            module._buffers[attribute] = tensor
    for module in model.modules():
        refit(module, is_depthwise(module))


def _check_state(model: nn.Module, state: Mapping[str, Tensor], label: str | Path) -> None:
    """Refuse tensors that are not those, be they narrower, of a network as it is built; messages begin with the label."""
    expected = model.state_dict()
    counters = {name for name in expected if name.rpartition(".")[2] == "num_batches_tracked"}  # old files have none
    _check_names(expected.keys() - counters, state.keys() - counters, label)
    for name, old in expected.items():
        if name in state:
            _check_tensor(label, name, state[name], old, model.get_submodule(name.rpartition(".")[0]))


def _check_names(expected: Set[str], given: Set[str], path: str | Path) -> None:
    for what, names in (
        ("lacks tensors of the network", expected - given),
        ("has tensors that the network lacks", given - expected),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise BadInput(f"{path}: the state dict {what}: {listed}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")


def _check_tensor(path: str | Path, name: str, tensor: Tensor, old: Tensor, module: nn.Module) -> None:
    """Refuse a tensor that is not the network's, be it narrower."""
    fixed = 2 if isinstance(module, _ConvNd) else tensor.dim()  # a kernel's height and width never shrink
    shape, most = tuple(tensor.shape), tuple(old.shape)
    if len(shape) != len(most) or any(n > m for n, m in zip(shape, most, strict=True)) or shape[fixed:] != most[fixed:]:
        hint = f"; is {spelled('arguments')} num_classes=... missing?" if shape[1:] == most[1:] else ""
        raise BadInput(f"{path}: {name} has shape {shape}, the network at most {most}{hint}")
    if tensor.is_floating_point() != old.is_floating_point() or tensor.layout != torch.strided or 0 in tensor.shape:
        raise BadInput(f"{path}: {name} is not a dense tensor of the kind that the network has")


def _read_safetensors(path: Path) -> _Content:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if LONGEST_HEADER < size < path.stat().st_size:
        raise BadInput(f"{path}: refused, because its header takes {size:,} bytes, more than {LONGEST_HEADER:,}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a safetensors file, or cut short ({first_line(error)})") from error
    masks = {name.removeprefix(MASKS): state.pop(name) for name in list(state) if name.startswith(MASKS)}
    return _Content(metadata.get(KEY), state, None, masks)


def _as_json(origin: Origin) -> dict[str, Any]:
    try:
        ours = version("compressor")
    except PackageNotFoundError:
        ours = "unknown"
    return {
        "schema": SCHEMA,
        "version": ours,
        "network": origin.network,
        "arguments": dict(origin.arguments),
        "inputs": [str(spec) for spec in origin.inputs],
        "data": origin.data,
        "preprocessing": origin.preprocessing and dict(origin.preprocessing),
        "plan": None if origin.plan is None else origin.plan.to_json(masks=False),
        "sizes": dict(origin.sizes),
        "trained": origin.trained,
    }


def _from_json(raw: dict[str, Any], masks: Mapping[str, Tensor]) -> Origin:
    if masks and raw["plan"] is None:
        raise ValueError("masks without a plan")
    plan = None if raw["plan"] is None else Plan.from_json(raw["plan"], masks)
    inputs = tuple(InputSpec.parse(text) for text in raw.get("inputs", ()))
    preprocessing = Preprocessing.from_dict(raw["preprocessing"]).as_dict() if raw.get("preprocessing") else None
    network, data = raw["network"], raw["data"]
    if not isinstance(network, str | None) or not isinstance(data, str | None):
        raise TypeError("network and data are names")
    sizes = dict(raw.get("sizes", {}))
    if not all(isinstance(name, str) and type(number) is int and number > 0 for name, number in sizes.items()):
        raise TypeError("sizes are numbers of channels by name")
    trained = raw.get("trained")
    if not isinstance(trained, bool | None):
        raise TypeError("trained is yes, no or not known")
    return Origin(network, dict(raw["arguments"]), inputs, data, plan, preprocessing, sizes=sizes, trained=trained)
