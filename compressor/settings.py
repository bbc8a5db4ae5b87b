"""What a user may ask, declared once.

From these fields, from `Recipe` and from a method's own come the flags of the command line, the keywords of Python, the keys of
a sweep's file, the report's record, what a resumed run must agree in, and the tables in the documentation. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from compressor.errors import WrongUsage
from compressor.options import Declared, names_of, option, options_of, spelled

Unit = Literal["node", "weight"]
"""What a method scores, and removes."""

Resource = Literal["nodes", "macs", "parameters", "bytes"]
"""What a pruning counts."""

Attention = Literal["heads", "dims"]
"""What the nodes of an attention are: whole heads, or the dimensions inside all of its heads."""

Ablation = Literal["shuffle", "reinit", "invert"]
"""`shuffle`: as many, but random ones of each layer. `reinit`: the small network with fresh weights. `invert`: the best go."""

Stage = Literal["before", "during", "after"]
"""When the pruning events come: before the first epoch of training, one by one between epochs, or at a late epoch."""

Allocation = Literal["global", "layer", "isomorphic", "sensitivity"]
"""How much goes from which layer: as one ranking of all has it, the same share of each, one for each kind, or as measured."""

Scope = Literal["global", "layer"]
"""What is ranked together: all nodes, or those of each layer."""

GatePlace = Literal["read", "post-norm", "pre-norm"]
"""Where the gates of an elasticity are: at the readers, behind the norm, before it."""

Aggregate = Literal["signed", "batch", "sample"]
"""How gradients of samples are added: with their signs, or as magnitudes of each batch, or of each sample."""

DATA_FORMS = "a folder of class folders or parquet files, a .npz file, file.py:factory, a data set of the hub, or `digits`"

State = Literal["fresh", "trained"]
"""What a network is, before it is pruned."""

Repairing = Literal["none", "norms", "least-squares"]
"""What is done to what is left, without training: nothing, its norms corrected, or its layers refitted, too."""

Amount = str | float
"""How much is left: below 1 a fraction of the dense network's, else that many; `0.1`, `40M`, `500KB`."""

SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Budget:
    """What is left of a resource when the pruning is done.

    Attributes:
        unit: what is counted.
        keep: how much is left: below 1 a fraction of the dense network's, else that many.
    """

    unit: Resource
    keep: float

    def __post_init__(self) -> None:
        if self.unit not in get_args(Resource) or not 0 < self.keep < math.inf:
            raise WrongUsage(f"a budget of {self.keep:g} {self.unit}: give a fraction that is left, or how many, of nodes ...")

    @classmethod
    def sparsity(cls, removed: float) -> Budget:
        """The budget that a node sparsity is."""
        return cls("nodes", 1 - removed)

    @classmethod
    def parse(cls, unit: Resource, text: Amount) -> Budget:
        """Read `0.1`, `40M` or `500KB`; a number is taken as it is.

        Raises:
            WrongUsage: it is written otherwise.
        """
        if not isinstance(text, str):
            return cls(unit, float(text))
        found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([KMG]?(?:I?B)?)", text.strip(), flags=re.IGNORECASE)
        suffix = found[2].upper() if found else "?"
        if found is None or suffix not in SUFFIXES or (suffix.endswith("B") and unit != "bytes") or float(found[1]) == 0:
            example = "500KB" if unit == "bytes" else "40M"
            raise WrongUsage(
                f"{text!r} is no budget of {unit}: write a fraction that is left, such as 0.1, or how many: {example}"
            )
        amount = float(found[1]) * SUFFIXES[suffix]
        if amount >= 1 and not suffix and amount < 100 and "." in found[1]:
            raise WrongUsage(f"{text!r} of the {unit}: a fraction that is left lies between 0 and 1")
        return cls(unit, amount)

    def removed_share(self, total: float) -> float:
        """The share of `total` that goes.

        Raises:
            WrongUsage: more is asked to be left than there is.
        """
        left = self.keep if self.keep < 1 else self.keep / total
        if left > 1:
            raise WrongUsage(f"{self.keep:,.0f} {self.unit} are asked to be left, the network has {total:,.0f}; ask for less")
        return 1 - left


def check_sparsity(sparsity: float) -> None:
    """Refuse what is no fraction in [0, 1).

    Raises:
        WrongUsage: with the likely intention.
    """
    if 1 < sparsity < 100:
        raise WrongUsage(f"sparsity {sparsity:g} is a fraction removed, in [0, 1): did you mean {sparsity / 100:g}?")
    if not 0 <= sparsity < 1:
        raise WrongUsage(f"sparsity {sparsity:g} is not in [0, 1): it is the fraction removed, such as 0.93")


TARGETS: Mapping[str, Resource] = {
    "target_nodes": "nodes", "target_macs": "macs", "target_params": "parameters", "target_size": "bytes",
}  # fmt: skip
"""Option -> what it counts: each stands in place of a sparsity."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Declared):
    """What is asked of a pruning, whatever the method: one target, and what else may go or must stay."""

    sparsity: float | None = option(None, "fraction of the nodes (or weights) removed, in [0, 1)")
    target_macs: Amount | None = option(
        None, "multiply-adds left, in place of a sparsity: a fraction, or how many, 40M", metavar="LEFT"
    )
    target_params: Amount | None = option(None, "parameters left, likewise: 0.05, 500K", metavar="LEFT")
    target_size: Amount | None = option(None, "bytes of tensors left, likewise: 0.05, 500KB", metavar="LEFT")
    target_nodes: Amount | None = option(None, "nodes left, likewise: 0.3, 200", metavar="LEFT")
    allocate: Allocation | None = option(
        None, "how much goes from which layer: by one ranking, as much of each, one ranking for each kind, or by measurement"
    )
    sensitivity: str | None = option(
        None, "allocate by the curves in this file of `compress sensitivity`, in place of measuring them", metavar="FILE"
    )
    per: Resource | None = option(None, "rank nodes by their score per multiply-add, parameter or byte that goes with them")
    round_to: int | Literal["auto"] = option(
        1, "widths are multiples of N, of N/2 where few stay; auto is fastest", least=1, most=1024, metavar="N|auto"
    )
    floor: int = option(1, "nodes that every group keeps", least=1)
    freeze: tuple[str, ...] = option((), "keep all nodes of it; a pattern such as features.*; may be repeated", metavar="LAYER")
    only: tuple[str, ...] = option((), "in place of that: only these may lose nodes", metavar="LAYER")
    attention: Attention = option("heads", "nodes of an attention: whole heads, or the dimensions inside all of them")
    calibrate_bn: bool = option(False, "first give batch norms the statistics of the data")
    allow_disconnect: bool = option(False, "remove weights also where the output then no longer depends on the input")
    ablation: Ablation | None = option(None, "run a control: random ones, fresh weights, the best go")
    state: State | None = option(None, "what the network is; else its checkpoint, its norms and its weights say so")
    repair: Repairing | None = option(
        None, "make up for what went, without training: correct norms, or also refit layers; `prune` chooses, methods do none"
    )
    repair_samples: int = option(1024, "samples that a repair looks at", least=1)

    def __post_init__(self) -> None:
        """Raises WrongUsage also where several targets are given, or one that is none."""
        super().__post_init__()
        given = [name for name in ("sparsity", *TARGETS) if getattr(self, name) is not None]
        if len(given) > 1:
            raise WrongUsage(f"{' and '.join(map(spelled, given))}: give one of them")
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        self.budget  # noqa: B018 - it is read, so that a mistake shows now

    @property
    def by_sensitivity(self) -> bool:
        """Whether curves say how much goes from which layer."""
        return self.allocate == "sensitivity" or self.sensitivity is not None

    @property
    def repairs(self) -> bool:
        """Whether anything is to be done to what is left."""
        return self.repair not in (None, "none")

    @property
    def budget(self) -> Budget | None:
        """What is to be left, where that is not said by a sparsity."""
        given = ((unit, getattr(self, name)) for name, unit in TARGETS.items())
        return next((Budget.parse(unit, amount) for unit, amount in given if amount is not None), None)

    @property
    def has_target(self) -> bool:
        """Whether it is said how much goes."""
        return self.sparsity is not None or self.budget is not None

    @property
    def share(self) -> float:
        """The sparsity; half where there is no target at all."""
        return 0.5 if not self.has_target else self.sparsity or 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any], budget: Budget | None = None) -> Pruning:
        """From keywords, and a budget that may stand among them.

        Raises:
            WrongUsage: as the class, or where the budget is none.
        """
        if budget is None:
            return cls(**given)
        if not isinstance(budget, Budget):
            raise WrongUsage(f"budget={budget!r}: must be a Budget; or give {spelled('target_macs', '0.3')}")
        aimed: dict[str, Any] = {name: budget.keep for name, unit in TARGETS.items() if unit == budget.unit}
        return cls(**given, **aimed)


@dataclass(frozen=True, kw_only=True)
class Searching(Declared):
    """What is asked of a search for the smallest network, in place of a target."""

    max_drop: float | None = option(
        None, "search for the smallest network that loses at most so many points of accuracy, in place of a target", least=0.0,
        metavar="POINTS",
    )  # fmt: skip
    minimise: Resource = option("macs", "what the search makes small")
    val_data: str | None = option(
        None, "judge by its test part; else by a part of the training data that is kept aside", metavar="DATA"
    )
    max_minutes: float | None = option(None, "begin no further step of the search after that", least=0.0)


def refuse_without_search(given: Collection[str]) -> None:
    """Refuse what would have no effect without a search.

    Args:
        given: names of what was given.
    Raises:
        WrongUsage: there is something.
    """
    for name in names_of(Searching):
        if name in given and name != "max_drop":
            raise WrongUsage(f"{spelled(name)} is for a search: give {spelled('max_drop', 1.0)}, too, or leave it out")


def refuse_without_method(given: Sequence[str]) -> None:
    """Refuse what would have no effect on a training that prunes nothing.

    Args:
        given: names of what was given for a pruning.
    Raises:
        WrongUsage: there is something.
    """
    if given:
        verb, it = ("is", "it") if len(given) == 1 else ("are", "them")
        raise WrongUsage(f"{', '.join(map(spelled, given))} {verb} for pruning: name a {spelled('method')}, or leave {it} out")


@dataclass(frozen=True, kw_only=True)
class Portions(Declared):
    """How a pruning is spread over a training."""

    portions: int = option(1, "prune in so many portions, with training between them", least=1, most=1000)


def refuse_without_teacher(given: Collection[str]) -> None:
    """Refuse what would have no effect on a training without a teacher.

    Args:
        given: names of what was given.
    Raises:
        WrongUsage: there is something.
    """
    for name in ("temperature", "teacher_share"):
        if name in given:
            raise WrongUsage(f"{spelled(name)} is for a teacher: name a {spelled('teacher')}, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Timing(Portions):
    """When the events of a pruning come, in a training."""

    stage: Stage | None = option(None, "when to prune; the method's own choice by default")
    interval: int | None = option(None, "epochs between events of stage during; 4 by default", least=1)
    prune_at: int | None = option(None, "epoch of the events of stage after; 7/8 of all by default", least=0)


@dataclass(frozen=True, kw_only=True)
class Teaching(Declared):
    """What a training learns from beside the labels."""

    teacher: str | None = option(
        None, "a network whose outputs are learnt, too: dense, the network as it came, or a file", metavar="dense|FILE"
    )
    temperature: float = option(4.0, "that the logits of both are divided by", least=0.01)
    teacher_share: float = option(0.9, "of the loss, from the teacher; the rest is from the labels", least=0.0, most=1.0)


@dataclass(frozen=True, kw_only=True)
class Scoring(Declared):
    """How much of the data is scored."""

    samples: int = option(2560, "samples scored at each event", least=1)


@dataclass(frozen=True, kw_only=True)
class MicroBatches(Scoring):
    """How the data are scored where they are not trained on."""

    score_batch: int = option(64, "samples scored together; data from file.py has batches of its own", least=1)


@dataclass(frozen=True, kw_only=True)
class Seed(Declared):
    """Where random numbers begin."""

    seed: int = option(0, "of all random draws", least=0, most=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class Machine(Seed):
    """What it runs on."""

    device: str = option("cpu", "cpu or cuda")
    threads: int | None = option(None, "threads of torch; all cores by default", least=1, most=1024)


@dataclass(frozen=True, kw_only=True)
class Json(Declared):
    """For machines."""

    json: bool = option(False, "print the report as JSON on stdout")


@dataclass(frozen=True, kw_only=True)
class Screen(Json):
    """What is said where."""

    quiet: bool = option(False, "print nothing but errors")


@dataclass(frozen=True, kw_only=True)
class Files(Declared):
    """What is written."""

    outputs: tuple[Path, ...] = option((), ".onnx, .safetensors, .pt2 or .pt; may be repeated", flag="-o/--output", needed=True)
    report: Path | None = option(None, "write the report as JSON")
    opset: int | None = option(None, "of .onnx files; the exporter's own choice by default", least=1)

    def __post_init__(self) -> None:
        """Raises WrongUsage also for an opset without an ONNX file."""
        super().__post_init__()
        if self.opset is not None and not any(path.suffix == ".onnx" for path in self.outputs):
            raise WrongUsage(f"{spelled('opset', self.opset)} is for .onnx files, and none is written; leave it out")


@dataclass(frozen=True, kw_only=True)
class FilesAndPlan(Files):
    """What a pruning writes."""

    plan: Path | None = option(None, "write what was kept as JSON, for `compress apply`")


@dataclass(frozen=True, kw_only=True)
class Building(Declared):
    """What a builder is called with, and what its network takes."""

    arguments: tuple[str, ...] = option((), "argument of the builder, repeatable", flag="--network-arg", metavar="KEY=VALUE")
    inputs: tuple[str, ...] = option(
        (), "what the network takes, without the batch: 3x224x224, ids:int64:128; may be repeated", flag="--input",
        metavar="[NAME:][DTYPE:]SHAPE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading(Building):
    """How a network is read that someone else may have saved."""

    network: str | None = option(
        None, "of a state dict's network: vgg16, torchvision:resnet50, timm:..., package.module:factory, file.py:factory",
        metavar="BUILDER",
    )  # fmt: skip
    image_size: int | None = option(None, "height and width of the input, in place of the network's own", least=1)
    key: str | None = option(None, "entry of the file that holds the weights; state_dict, model, ema are found without")
    trust_pickle: bool = option(False, "run the code that the file names; never for a file from elsewhere")


@dataclass(frozen=True, kw_only=True)
class Normalisation(Declared):
    """How images come to the network."""

    mean: tuple[float, ...] | None = option(None, "is taken off images in [0, 1] first", metavar="X[,X...]")
    std: tuple[float, ...] | None = option(None, "images are divided by it; per channel or one", metavar="X[,X...]")


@dataclass(frozen=True, kw_only=True)
class Data(Declared):
    """What the network is for."""

    data: str | None = option(None, "folder, .npz, name on the Hugging Face hub, file.py:factory, or `digits`", metavar="DATA")


@dataclass(frozen=True, kw_only=True)
class Task(Data):
    """What the network is for, and what is right."""

    loss: str = option("cross-entropy", "cross-entropy, bce, mse, nll-logits or file.py:function")
    metric: str | None = option(
        None, "judge networks by it: accuracy, top5, perplexity, or file.py:function of (outputs, batch)", metavar="METRIC"
    )


@dataclass(frozen=True, kw_only=True)
class Running(Declared):
    """Where a training keeps its state."""

    folder: Path | None = option(None, "folder of a training's state and history; OUT.run by default", flag="--run")
    resume: bool = option(False, "go on where the training stopped")


SHARED: tuple[type, ...] = (
    Pruning, Searching, Timing, Teaching, MicroBatches, Machine, Screen, FilesAndPlan, Reading, Normalisation, Task, Running,
)  # fmt: skip
"""All that may be asked whatever the method."""

AUTO = "auto"
"""In place of a method's name: the one that suits the network's state."""

DENSE = "dense"
"""In place of a teacher: the network as it came."""

TAKEN = frozenset(names_of(*SHARED)) | {
    "model", "method", "pruning", "budget", "forward", "example_inputs", "inplace", "progress", "recipe", "test", "scoring",
    "colour", "keep_zeros", "on_epoch", "options", "finetune", "plots", "tensorboard", "train_zeros",
}  # fmt: skip
"""Names that no field of a method may have: they mean something else beside it."""

FLAGS: Mapping[str, str] = {o.name: o.flag.rpartition("/")[2] for owner in SHARED for o in options_of(owner) if o.flag}
"""Options whose flag has another name."""


def as_flag(name: str, value: object = None) -> str:
    """As the command line has it: `--round-to 8`."""
    if name == "keep_zeros":  # which is a switch of the other sense there
        return "--train-zeros"
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    return flag if value is None or value is True else f"{flag} {value}"


def as_key(name: str, value: Any = None) -> str:
    """As a sweep's file has it: `round_to = 8`."""
    key = FLAGS.get(name, name).removeprefix("--").replace("-", "_")
    return key if value is None else f"{key} = {value!r}"


def table(*owners: type) -> str:
    """The options of dataclasses as a Markdown table: as flags, and as Python and a sweep call them."""
    lines = ["| Flag | In Python and in a sweep | What | Default |", "| --- | --- | --- | --- |"]
    for o in (o for owner in owners for o in options_of(owner)):
        values = f" {'|'.join(map(str, o.choices))}" if o.choices and not o.open else f" {o.metavar}" if o.metavar else ""
        flag = f"{as_flag(o.name)}{values}".replace("|", "\\|")
        default = "" if o.default in (None, ()) or o.default is False else f"`{o.default}`"
        lines.append(f"| `{flag}` | `{o.name}` | {o.help} | {default} |")
    return "\n".join(lines)
