"""Start-up: a command imports what it uses, when it uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor import networks
from compressor.benchmarks.studies import bare_export
from compressor.benchmarks.studies.startup import Pair, measured, ratios, summary

ROOT = Path(__file__).resolve().parents[1]

TRACING = ("sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes")
"""What `torch.export` imports, and passes without values: as long again as torch."""
OTHERS = ("sklearn", "pandas", "scipy.stats", "datasets", "matplotlib", "jinja2", "PIL", "fvcore", "thop", "torch_pruning")
"""What nothing here needs: readers of other data, pages, counters that cross-check ours, another graph."""
ONNX = ("onnx", "onnxruntime", "onnxscript")

PRUNE = ("l1-filters", "net.pt", "--sparsity", "0.5", "--quiet", "-o")
COMMANDS = {
    "--help": (("--help",), ("torch", "numpy", "scipy", "rich", *ONNX, *OTHERS)),
    "new": (("new", "lenet5", "-o", "net.pt"), ("scipy", "rich", *TRACING, *ONNX, *OTHERS)),
    "verify": (("verify", "net.pt", "net.pt", "--quiet"), ("scipy", "rich", *TRACING, *ONNX, *OTHERS)),
    "show": (("show", "net.pt"), (*ONNX, *OTHERS)),
    "prune": ((*PRUNE, "small.safetensors"), (*ONNX, *OTHERS)),
    "prune to .onnx": ((*PRUNE, "small.onnx"), OTHERS),
}
"""Name -> a command, and the modules that it must not import; in an order in which what comes later imports more."""

IN_TURN = """
import json, sys
from compressor import cli
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as end:
        print(json.dumps([name, end.code, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[int, set[str]]]:
    """Command -> its exit code, and all modules that are there after it, in a process that runs one after the other."""
    arguments = json.dumps({name: given for name, (given, _) in COMMANDS.items()})
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("startup"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(said) == len(COMMANDS), done.stderr
    return {name: (code, set(modules)) for name, code, modules in said}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_nothing_that_it_does_not_use(name: str, ended: dict[str, tuple[int, set[str]]]) -> None:
    code, modules = ended[name]
    assert code == 0
    assert modules.isdisjoint(COMMANDS[name][1]), sorted(modules.intersection(COMMANDS[name][1]))


QUESTIONS = {
    "no such file": ("snapit", "none.pt", "--sparsity", "0.5", "-o", "x.pt"),
    "no such plan": ("apply", "none.json", "there.pt", "-o", "x.pt"),
    "no such sweep": ("sweep", "none.toml", "-o", "folder"),
    "nothing to compare": ("verify", "there.pt", "none.onnx"),
    "nothing to measure": ("bench", "there.pt", "none.onnx"),
    "nothing to show": ("show", "none.pt"),
    "nothing to train": ("train", "none.pt", "-o", "x.pt"),
    "no such data": ("prune", "there.pt", "--sparsity", "0.5", "-o", "x.pt", "--data", "./none"),
    "an unknown suffix": ("snapit", "there.pt", "--sparsity", "0.5", "-o", "x.foo"),
    "no such folder": ("new", "lenet5", "-o", "none/x.pt"),
    "a missing option": ("l-obs", "there.pt", "--sparsity", "0.5"),
    "no target": ("snapit", "there.pt", "-o", "x.pt"),
    "a number that is none": ("snapit", "there.pt", "--sparsity", "half", "-o", "x.pt"),
    "a number out of its range": ("hrank", "there.pt", "--sparsity", "93", "-o", "x.pt"),
    "a method's number": ("snapit", "there.pt", "--sparsity", "0.5", "--steps", "-1", "-o", "x.pt"),
    "a recipe's number": ("train", "there.pt", "--epochs", "-1", "-o", "x.pt"),
    "no such option": ("obd", "there.pt", "--sparsty", "0.5", "-o", "x.pt"),
    "no such command": ("snapt", "there.pt"),
    "no such method": ("prune", "there.pt", "--method", "snapt", "--sparsity", "0.5", "-o", "x.pt"),
    "nothing": (),
}


def test_what_needs_no_torch_is_answered_without(tmp_path: Path) -> None:
    """Importing it takes a second and a half, in which nobody should wait for a typing error."""
    (tmp_path / "there.pt").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(QUESTIONS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    ends = {name: (code, modules) for name, code, modules in map(json.loads, re.findall(r"^\[.*\]$", done.stderr, re.M))}
    assert ends.keys() == QUESTIONS.keys(), done.stderr
    assert not [name for name, (code, _) in ends.items() if not code]
    assert not [name for name, (_, modules) in ends.items() if "torch" in modules or "numpy" in modules]


def test_what_prunes_is_really_seen(ended: dict[str, tuple[int, set[str]]]) -> None:
    """The other way round: the lists above name modules as they are called today."""
    assert {"torch", "scipy", *TRACING, *ONNX} <= ended["prune to .onnx"][1]


def test_pages_are_made_without_torch() -> None:
    code = "import sys, compressor.benchmarks.render; print(sorted({'torch', 'matplotlib', 'scipy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", networks.names())
def test_an_image_of_the_papers_own_size_fits(name: str) -> None:
    """So that it needs no check, which would import what torch traces with."""
    model, origin = networks.skeleton(name)
    networks._check_size(name, model, origin.input_shape)
    assert model.training


def test_the_bare_script_exports_the_same_network() -> None:
    ours, bare = networks.build("lenet5").eval(), bare_export.lenet5().eval()
    bare.load_state_dict(dict(zip(bare.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(ours(x), bare(x))


def test_a_pair_is_measured_in_turn_and_said_in_a_line(tmp_path: Path) -> None:
    code = "import sys; open('order', 'a').write(sys.argv[1])"
    pair = Pair([sys.executable, "-c", code, "a"], [sys.executable, "-c", code, "b"], 1.3)
    found = {"bar": pair.bar} | measured(pair, tmp_path, rounds=2)
    assert (tmp_path / "order").read_text() == "ababab"  # the first two warm up
    assert [len(found[who][kind]) for who in ("bare", "ours") for kind in ("wall_s", "cpu_s")] == [2, 2, 2, 2]
    assert min(found["ours"]["wall_s"]) > 0
    low, middle, high = ratios({"ours": {"wall_s": [3.0, 1.0]}, "bare": {"wall_s": [1.0, 1.0]}}, "wall_s")
    assert (low, middle, high) == (1.5, 2.0, 2.5)
    assert "at most 1.3 wanted" in summary({"load": [0.5, 1.0], "pairs": {"new": found}})
