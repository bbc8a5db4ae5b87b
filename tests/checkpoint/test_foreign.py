"""Files that someone else made: state dicts wherever they lie, whole networks, every precision, builders of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compressor import compress, load, networks, save
from compressor.errors import BadInput, CompressError, WrongUsage
from compressor.model.cost import stored_bytes
from compressor.model.origin import origin_of
from compressor.sources.scoring import source_for
from compressor.types.origin import InputSpec
from tests.blocks import same_state
from tests.command import run

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, classes=5):
        super().__init__()
        self.c = nn.Conv2d(3, width, 3, padding=1)
        self.n = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.n(self.c(x))).mean((2, 3)))

def net(**options):
    return Net(**options)

def broken():
    raise ValueError("no such luck")

def number():
    return 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    return f"{tmp_path / 'mine.py'}:net"


@pytest.fixture
def dense() -> nn.Module:
    return networks.build("lenet5", seed=3)


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1, "state": {}}},
    "model": lambda s: {"model": s, "best": 0.5},
    "ema": lambda s: {"ema": s, "epoch": 1},
    "module.": lambda s: {f"module.{n}": t for n, t in s.items()},
    "_orig_mod.": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "both": lambda s: {"state_dict": {f"module._orig_mod.{n}": t for n, t in s.items()}},
    "averaged": lambda s: {"n_averaged": torch.tensor(4), **{f"module.{n}": t for n, t in s.items()}},
    "counted by thop": lambda s: {**s, "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)},
    "without counters": lambda s: {n: t for n, t in s.items() if "num_batches" not in n},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_state_dicts_are_found_and_recognised(wrapping: str, suffix: str, dense: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPINGS[wrapping](dense.state_dict()), path)
    for model in (load(path), load(path, network="lenet5")):
        assert same_state(model, dense)
        assert origin_of(model).network == "lenet5"
        assert origin_of(model).input_shape == (1, 28, 28)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_stays_as_it_came(dtype: torch.dtype, dense: nn.Module, tmp_path: Path, digits) -> None:
    torch.save(dense.to(dtype).state_dict(), tmp_path / "half.pth")
    model = load(tmp_path / "half.pth")
    assert same_state(model, dense)
    small = compress(model, "snapit", digits, 0.5).model
    for suffix in (".pt", ".safetensors"):
        save(small, tmp_path / f"small{suffix}")
        again = load(tmp_path / f"small{suffix}")
        assert same_state(again, small)
        assert again.features[0].weight.dtype == dtype


def test_a_key_chooses_the_weights(dense: nn.Module, tmp_path: Path) -> None:
    other = networks.build("lenet5", seed=4)
    torch.save({"model": dense.state_dict(), "ema": other.state_dict(), "mine": other}, tmp_path / "two.pt")
    assert same_state(load(tmp_path / "two.pt"), dense)
    assert same_state(load(tmp_path / "two.pt", key="ema"), other)
    assert same_state(load(tmp_path / "two.pt", key="mine"), other)
    with pytest.raises(BadInput, match="no weights under nowhere; it holds model, ema, mine"):
        load(tmp_path / "two.pt", key="nowhere")


def test_a_factory_of_ones_own(factory: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = networks.unfilled(factory, {"width": 12})[0]
    torch.save(model.state_dict(), tmp_path / "w.pth")
    spec = InputSpec((3, 8, 8))
    loaded = load(tmp_path / "w.pth", network=factory, arguments={"width": 12}, inputs=[spec])
    assert same_state(loaded, model)
    data = [(torch.randn(8, 3, 8, 8), torch.randint(5, (8,)))]
    small = compress(loaded, "snapit", data, 0.5).model
    for suffix in (".pt", ".safetensors"):
        save(small, tmp_path / f"small{suffix}")
        with pytest.raises(BadInput, match="is built by code; if you trust it, name it: network="):
            load(tmp_path / f"small{suffix}")
        again = load(tmp_path / f"small{suffix}", network=factory)
        assert same_state(again, small)
        assert origin_of(again).inputs == (spec,)
        assert origin_of(again).arguments == {"width": 12}
        with pytest.raises(WrongUsage, match=r"its network is .*mine.py:net, not lenet5"):
            load(tmp_path / f"small{suffix}", network="lenet5")


def test_a_whole_network_is_saved_as_one_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    torch.save(nn.DataParallel(model), tmp_path / "whole.pt")
    loaded = load(tmp_path / "whole.pt", inputs=[InputSpec((6,))])
    assert same_state(loaded, model)
    small = compress(loaded, "snapit", [(torch.randn(9, 6), torch.randint(3, (9,)))], 0.5).model
    save(small, tmp_path / "small.pt")
    again = load(tmp_path / "small.pt")
    assert same_state(again, small)
    assert origin_of(again).inputs == (InputSpec((6,)),)
    assert origin_of(again).plan == origin_of(small).plan
    with pytest.raises(BadInput, match=r"needs a network with a named builder .*write \.pt2"):
        save(small, tmp_path / "small.safetensors")
    code = (
        f"import torch; m = torch.load({str(tmp_path / 'small.pt')!r}, weights_only=False)['model']; "
        "print(m(torch.ones(1, 6)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "[1, 3]" in done.stdout, done.stderr


def test_a_whole_network_of_unknown_classes_is_pointed_elsewhere(factory: str, tmp_path: Path) -> None:
    model = networks.unfilled(factory, {})[0]
    with pytest.raises(BadInput, match=r"not made of known classes alone; write \.pt2"):
        save(model, tmp_path / "x.pt")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".pt"] == []


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\ndef net():\n    a = nn.Linear(4, 4)\n"
        "    return nn.Sequential(a, nn.ReLU(), a, nn.Linear(4, 2))\n"
    )
    spec = f"{tmp_path}/tied.py:net"
    model = networks.unfilled(spec, {})[0]
    torch.save(model.state_dict(), tmp_path / "t.pt")
    loaded = load(tmp_path / "t.pt", network=spec)
    assert loaded[0].weight is loaded[2].weight
    save(loaded, tmp_path / "t.safetensors")
    assert same_state(load(tmp_path / "t.safetensors", network=spec), model)


def refusals(dense: nn.Module) -> dict[str, tuple]:
    state = dense.state_dict()
    less, more = dict(state), {**state, "extra.weight": torch.zeros(2)}
    del less["features.0.weight"]
    wide = {**state, "classifier.4.weight": torch.zeros(99, 84)}
    kernel = {**state, "features.0.weight": state["features.0.weight"][..., :3]}
    return {
        "a missing tensor": (less, {"network": "lenet5"}, "lacks tensors of the network: features.0.weight"),
        "one too many": (more, {"network": "lenet5"}, "has tensors that the network lacks: extra.weight"),
        "too wide": (wide, {"network": "lenet5"}, r"classifier.4.weight has shape \(99, 84\), the network at most \(10, 84\)"),
        "another kernel": (kernel, {"network": "lenet5"}, "features.0.weight has shape"),
        "another network": (state, {"network": "vgg16"}, "the state dict"),
        "unnamed": ({"a.weight": torch.zeros(3, 3)}, {}, "does not say of which network; name its builder: network"),
        "nothing in it": ({"epoch": 3}, {}, "no weights under state_dict, model, ema; it holds epoch"),
        "a number": (3, {}, "holds int, neither a network nor a state dict"),
        "a tensor": (torch.zeros(3), {}, "holds Tensor, neither"),
        "a sparse tensor": ({**state, "classifier.4.bias": torch.zeros(10).to_sparse()}, {"network": "lenet5"}, "not a dense"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals(networks.build("lenet5")))
def test_state_dicts_that_do_not_fit(case: str, dense: nn.Module, tmp_path: Path) -> None:
    content, options, words = refusals(dense)[case]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CompressError, match=words):
        load(tmp_path / "x.pt", **options)


@pytest.mark.parametrize(
    ("network", "arguments", "words"),
    [
        ("nosuch", {}, "no network 'nosuch'"),
        ("lenet5", {"width": 3}, "lenet5 takes in_channels"),
        ("nowhere.py:net", {}, "nowhere.py"),
        ("{folder}/mine.py:nett", {}, "net"),
        ("{folder}/mine.py:broken", {}, "cannot be built .*no such luck"),
        ("{folder}/mine.py:number", {}, "gives int, not a torch.nn.Module"),
        ("{folder}/mine.py:net", {"widht": 3}, "widht"),
        ("timm:resnet18", {"pretrained": True}, "weights are never fetched"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights are never fetched"),
    ],
)
def test_builders_that_cannot(network: str, arguments, words: str, factory: str, dense, tmp_path: Path) -> None:
    torch.save(dense.state_dict(), tmp_path / "x.pt")
    with pytest.raises(CompressError, match=words):
        load(tmp_path / "x.pt", network=network.format(folder=tmp_path), arguments=arguments)


MADE = """
from torch import nn

def net(classes=10, width=16, depth=2):
    return nn.Sequential(nn.Linear(8, width), *[nn.Linear(width, width) for _ in range(depth - 1)], nn.Linear(width, classes))

def needing(outputs, num_classes):
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, num_classes), nn.Linear(num_classes, outputs))
"""


@pytest.mark.parametrize(
    ("factory", "arguments", "words"),
    [
        ("net", {"classes": 100}, r"2\.\w+ has shape \(10(, 16)?,?\); arguments='classes=100' makes it \(100(, 16)?,?\)"),
        ("net", {"classes": 100, "width": 16}, "arguments='classes=100' makes it"),
        ("net", {"width": 24}, "arguments='width=24' makes it"),
        ("needing", {"outputs": 3, "num_classes": 12}, "arguments='num_classes=12' makes it"),
    ],
)
def test_an_argument_that_the_tensors_contradict_is_an_error(factory: str, arguments, words: str, tmp_path: Path) -> None:
    """It gave ten outputs where a hundred were asked, without a word."""
    (tmp_path / "made.py").write_text(MADE)
    made: dict = {}
    exec(MADE, made)
    model = made["net"]() if factory == "net" else made["needing"](3, 7)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(BadInput, match=words):
        load(tmp_path / "w.pt", network=f"{tmp_path}/made.py:{factory}", arguments=arguments, inputs=[InputSpec((8,))])


def test_a_narrower_file_of_a_network_made_wider_is_none(tmp_path: Path) -> None:
    """Tensors may be a part of what the builder makes: this one was pruned elsewhere."""
    (tmp_path / "made.py").write_text(MADE)
    made: dict = {}
    exec(MADE, made)
    torch.save(made["net"](width=20).state_dict(), tmp_path / "w.pt")
    loaded = load(tmp_path / "w.pt", network=f"{tmp_path}/made.py:net", arguments={"width": 32}, inputs=[InputSpec((8,))])
    assert loaded[0].out_features == 20


def test_a_newer_checkpoint_is_named(dense: nn.Module, tmp_path: Path) -> None:
    import json

    save(dense, tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    header = json.loads(content["compressor"]) | {"schema": 99}
    torch.save({**content, "compressor": json.dumps(header)}, tmp_path / "x.pt")
    with pytest.raises(BadInput, match=r"made by a newer version \(schema 99\)"):
        load(tmp_path / "x.pt")


def test_a_header_cannot_run_code(dense: nn.Module, tmp_path: Path) -> None:
    """A file that names a module or file as its builder is not believed."""
    import json

    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\ndef net(): pass\n")
    save(dense, tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    for builder in (f"{tmp_path}/evil.py:net", "os:system", "timm:hf-hub:evil/net", "torchvision:os.system"):
        header = json.loads(content["compressor"]) | {"network": builder, "arguments": {}}
        torch.save({**content, "compressor": json.dumps(header)}, tmp_path / "x.pt")
        with pytest.raises(CompressError):
            load(tmp_path / "x.pt")
    assert not (tmp_path / "trace").exists()


def test_a_header_cannot_name_code_as_its_data(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "evilmod.py").write_text(f"def go():\n    open({str(tmp_path / 'trace')!r}, 'w').close()\n    return []\n")
    monkeypatch.chdir(tmp_path)
    for data in ("evilmod:go", f"{tmp_path}/evilmod.py:go", "os:getcwd"):
        model = networks.build("lenet5", data=data)
        with pytest.raises(BadInput, match="its data is made by code; if you trust it, name it: data="):
            source_for(model, None)
    assert not (tmp_path / "trace").exists()
    with pytest.raises(BadInput, match="yields no batch"):
        source_for(model, "evilmod:go")
    assert (tmp_path / "trace").exists()


def test_a_loss_that_was_saved_with_its_network_is_left_out(factory: str, dense: nn.Module, tmp_path: Path) -> None:
    """As Lightning saves a module that holds both."""
    lightning = {f"net.{n}": t for n, t in dense.state_dict().items()} | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": lightning, "epoch": 3, "pytorch-lightning_version": "2"}, tmp_path / "x.ckpt")
    for network in (None, "lenet5"):
        found = load(tmp_path / "x.ckpt", network=network)
        assert same_state(found, dense)
        assert "Not of the network, and left out: criterion.weight." in found.origin.notes
    half = {f"one.{n}": t for n, t in dense.state_dict().items()} | {f"two.{n}": t for n, t in dense.state_dict().items()}
    torch.save(half, tmp_path / "two.pt")
    with pytest.raises(BadInput, match="does not say of which network"):
        load(tmp_path / "two.pt")


def test_masks_of_torch_are_read_as_zeros(dense: nn.Module, tmp_path: Path) -> None:
    for layer in (dense.features[0], dense.classifier[-1]):
        prune.random_unstructured(layer, "weight", 0.5)
    torch.save({"model": dense.state_dict()}, tmp_path / "masked.pt")
    found = load(tmp_path / "masked.pt")
    assert "2 weights were read with the masks of torch.nn.utils.prune, as zeros." in found.origin.notes
    assert torch.equal(found.classifier[-1].weight, dense.classifier[-1].weight)
    assert int((found.features[0].weight == 0).sum()) == int((dense.features[0].weight_mask == 0).sum())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_state_dict_over_several_files_is_named_by_its_folder(suffix: str, dense: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state, folder = dense.state_dict(), tmp_path / "sharded"
    folder.mkdir()
    files = {name: f"model-0000{1 + n % 2}-of-00002.{suffix}" for n, name in enumerate(state)}
    for file in set(files.values()):
        part = {name: t.clone() for name, t in state.items() if files[name] == file}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert same_state(load(folder), dense)
    assert run("show", "sharded", cwd=tmp_path).returncode == 0
    assert run("snapit", "sharded", "--sparsity", "0.5", "-o", "x.pt", cwd=tmp_path).returncode == 0
    for broken, words in (
        ({"weight_map": files | {"x": "../../etc/passwd"}}, "no weight_map to files beside it"),
        ({"weight_map": files | {"x": f"none.{suffix}"}}, "which is not there"),
        ({"weight_map": files | {"x": next(iter(files.values()))}}, "x, which is in none of the files"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps(broken))
        with pytest.raises(BadInput, match=words):
            load(folder)
    index.unlink()
    with pytest.raises(BadInput, match="is a folder; name the file in it"):
        load(folder)


@pytest.mark.parametrize(
    ("wrap", "way"),
    [
        (nn.utils.parametrizations.weight_norm, r"torch\.nn\.utils\.parametrize\.remove_parametrizations"),
        (nn.utils.parametrizations.spectral_norm, r"torch\.nn\.utils\.parametrize\.remove_parametrizations"),
        (nn.utils.weight_norm, r"torch\.nn\.utils\.remove_weight_norm"),
        (nn.utils.spectral_norm, r"torch\.nn\.utils\.remove_spectral_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_are_computed_get_the_remedy(wrap, way: str, dense: nn.Module, tmp_path: Path) -> None:
    wrap(dense.features[0])
    torch.save(dense.state_dict(), tmp_path / "x.pt")
    with pytest.raises(BadInput, match=rf"is what a weight is computed from; store the weight .*{way}"):
        load(tmp_path / "x.pt", network="lenet5")


def test_a_builder_of_ones_own_takes_pretrained(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"{FACTORY}\ndef own(pretrained=True):\n    assert not pretrained\n    return Net()\n")
    spec = f"{tmp_path / 'own.py'}:own"
    torch.save(load_module(spec).state_dict(), tmp_path / "x.pt")
    assert load(tmp_path / "x.pt", network=spec, arguments={"pretrained": False}).origin.arguments == {"pretrained": False}
    with pytest.raises(WrongUsage, match="weights are never fetched"):
        load(tmp_path / "x.pt", network=spec, arguments={"pretrained": True})


def load_module(spec: str) -> nn.Module:
    return networks.unfilled(spec, {"pretrained": False})[0]


def test_an_optimizers_state_counts_for_nothing(dense: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(dense.parameters())
    for parameter in dense.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"state_dict": dense.state_dict()}, tmp_path / "bare.pt")
    torch.save({"state_dict": dense.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    bare, both = (stored_bytes(tmp_path / name, dense) for name in ("bare.pt", "both.pt"))
    assert bare == (tmp_path / "bare.pt").stat().st_size
    assert both == sum(t.nbytes for t in dense.state_dict().values()) < (tmp_path / "both.pt").stat().st_size / 2
    done = run("show", "both.pt", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["file"]["bytes"] == both


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_cannot_be_imported_is_named_as_what_it_is(library: str, tmp_path: Path) -> None:
    """timm imports torchvision, and a torchvision of another torch breaks both."""
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import torchvision")
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "new", f"{library}:resnet18", "-o", "x.pt"], capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    needs = "timm needs torchvision, which" if library == "timm" else "torchvision"
    assert f"{needs} cannot be imported (operator torchvision::nms does not exist); install the torchvision" in done.stderr
    assert done.returncode == 3
    (broken / "__init__.py").write_text("import nowhere_at_all")
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "new", f"{library}:resnet18", "-o", "x.pt"], capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert f"{library} needs nowhere_at_all, which is not installed; pip install nowhere_at_all" in done.stderr
