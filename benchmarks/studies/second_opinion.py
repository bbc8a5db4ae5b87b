"""Our graph and torch-pruning's on every network of torchvision: `python -m compressor.benchmarks.studies.second_opinion`.

A node is the set of all tensor entries that live or die with it. One row per network in `benchmarks/results/`;
rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from compressor.benchmarks.studies.results import RESULTS, write
from compressor.benchmarks.studies.zoo import torchvision_networks
from compressor.coupling.label_flow import Traced
from compressor.coupling.torch_pruning_graph import by_torch_pruning
from compressor.errors import CompressError
from compressor.system.environment import environment
from compressor.types.structure import Structure

SECONDS = 120
SAID = {
    "same": "the same nodes",
    "finer": "all of torch-pruning's nodes are ours, and ours has more that may go",
    "incomplete": "torch-pruning's nodes lack entries that ours have, and nothing else differs",
    "different": "they differ otherwise",
    "cannot": "torch-pruning cannot",
    "slow": f"torch-pruning took more than {SECONDS} s",
}

Node = frozenset[tuple[str, int, int]]


def nodes_of(structure: Structure) -> set[Node]:
    """Each prunable node as the (tensor, dimension, index) that go with it."""
    return {
        frozenset((s.tensor, s.dim, int(i)) for s in group.slices if s.role != "size" for i in s.index[n])
        for group in structure.prunable
        for n in range(group.width)
    }


def compared(ours: set[Node], theirs: set[Node]) -> dict[str, Any]:
    """How two graphs of one network agree."""
    row: dict[str, Any] = {"ours": len(ours), "theirs": len(theirs), "common": len(ours & theirs)}
    if ours == theirs:
        return row | {"outcome": "same"}
    if theirs < ours:
        return row | {"outcome": "finer"}
    of_entry = {entry: node for node in ours for entry in node}
    lacking, otherwise = set(), 0
    for node in theirs - ours:
        mine = next((of_entry[entry] for entry in node if entry in of_entry), None)
        if mine is not None and node < mine:
            lacking |= {tensor.rpartition(".")[0] or tensor for tensor, _, _ in mine - node}
        else:
            otherwise += 1
    outcome = "different" if otherwise else "incomplete"
    return row | {"outcome": outcome, "otherwise": otherwise, "lacking": sorted(lacking)[:6]}


def look(name: str, connection: Connection) -> None:
    """What a process of its own does."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs = torchvision_networks()[name]()
    model.eval()
    ours = nodes_of(Traced(model, inputs).structure())
    try:
        theirs = nodes_of(by_torch_pruning(model, inputs))
    except CompressError as error:
        connection.send({"outcome": "cannot", "ours": len(ours), "reason": str(error).partition("trace it ")[2]})
    else:
        connection.send(compared(ours, theirs))


def row_of(name: str) -> dict[str, Any]:
    """One network's row, from a process that is ended when it takes too long."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process, started = context.Process(target=look, args=(name, theirs)), time.perf_counter()
    process.start()
    theirs.close()
    try:
        row = mine.recv() if mine.poll(SECONDS) else {"outcome": "slow"}
    except EOFError:
        row = {"outcome": "different", "reason": "the process died"}
    process.kill()
    process.join()
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    """Fill what is missing, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="these networks")
    parser.add_argument("--output", type=Path, default=RESULTS / "second_opinion.json")
    arguments = parser.parse_args()
    held = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {"rows": {}}
    for name in arguments.only or torchvision_networks():
        if name not in held["rows"]:
            held["rows"][name] = row_of(name)
            print(name, held["rows"][name], flush=True)
            held["environment"] = environment()
            write(held, arguments.output)
    for outcome, number in Counter(row["outcome"] for row in held["rows"].values()).most_common():
        print(f"{number}: {SAID[outcome]}")


if __name__ == "__main__":
    main()
