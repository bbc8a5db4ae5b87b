"""Files made to run code: none runs, each is refused by name; and what people really save is read."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor import networks
from compressor.checkpoint.unpickle import read
from compressor.errors import BadInput
from tests.command import isolated
from tests.damage import damages


class Call:
    """Unpickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def touch(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w')"


def hooked(trace: Path) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_forward_pre_hook(functools.partial(os.system, f"touch {trace}"))
    return model


def stateful(trace: Path) -> nn.Module:
    model = nn.Linear(2, 2)
    model.__dict__["extra"] = Call(os.system, f"touch {trace}")
    return model


MALICIOUS = {
    "os.system": (lambda t: {"w": Call(os.system, f"touch {t}")}, "posix.system"),
    "exec": (lambda t: [Call(exec, touch(t))], "exec"),
    "eval": (lambda t: {"state_dict": {"w": Call(eval, touch(t))}}, "eval"),
    "subprocess": (lambda t: Call(subprocess.Popen, ["touch", str(t)]), "Popen"),
    "nested reduces": (lambda t: Call(list, [Call(map, Call(functools.partial, exec), [touch(t)])]), "exec"),
    "a hook": (hooked, "posix.system"),
    "a module's attribute": (stateful, "posix.system"),
    "a partial": (lambda t: {"w": functools.partial(os.system, f"touch {t}")}, "posix.system"),
    "getattr": (lambda t: Call(getattr, Call(__import__, "os"), "system"), "getattr"),
    "import": (lambda t: Call(__import__, "antigravity"), "__import__"),
    "torch.hub": (lambda t: Call(torch.hub.load, str(t.parent), "net"), "torch.hub.load"),
    "torch.load": (lambda t: Call(torch.load, str(t)), "torch.serialization.load"),
    "torch.jit": (lambda t: Call(torch.jit.load, str(t)), "torch.jit._serialization.load"),
    "torch.fx": (lambda t: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))), "torch.fx"),
    "open": (lambda t: Call(open, str(t), "w"), "open"),
    "a function of torch.nn": (lambda t: Call(nn.utils.clip_grad_norm_, [], 1.0), "clip_grad_norm_"),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files_never_run_and_are_named(name: str, legacy: bool, tmp_path: Path) -> None:
    make, named = MALICIOUS[name]
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save(make(trace), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInput, match=rf"evil.pt: refused without running it, because its pickle names .*{named}") as refusal:
        read(path)
    assert "\n" not in str(refusal.value)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["os.system", "exec", "a module's attribute"])
def test_the_same_files_run_where_the_user_trusts_them(name: str, tmp_path: Path) -> None:
    """The traps are live: else the test above would prove nothing."""
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save(MALICIOUS[name][0](trace), path)
    read(path, trust=True)
    assert trace.exists()


def with_pickle(path: Path, content: bytes) -> None:
    """A checkpoint whose pickle is exactly these bytes."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, content if name.endswith("/data.pkl") else record)


RAW = {
    "a name made as it is read": pickle.dumps(Call(os.system, "touch {trace}"), 4),
    "the INST opcode": b"(S'touch {trace}'\nios\nsystem\n.",
    "an alias in a known module": b"ctorch.nn.modules.module\nfunctools\n.",
    "a dotted name": b"ctorch.nn.modules.module\nModule.apply\n.",
    "a function beside networks": b"ctorch.nn.modules.module\nregister_module_forward_hook\n(cos\nsystem\ntR.",
    "distributed": b"ctorch.nn.parallel.distributed\nDistributedDataParallel\n.",
    "a script of transformers": b"ctransformers.models.bert.convert_bert\nX\n.",
    "an extension code": b"\x82\x01.",
}


@pytest.mark.parametrize("name", RAW)
def test_crafted_pickles(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with_pickle(tmp_path / "evil.pt", RAW[name].replace(b"{trace}", str(trace).encode()))
    with pytest.raises(BadInput, match=r"its pickle names|damaged"):
        read(tmp_path / "evil.pt")
    assert not trace.exists()


@pytest.mark.parametrize("member", ["../../climb", "/tmp/climb", "archive/../../climb", "..\\climb", "c:/climb"])
def test_a_zip_that_climbs_out(member: str, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "evil.pt")
    with zipfile.ZipFile(tmp_path / "evil.pt", "a") as archive:
        archive.writestr(member, "out")
    with pytest.raises(BadInput, match=r"climb.* out of its folder"):
        read(tmp_path / "evil.pt")


def test_a_zip_bomb(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "evil.pt")
    with zipfile.ZipFile(tmp_path / "evil.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(300_000_000))
    with pytest.raises(BadInput, match="claims to unpack to 300,000,000 bytes"):
        read(tmp_path / "evil.pt")


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_kinds_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with_pickle(path, b"cultralytics.nn.tasks\nDetectionModel\n.")
    with pytest.raises(BadInput, match="an Ultralytics file; save its weights"):
        read(path)
    with_pickle(path, b"ctorch.ao.nn.quantized.modules.linear\nLinear\n.")
    with pytest.raises(BadInput, match="a quantised network; prune the float network first"):
        read(path)
    torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)
    with pytest.raises(BadInput, match="a quantised network"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")
    with pytest.raises(BadInput, match="a TorchScript file"):
        read(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(BadInput, match="a plain pickle, which is never run"):
        read(path)


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    with_pickle(tmp_path / "x.pt", b"ctransformers.models.bert.modeling_bert\nBertModel\n.")
    try:
        import transformers  # noqa: F401
    except ImportError:
        with pytest.raises(BadInput, match="needs the library transformers, which is not installed: pip install transformers"):
            read(tmp_path / "x.pt")
    else:
        pytest.skip("transformers is installed")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_people_save_is_read(legacy: bool, tmp_path: Path) -> None:
    content = {
        "state_dict": collections.OrderedDict(w=torch.ones(2).half(), v=torch.ones(2).bfloat16()),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float64(0.5),
        "curve": np.arange(3.0),
    }
    if not legacy:
        content["net"] = networks.build("lenet5")
        content["wrapped"] = nn.DataParallel(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU()))
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    found = read(tmp_path / "x.ckpt")
    assert found["args"].lr == 0.1
    assert found["best"] == 0.5
    assert found["state_dict"]["v"].dtype == torch.bfloat16
    if not legacy:
        assert isinstance(found["wrapped"].module[0], nn.Conv2d)
        assert torch.equal(found["net"].features[0].weight, content["net"].features[0].weight)


def test_a_whole_network_in_the_old_format_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(BadInput, match=r"a whole network in the format of before torch 1\.6; save its state dict"):
        read(tmp_path / "x.pt")


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    place = content.index(torch.tensor([500.0, 501.0]).numpy().tobytes())
    content[place] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(BadInput, match="fails its checksum"):
        read(tmp_path / "x.pt")


def refused(path: Path, count: int) -> int:
    """How many of a file's damaged forms are refused, in one line each; the others are read."""
    number = 0
    for content in damages(path.read_bytes(), count):
        path.write_bytes(content)
        try:
            read(path)
        except BadInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - refusing is allowed, not asked for
            number += 1
    return number


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_mutated_files_end_in_one_line(legacy: bool, tmp_path: Path) -> None:
    """In a process of its own: a native reader that crashes must not take the tests along."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save(
        {"model": model.state_dict(), "w": torch.ones(5).half()}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy
    )
    assert isolated(refused, tmp_path / "x.pt", 300) > 200


class OfDtype:
    """Unpickles as NumPy's type of objects, told that it holds plain bytes."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 1)


class OfPointers:
    """Unpickles as an array of one object, at an address that the file gives."""

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), OfDtype(), False, b"A" * 8)


def test_bytes_never_become_pointers(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}, "x": OfPointers()}, tmp_path / "evil.pt")
    with pytest.raises(BadInput):
        isolated(read, tmp_path / "evil.pt")


def test_a_pickle_never_calls_a_constructor(tmp_path: Path) -> None:
    """Constructors are code: some compile what they are given."""
    torch.save({"net": Call(nn.Linear, 2, 3)}, tmp_path / "evil.pt")
    with pytest.raises(BadInput, match=r"refused, because its pickle calls torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "evil.pt")


@pytest.mark.parametrize(
    "name", ["timm.models._features_fx.GraphExtractNet", "torchvision.models.feature_extraction.DualGraphModule"]
)
def test_networks_that_compile_what_they_hold_are_refused(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    with_pickle(tmp_path / "evil.pt", f"\x80\x02c{module}\n{attribute}\n)\x81.".encode("latin1"))
    with pytest.raises(BadInput, match=f"its pickle names {name}"):
        read(tmp_path / "evil.pt")


INJECTED = 'training"), getattr(__import__("os"), "system")("touch {}"), getattr(self, "training'


def named_as_code(place: str, trace: Path) -> nn.Module:
    """A network one of whose names is code, for generators that write names into code as they are."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2))
    name = INJECTED.format(trace)
    if place == "attribute":
        model[0].__dict__[name] = model[0].weight
    else:
        held = model._modules if place == "_modules" else model[0].__dict__[place]
        held[name] = {"_modules": nn.ReLU(), "_parameters": nn.Parameter(torch.zeros(1)), "_buffers": torch.zeros(1)}[place]
    return model


@pytest.mark.parametrize("place", ["_modules", "_parameters", "_buffers", "attribute"])
def test_names_that_are_code_reach_no_generator(place: str, tmp_path: Path) -> None:
    torch.save(named_as_code(place, tmp_path / "trace"), tmp_path / "evil.pt")
    with pytest.raises(BadInput, match=r"damaged network: \w+ (holds something under the name|has an attribute whose name)"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "trace").exists()


def test_the_injection_is_live(tmp_path: Path) -> None:
    """torch writes a parameter's name into an exported program's code as it is: else the test above would prove nothing."""
    model = named_as_code("_parameters", tmp_path / "trace")
    program = torch.export.export(model.eval(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "evil.pt2")
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "evil.pt2").module()(torch.randn(2, 3, 8, 8))
    assert (tmp_path / "trace").exists()


def broken(change) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m._modules.update(again=m), "something in it holds itself"),
        (lambda m: m._modules.update(child=3), "is a int, not a Module"),
        (lambda m: m[0]._parameters.update(weight="w"), "is a str, not a Tensor"),
        (lambda m: m[0].__dict__.pop("_buffers"), "Linear has no _buffers"),
        (lambda m: m.__dict__.update(train=1), "has a method train of its own"),
        (lambda m: m.__dict__.update(training=2), "neither in train nor in eval mode"),
    ],
)
def test_a_network_that_no_constructor_makes(change, words: str, tmp_path: Path) -> None:
    torch.save(broken(change), tmp_path / "broken.pt")
    with pytest.raises(BadInput, match=words):
        read(tmp_path / "broken.pt")


KINDS_OF_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS_OF_HOOKS)
def test_hooks_are_refused(kind: str, legacy: bool, tmp_path: Path) -> None:
    """Whatever is called by torch itself: also modules and functions that a file may name."""
    for hook in (None, {0: None}, {0: nn.ReLU()}, {0: nn.functional.relu}, [nn.ReLU()]):
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].__dict__[kind] = hook
        torch.save(model, tmp_path / "hooked.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(BadInput, match=rf"{kind}|format of before torch 1\.6"):
            read(tmp_path / "hooked.pt")


def test_hooks_stay_where_the_file_is_trusted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_hook(nn.functional.relu)
    torch.save(model, tmp_path / "hooked.pt")
    assert list(read(tmp_path / "hooked.pt", trust=True)._forward_hooks.values()) == [nn.functional.relu]


def test_hooks_of_tensors_are_refused(tmp_path: Path) -> None:
    weight = torch.zeros(2, requires_grad=True)
    weight.register_hook(nn.ReLU())
    arguments = (weight.untyped_storage(), 0, (2,), (1,), True, collections.OrderedDict({0: nn.ReLU()}))
    storage = torch.storage.TypedStorage(wrap_storage=weight.untyped_storage(), dtype=torch.float32, _internal=True)
    torch.save({"w": Call(torch._utils._rebuild_tensor_v2, storage, *arguments[1:])}, tmp_path / "hooked.pt")
    with pytest.raises(BadInput, match="a tensor has hooks"):
        read(tmp_path / "hooked.pt")


def test_a_class_fills_in_nothing_before_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its `__setstate__` does with what a file holds is done when that is known to be a module's."""
    filled = []
    monkeypatch.setattr(nn.ReLU, "__setstate__", lambda self, state: filled.append(state), raising=False)
    torch.save(nn.Sequential(nn.ReLU()), tmp_path / "net.pt")
    read(tmp_path / "net.pt")
    assert len(filled) == 1
    torch.save(broken(lambda m: m.add_module("2", nn.ReLU()) or m[2].__dict__.update(training="no")), tmp_path / "broken.pt")
    with pytest.raises(BadInput, match="neither in train nor in eval mode"):
        read(tmp_path / "broken.pt")
    assert len(filled) == 1


def test_a_network_of_an_older_torch_is_completed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LSTM(2, 3), nn.MultiheadAttention(4, 2))
    for module in model.modules():
        for name in ("_state_dict_pre_hooks", "_non_persistent_buffers_set", "_forward_hooks_with_kwargs"):
            module.__dict__.pop(name)
    model[0].__dict__.pop("proj_size")
    torch.save(model, tmp_path / "old.pt")
    found = read(tmp_path / "old.pt")
    assert found[0].proj_size == 0
    assert found[0](torch.zeros(1, 1, 2))[0].shape == (1, 1, 3)
    found.state_dict()


@pytest.mark.parametrize("network", [False, True])
def test_compressed_records_are_read(network: bool, tmp_path: Path) -> None:
    """torch reads them; mapped into memory as they lie there, they would be other weights."""
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    torch.save(model if network else {"state_dict": model.state_dict()}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "packed.pt", "w", kind) as archive:
            for name, record in records.items():
                archive.writestr(name, record)
        found = read(tmp_path / "packed.pt")
        state = found.state_dict() if network else found["state_dict"]
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_classes_that_a_network_remembers_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.norm, model.made = nn.BatchNorm2d, [functools.partial(nn.LayerNorm, eps=1e-3), (nn.ReLU,)]
    torch.save(model, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    assert found.norm is nn.BatchNorm2d
    assert found.made[0].func is nn.LayerNorm
    assert found.made[1] == (nn.ReLU,)
