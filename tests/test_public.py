"""The Python that users write: it can be found, asks for no more than it needs, and gives the classes that they know."""

from __future__ import annotations

import importlib
import pickle
import pydoc
import rlcompleter
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import compressor
from compressor import check_equivalence, compress, export, load, networks, save, score
from compressor.benchmarks.report.document import make_document
from compressor.benchmarks.report.terminal import show
from compressor.errors import BadInput, WrongUsage
from compressor.model.origin import origin_of, set_origin
from compressor.pruning.facts import Fact, note
from compressor.system.environment import environment
from compressor.system.user_code import object_named
from compressor.types.origin import InputSpec, Origin

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))

def make(width=12):
    return Net(width)

def other():
    return nn.Sequential(nn.Linear(6, 12))

def narrow():
    return Net(4)
"""


def python(code: str, cwd: Path) -> str:
    """What a fresh Python prints, which is to end well."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What can be found


def test_dir_shows_the_api_and_imports_no_torch() -> None:
    shown, torch_is_there = python(
        "import compressor, sys; print(*dir(compressor)); print('torch' in sys.modules)", ROOT
    ).splitlines()
    assert {*compressor.__all__, "__version__"} <= set(shown.split())
    assert all(name in compressor.__all__ or name.startswith("__") for name in shown.split())
    assert torch_is_there == "False"


def test_help_shows_the_api() -> None:
    text = pydoc.plain(pydoc.render_doc(compressor))
    for name in compressor.__all__:
        assert name in text
    assert "Remove nodes physically until" in text
    assert f"VERSION\n    {compressor.__version__}" in text


def test_tab_completion_shows_the_api() -> None:
    shown = rlcompleter.Completer({"compressor": compressor}).attr_matches("compressor.co")
    assert "compressor.compress(" in shown


def test_the_version_is_the_packages() -> None:
    assert compressor.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_exporters_are_found_at_the_top_and_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (export.__module__, export.__qualname__) == ("compressor.exporters", "export")
    assert check_equivalence.__module__ == "compressor.exporters.equivalence"
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delitem(sys.modules, "exporters", raising=False)
    from exporters import export as of_the_checkout

    assert of_the_checkout.__code__ == export.__code__
    del sys.modules["exporters"]


def test_an_environment_names_the_commit_of_a_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    here = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    assert environment()["commit"] == here.stdout.strip() != ""


# What asks for no more than it needs


@pytest.mark.parametrize("method", ["l1-filters", "magnitude", "random"])
def test_methods_without_data_ask_for_none(method: str) -> None:
    model = networks.build("lenet5", seed=3)
    given = compress(model, method, [(torch.randn(4, 1, 28, 28), torch.zeros(4, dtype=torch.long))], 0.5)
    result = compress(model, method, sparsity=0.5)
    assert result.plan.to_json() == given.plan.to_json()
    assert all(result.summary.proofs)
    assert str(note(Fact.ON_NOISE)) in result.summary.notes
    scores = [score(model, method=method, **how).values for how in ({}, {"example_inputs": torch.randn(4, 1, 28, 28)})]
    for name, values in scores[0].items():
        assert torch.equal(values, scores[1][name])


def test_inputs_that_a_network_remembers_may_be_named_and_whole_numbers() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(5, 8), nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, *, ids):
            return self.head(self.hidden(self.table(ids).mean(1)).relu())

    model = Bag()
    set_origin(model, Origin(None, {}, (InputSpec((7,), "int64", "ids"),)))
    result = compress(model, "l1-filters", sparsity=0.5, only=["hidden"])
    assert result.model.hidden.out_features == 8


def test_without_data_something_says_what_the_network_takes() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    for ask in (lambda: compress(model, "l1-filters", sparsity=0.5), lambda: score(model, method="l1-filters")):
        with pytest.raises(
            BadInput, match="no data: the scores need none, but say what the network takes with example_inputs="
        ):
            ask()
    assert compress(model, "l1-filters", sparsity=0.5, example_inputs=torch.randn(4, 6)).model[0].out_features == 6


def test_methods_with_data_ask_for_it() -> None:
    model = networks.build("lenet5")
    for ask in (
        lambda: compress(model, "snapit"),
        lambda: score(model, method="snapit"),
        lambda: score(model, method="snapit", example_inputs=torch.randn(4, 1, 28, 28)),
        lambda: compress(model, "l1-filters", calibrate_bn=True),
    ):
        with pytest.raises(BadInput, match="no data: give batches"):
            ask()


# What a result says of itself


@pytest.mark.parametrize("unit", ["node", "weight"])
def test_a_result_prints_as_on_the_command_line(unit: str, capsys: pytest.CaptureFixture) -> None:
    result = compress(networks.build("lenet5"), "magnitude", sparsity=0.9, freeze=["features.0"], unit=unit)
    show(make_document(result, [], None, {Path("dense.pt"): 1000, Path("small.pt"): 100}, "digits", [], "cpu", 0))
    shown, printed = capsys.readouterr().out.splitlines(), str(result).splitlines()
    of_files = {"dense.pt -> small.pt", "bytes of small.pt           1,000      100          10.0x"}
    assert "nodes                        226" in str(result)
    different = [line for line in printed if line not in shown]
    assert [line.split("  ")[0] for line in different if not line.startswith("node sparsity")] == ["bytes of its tensors"]
    assert f"{next(line for line in different if line.startswith('node sparsity'))}, data digits" in shown
    assert of_files & set(shown)
    assert any(line.startswith("features.8") and line.endswith(".") for line in printed)
    assert any(line.startswith("equivalent  ") for line in printed)


def test_a_layers_name_is_printed_as_it_is(capsys: pytest.CaptureFixture) -> None:
    result = compress(networks.build("lenet5"), "l1-filters", sparsity=0.5)
    show(make_document(result, [], None, {Path("[red]a.pt"): 1000, Path("b.pt"): 100}, "d", ["see [link]"], "cpu", 0))
    out = capsys.readouterr().out
    assert "[red]a.pt -> b.pt" in out
    assert "see [link]" in out


# Networks of the user's own classes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a network's class, of a name that no other test imports."""
    path = tmp_path / f"net_of_{tmp_path.name}.py"
    path.write_text(NET)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_network_of_the_users_class_is_saved_by_its_builder(file: Path, suffix: str, pruned: bool) -> None:
    model = object_named(f"{file}:Net", "network")(width=10)
    if pruned:
        model = compress(model, "l1-filters", sparsity=0.5, example_inputs=torch.randn(4, 6)).model
    path, factory = file.with_suffix(suffix), f"{file}:make"
    save(model, path, network=factory, arguments={"width": 10})
    assert (origin_of(model).network, origin_of(model).arguments) == (factory, {"width": 10})
    again, inputs = load(path, network=factory), torch.randn(4, 6)
    assert type(again) is type(model)
    assert torch.equal(again(inputs), model(inputs))
    save(again, path)  # it is remembered
    assert torch.equal(load(path, network=factory)(inputs), model(inputs))
    [proof] = export(model, file.with_name(f"exported{suffix}"), example_inputs=inputs)
    assert proof


def test_a_builder_of_another_network_is_refused(file: Path) -> None:
    model = object_named(f"{file}:make", "network")()
    for name, message in (
        ("other", r"py:other builds another network: the state dict lacks tensors of the network: 0\.bias"),
        ("narrow", r"py:narrow builds another network: body\.0\.weight has shape \(12, 6\), the network at most \(4, 6\)"),
        ("nothing", r"has no nothing; did you mean"),
    ):
        with pytest.raises(WrongUsage, match=message):
            save(model, file.with_suffix(".pt"), network=f"{file}:{name}")
    with pytest.raises(WrongUsage, match="the network is lenet5, not"):
        save(networks.build("lenet5"), file.with_suffix(".pt"), network=f"{file}:make")
    with pytest.raises(WrongUsage, match="arguments are for the builder"):
        save(model, file.with_suffix(".pt"), arguments={"width": 3})
    assert origin_of(model) is None
    assert not file.with_suffix(".pt").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_saving_a_users_class_says_how(file: Path, suffix: str) -> None:
    model = object_named(f"{file}:make", "network")()
    with pytest.raises(BadInput, match=r'or name what builds it: save\(model, path, network="mynet\.py:make"\)$'):
        save(model, file.with_suffix(suffix))


@pytest.mark.parametrize("import_first", [True, False])
@pytest.mark.parametrize("on_path", ["before", "between"])
def test_a_loaded_network_is_of_the_class_that_is_imported(
    file: Path, import_first: bool, on_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the file's folder is on the search path when the network is loaded, or only when the user imports it."""
    if on_path == "before" or import_first:
        monkeypatch.syspath_prepend(file.parent)
    if import_first:
        importlib.import_module(file.stem)
    model = object_named(f"{file}:make", "network")()
    save(model, file.with_suffix(".pt"), network=f"{file}:make")
    again = load(file.with_suffix(".pt"), network=f"{file}:make")
    monkeypatch.syspath_prepend(file.parent)
    theirs = importlib.import_module(file.stem)
    assert isinstance(again, theirs.Net)
    assert type(pickle.loads(pickle.dumps(again))) is theirs.Net
    assert object_named(f"{file.stem}:Net", "network") is theirs.Net
    if on_path == "before":
        assert theirs.Net.__module__ == file.stem  # so that a pickle of it is read where the file can be imported
    importlib.reload(theirs)
    assert theirs.Net is not type(again)


def test_a_file_inside_a_package_is_the_packages_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_nets").mkdir()
    (tmp_path / "package_of_nets" / "__init__.py").touch()
    (tmp_path / "package_of_nets" / "deep.py").write_text("class Net: pass")
    net = object_named(f"{tmp_path}/package_of_nets/deep.py:Net", "network")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("package_of_nets.deep").Net is net


def test_the_running_script_is_its_own_module(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from compressor.system.user_code import object_named\n"
        "class Net: pass\n"
        "print(object_named('script.py:Net', 'network') is Net)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_files_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder's file, loaded before, is not what a file of another folder imports by that name."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin_of_another_file.py").write_text(f"where = {folder!r}")
    (tmp_path / "two" / "reader_of_its_twin.py").write_text("from twin_of_another_file import where")
    assert object_named(f"{tmp_path}/one/twin_of_another_file.py:where", "data") == "one"
    assert object_named(f"{tmp_path}/two/reader_of_its_twin.py:where", "data") == "two"
    assert object_named(f"{tmp_path}/two/twin_of_another_file.py:where", "data") == "two"
    assert object_named(f"{tmp_path}/one/twin_of_another_file.py:where", "data") == "one"


@pytest.mark.parametrize("name", ["torch", "antigravity", "timm_of_the_user"])
def test_a_file_never_takes_a_librarys_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported, of the standard library and not imported, or installed elsewhere on the path and not imported."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "timm_of_the_user.py").write_text("real = True")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, str(elsewhere)])
    (tmp_path / f"{name}.py").write_text("real = False")
    before = sys.modules.get(name)
    assert object_named(f"{tmp_path}/{name}.py:real", "data") is False
    assert sys.modules.get(name) is before


def test_a_file_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "failing_with_a_helper.py"
    (tmp_path / "helper_of_the_failing.py").write_text("import failing_with_a_helper")
    path.write_text("import helper_of_the_failing\nraise ValueError")
    with pytest.raises(WrongUsage, match="raises ValueError"):
        object_named(f"{path}:x", "data")
    assert "failing_with_a_helper" not in sys.modules
    path.write_text("x = 'it is mended'")
    assert object_named(f"{path}:x", "data") == "it is mended"
