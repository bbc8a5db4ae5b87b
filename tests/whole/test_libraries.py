"""Networks of torchvision and timm, saved whole and as state dicts, where those libraries can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = """
import sys
import torch
try:
    import torchvision
except RuntimeError:  # a CPU-only torch may lack its compiled operators: declare them
    for module in [m for m in sys.modules if m.startswith("torchvision")]:
        del sys.modules[module]
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
import timm
"""

ROUND = """
import sys
from compressor import compress, load, save
from compressor.types.structure import InputSpec

kind, name, folder = sys.argv[1:]
torch.manual_seed(0)
model = torchvision.models.get_model(name, weights=None) if kind == "torchvision" else timm.create_model(name)
spec = [InputSpec((3, 64, 64))]
torch.save(model.state_dict(), f"{folder}/state.pth")
torch.save(model, f"{folder}/whole.pth")
loaded = [load(f"{folder}/state.pth", network=f"{kind}:{name}", inputs=spec), load(f"{folder}/whole.pth", inputs=spec)]
for other in loaded:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
data = [(torch.randn(4, 3, 64, 64), torch.randint(1000, (4,)))]
for other in loaded:
    result = compress(other, "snap", data, 0.3)
    assert all(result.summary.proofs) and abs(result.summary.reached - 0.3) < 0.01
    save(result.model, f"{folder}/small.pt")
    again = load(f"{folder}/small.pt").eval()
    assert torch.equal(again(data[0][0]), result.model.eval()(data[0][0]))
print("done")
"""


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def libraries() -> None:
    tried = python(IMPORT)
    if tried.returncode:
        pytest.skip(f"torchvision and timm cannot be imported: {tried.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("torchvision", "resnet18"), ("torchvision", "mobilenet_v3_small"), ("timm", "resnet18")],
)
def test_saved_whole_and_as_state_dict(kind: str, name: str, libraries: None, tmp_path: Path) -> None:
    done = python(IMPORT + ROUND, kind, name, tmp_path)
    assert done.stdout == "done\n", done.stderr[-2000:]


ZOO = """
import sys
import torch
from compressor.benchmarks.studies.zoo import FAMILIES, row_of

family, name = sys.argv[1:]
row = row_of(FAMILIES[family]()[name])
assert row["graph"] == "label flow", row
assert row["equivalent"] and row["open"] > 0.99 and abs(row["sparsity"] - 0.5) < 0.01, row
print("done")
"""


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("torchvision", "googlenet"),
        ("torchvision", "swin_t"),
        ("timm", "vit_tiny_patch16_224"),
        ("timm", "xcit_nano_12_p16_224"),
        ("transformers", "BertForSequenceClassification"),
        ("transformers", "ViTForImageClassification"),
    ],
)
def test_the_zoo_is_pruned_and_proven(family: str, name: str, libraries: None) -> None:
    """Some of `make zoo`: auxiliary heads, windows, attention, sizes taken from the input, token embeddings."""
    if family == "transformers":
        pytest.importorskip("transformers")
    done = python(ZOO, family, name)
    assert done.stdout == "done\n", done.stderr[-2000:]


ROUND_OF_HEADS = """
import sys
import torch
from compressor import compress, load, save

timm = sys.modules["timm"]
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224")
torch.save(model.state_dict(), f"{sys.argv[1]}/vit.pth")
loaded = load(f"{sys.argv[1]}/vit.pth", network="timm:vit_tiny_patch16_224").eval()
x = torch.randn(2, 3, 224, 224)
small = compress(loaded, "random", None, 0.5, example_inputs=x).model.eval()
save(small, f"{sys.argv[1]}/small.safetensors")
again = load(f"{sys.argv[1]}/small.safetensors").eval()
assert [b.attn.num_heads for b in again.blocks] == [b.attn.num_heads for b in small.blocks] != [3] * 12
assert torch.equal(again(x), small(x))
print("done")
"""


def test_a_vision_transformer_keeps_its_heads_in_a_file(libraries: None, tmp_path: Path) -> None:
    done = python(IMPORT + ROUND_OF_HEADS, tmp_path)
    assert done.stdout == "done\n", done.stderr[-2000:]


BOTH_GRAPHS = """
import sys
import torch
from compressor.benchmarks.studies.zoo import import_torchvision
from compressor.coupling.label_flow import Traced
from compressor.coupling.torch_pruning_graph import by_torch_pruning

model = import_torchvision().models.get_model(sys.argv[1], weights=None).eval()
x = (torch.randn(1, 3, 224, 224),)
found = []
for structure in (Traced(model, x).structure(), by_torch_pruning(model, x)):
    nodes = set()
    for group in structure.groups:
        for n in range(group.width):
            places = frozenset((s.tensor, s.dim, int(i)) for s in group.slices for i in s.index[n])
            nodes.add((places, group.frozen is None))
    found.append(nodes)
assert found[0] == found[1], [sorted(map(str, found[0] ^ found[1]))[:3]]
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "densenet121", "mnasnet0_5", "alexnet"]
)
def test_both_graphs_agree_on_networks_of_others(name: str, libraries: None) -> None:
    done = python(BOTH_GRAPHS, name)
    assert done.stdout == "done\n", done.stderr[-2000:]
