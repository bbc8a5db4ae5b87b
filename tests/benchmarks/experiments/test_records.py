"""Trials as files and as lines: what is committed says what the records said, and a sweep goes on from either."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from compressor.benchmarks.experiments.documents import trial_of
from compressor.benchmarks.experiments.records import done_lines, read_record, read_study, study_text
from compressor.benchmarks.experiments.sweep import read_sweep, run_sweep
from compressor.benchmarks.experiments.tables import document_of
from compressor.benchmarks.render import render
from compressor.errors import BadInput
from tests.command import run
from tests.damage import JUNK, places

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
RESULTS = ROOT / "benchmarks" / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/study.jsonl"))

PLACE = {
    "python": "3",
    "system": "y",
    "packages": {"torch": "2"},
    "commit": "z",
    "device": "cpu",
    "processor": "x",
    "threads": 1,
}
SIZES = ("macs", "parameters", "weights", "tensor_bytes")


def record_of(label: str, seed: int, **changes) -> dict:
    """A record as a sweep writes it, of a trial with the method snip, or of the dense network."""
    asked = {"network": "mlp5", "data": "x/mnist", "label": label, "seed": seed}
    trial = trial_of(asked if label == "dense" else {**asked, "method": "snip", "sparsity": 0.9})
    epoch = {"steps": 5, "train_seconds": 1.5, "train_loss": 0.3, "train_accuracy": 0.8}
    training = {
        "macs": 100,
        "seconds": 3.0,
        "stage": trial.method and "before",
        "test": {"accuracy": 0.9 + seed / 100, "loss": 0.1},
        "history": [{**epoch, "test_accuracy": accuracy} for accuracy in (0.8, 0.9)],
    }
    document = {"training": training, "environment": PLACE, "notes": ["Images were grey."]}
    if trial.method:
        sizes = {name: {"dense": 10, "small": 4} for name in SIZES}
        widths = {"layers.0": {"dense": 8, "small": 3}}
        document |= {
            "method": trial.method,
            **sizes,
            "node_sparsity": {"reached": 0.6},
            "weight_sparsity": 0.9,
            "masks": {"left": 4},
        }
        document |= {"widths": widths}
    else:
        document |= {"cost": dict.fromkeys(SIZES, 10)}
    record = {"schema": 1, "key": trial.key, "trial": trial.as_dict(), "status": "done", "document": document}
    return copy.deepcopy(record) | changes


def failure(label: str, seed: int) -> dict:
    record = record_of(label, seed)
    return {name: record[name] for name in ("schema", "key", "trial")} | {"status": "failed", "error": "out of memory"}


def put(record: dict, folder: Path) -> Path:
    path = folder / "trials" / f"{trial_of(record['trial']).name}-{record['key']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A sweep's folder: two kinds of two seeds, on two machines, a failure, times that could not be measured."""
    folder = tmp_path / "results"
    elsewhere = record_of("SNIP", 1, bench_failed="no ONNX Runtime here", builder="mlp5")
    elsewhere["document"]["environment"] |= {"processor": "another", "cores": 4}
    for record in (record_of("dense", 0), record_of("dense", 1), record_of("SNIP", 0), elsewhere, failure("SNIP", 2)):
        put(record, folder)
    return folder


PAGES = ("-o", "page.md", "-o", "page.html", "-o", "page.json")


def test_a_study_says_what_the_records_said(results: Path) -> None:
    """One command makes it; then the records may go, and the folder or the file alone gives the same pages."""
    folder = results.parent
    files = {json.loads(path.read_text())["key"]: path.read_bytes() for path in (results / "trials").iterdir()}
    done = run("report", "results", "-o", "results/study.jsonl", *PAGES, cwd=folder)
    assert done.returncode == 0, done.stderr
    pages = {name: (folder / name).read_text() for name in PAGES[1::2]}
    assert "| SNIP | 0.9 | 2 | 90.50 ± 0.98 (t: 6.35)" in pages["page.md"]
    assert "Failed: mlp5 SNIP 0.9 seed 2" in pages["page.md"]
    assert "Times and memory were not measured: no ONNX Runtime here (1 of 4 trials)" in pages["page.md"]
    assert "| processor | another; x |" in pages["page.md"] or "| processor | x; another |" in pages["page.md"]

    head, *lines = map(json.loads, (results / "study.jsonl").read_text().splitlines())
    assert (head["schema"], head["kind"], head["title"], len(head["environments"])) == (1, "study", "results", 2)
    assert {line["key"]: line["sha256"] for line in lines} == {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
    snip = next(line for line in lines if (line["trial"]["label"], line["trial"]["seed"]) == ("SNIP", 0))
    said = {"network": "mlp5", "data": "x/mnist", "label": "SNIP", "seed": 0, "method": "snip", "sparsity": 0.9}
    assert snip["trial"] == said, "what goes without saying is not said"
    assert (snip["steps"], snip["test_accuracies"], snip["widths"]) == (10, [0.8, 0.9], [3])

    for path in (results / "trials").iterdir():
        path.unlink()
    (folder / "elsewhere.jsonl").write_bytes((results / "study.jsonl").read_bytes())
    for place in ("results", "elsewhere.jsonl"):
        for name in pages:
            (folder / name).unlink()
        done = run("report", place, *PAGES, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert {name: (folder / name).read_text() for name in pages} == pages, place
    assert study_text(read_study(results)) == (results / "study.jsonl").read_text()
    assert read_study(results, "Digits")["title"] == "Digits"


def test_what_only_a_sweep_has_is_refused_of_other_reports(results: Path) -> None:
    folder = results.parent
    assert run("report", "results", "-o", "page.json", cwd=folder).returncode == 0
    done = run("report", "page.json", "-o", "study.jsonl", cwd=folder)
    assert (done.returncode, done.stderr) == (2, "compress: study.jsonl: unknown suffix .jsonl; choose .html, .md, .json\n")
    again = run("report", "page.json", "-o", "again.md", "--title", "Digits", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "again.md").read_text().startswith("# Digits\n")
    bench = str(RESULTS / "bench_vgg16.json")
    done = run("report", bench, "-o", "bench.md", "--title", "Digits", cwd=folder)
    assert done.returncode == 2
    assert "--title is for the page of a sweep" in done.stderr
    assert not (folder / "bench.md").exists()


def test_records_stand_beside_lines(results: Path) -> None:
    """A trial counts once: by its record, unless that one failed where the line did not."""
    (results / "study.jsonl").write_text(study_text(read_study(results)))
    better = record_of("SNIP", 0)
    better["document"]["training"]["test"]["accuracy"] = 0.95
    put(better, results)
    put(failure("dense", 0), results)
    put(record_of("SNIP", 2), results)
    put(record_of("SNIP", 3), results)
    study = read_study(results)
    accuracies = {(line["trial"]["label"], line["trial"]["seed"]): line["measures"]["accuracy"] for line in study["trials"]}
    assert accuracies == {
        ("dense", 0): 0.9, ("dense", 1): 0.91, ("SNIP", 0): 0.95, ("SNIP", 1): 0.91, ("SNIP", 2): 0.92, ("SNIP", 3): 0.93,
    }  # fmt: skip
    assert study["failed"] == []


SWEEP = 'data = "digits"\nnetworks = ["lenet5"]\nmethods = ["dense", "snap"]\nsparsities = [0.5]\nrecipe = { epochs = 1 }\n'


def test_a_sweep_does_not_repeat_what_a_line_says(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    trials = read_sweep(tmp_path / "sweep.toml")
    for trial in trials:
        put(record_of(trial.label, 0, key=trial.key, trial=trial.as_dict()), tmp_path / "results")
    results = tmp_path / "results"
    (results / "study.jsonl").write_text(study_text(read_study(results)))
    for path in (results / "trials").iterdir():
        path.unlink()
    assert done_lines(results) == {trial.key for trial in trials}
    outcome = run_sweep(trials, results, tmp_path)
    assert (outcome.done, outcome.skipped, outcome.failed) == (0, 2, 0)
    assert list((results / "trials").iterdir()) == []

    (tmp_path / "sweep.toml").write_text(SWEEP.replace('"snap"', '{ method = "snap", label = "SNAP" }'))
    assert run_sweep(read_sweep(tmp_path / "sweep.toml"), results, tmp_path).skipped == 2
    assert sorted(line["trial"]["label"] for line in read_study(results)["trials"]) == ["SNAP", "dense"]


@pytest.mark.parametrize(
    ("line", "old", "new", "words"),
    [
        (1, "{", "", "line 1: not JSON"),
        (1, '"study"', '"heap"', "line 1: not a study's"),
        (1, '"schema": 1', '"schema": 2', "line 1: study schema 2, this version reads 1"),
        (6, "{", "<<<<<<< {", "line 6: not JSON"),
        (6, '"environment": 0', '"environment": 7', "line 6: environment 7: the first line has 2"),
        (6, '"seed": 1}', '"seed": "1"}', "line 6: trial: seed: expected int, got str"),
        (6, '"seed": 1}', '"seed": 1, "sead": 1}', "line 6: trial: this version knows no sead"),
        (6, '"seed": 1,', "", "line 6: measures: lacks seed"),
        (6, '"key"', '"kee"', "line 6: lacks key"),
    ],
)
def test_damaged_studies_are_refused(results: Path, line: int, old: str, new: str, words: str) -> None:
    lines = study_text(read_study(results)).splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    other = results.parent / "other.jsonl"
    other.write_text("\n".join(lines))
    with pytest.raises(BadInput, match=rf"other.jsonl: {words}"):
        read_study(other)


def test_a_trial_is_in_a_study_once(results: Path) -> None:
    text = study_text(read_study(results))
    (results / "study.jsonl").write_text(text + text.splitlines()[-1])
    with pytest.raises(BadInput, match=r"study.jsonl: the trial .* is there twice"):
        read_study(results)
    with pytest.raises(BadInput, match=r"no.jsonl: no such file"):
        read_study(results / "no.jsonl")
    (results.parent / "empty").mkdir()
    with pytest.raises(BadInput, match="empty: holds no records of trials"):
        read_study(results.parent / "empty")


def refused(read: Callable[[], object]) -> bool:
    """Whether it is, in one line."""
    try:
        read()
    except BadInput as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("label", ["dense", "SNIP"])
def test_whatever_is_read_can_be_shown(tmp_path: Path, label: str) -> None:
    """A record, and a line of a study, with something unexpected in any one place: refused in one line, or harmless."""
    results, study, shown = tmp_path / "results", tmp_path / "study.jsonl", 0
    record = put(record_of(label, 0), results)
    head, line = study_text(read_study(results)).splitlines()
    for text, file, place in ((record.read_text(), record, results), (line, study, study)):
        for number, path in enumerate(list(places(json.loads(text)))[1:]):
            for junk in (*JUNK[number % 5 :: 5], 10**400):
                inner = changed = json.loads(text)
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = junk
                file.write_text(json.dumps(changed) if file is record else f"{head}\n{json.dumps(changed)}\n")
                if not refused(partial(read_study, place)):
                    assert render(read_study(place), ".md")
                    shown += 1
    assert shown > 50


def test_a_damaged_record_is_named_with_the_place(results: Path) -> None:
    record = record_of("SNIP", 0)
    del record["document"]["training"]["macs"]
    path = put(record, results)
    with pytest.raises(
        BadInput, match=rf"{path.name}: not a trial's record, or a damaged one \(document.training: lacks macs\)"
    ):
        read_record(path)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_left_out_and_said(tmp_path: Path, loss: float) -> None:
    for seed in (0, 1):
        record = record_of("SNIP", seed)
        record["document"]["training"]["test"] = {"accuracy": None, "loss": loss if seed else 0.5}
        put(record, tmp_path)
    study = read_study(tmp_path)
    page = render(study, ".md")
    assert "The loss on the test data is no finite number, and is left out. (1 of 2 trials)" in page
    assert json.loads(render(study, ".json"))["trials"]
    assert "NaN" not in study_text(study)


@pytest.mark.parametrize("name", STUDIES)
def test_our_studies_hold_the_trials_of_their_sweeps(name: str) -> None:
    """So `compress sweep` goes on from there; each key still follows from what the line says."""
    study = read_study(RESULTS / name)
    keys = {line["key"] for line in study["trials"]}
    assert study["failed"] == []
    assert {trial_of(line["trial"]).key for line in study["trials"]} == keys
    assert all(len(line["sha256"]) == 64 for line in study["trials"])
    sweep = ROOT / "benchmarks" / "sweeps" / f"{name}.toml"
    if "{seed}" not in sweep.read_text():  # networks that one trains first
        assert {trial.key for trial in read_sweep(sweep)} == keys
    assert (RESULTS / name / "study.jsonl").read_text() == study_text(study)
    assert document_of(study)["title"] == name


def test_our_results_are_small() -> None:
    """Records and pages are not committed: git has the lines."""
    files = [*RESULTS.glob("*/study.jsonl"), *RESULTS.glob("*.json")]
    assert len(STUDIES) >= 18
    assert len(files) < 60
    assert sum(file.stat().st_size for file in files) < 1_000_000
