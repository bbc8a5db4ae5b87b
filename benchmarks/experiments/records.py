"""Trials that were made: a file each in a sweep's folder, or a line each in a study, which is what is committed.

A study is JSON lines. The first says where its trials ran; each other one is a trial: its key, what it was asked, what it came
to, and the SHA-256 of its whole record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from compressor.benchmarks.experiments.cells import measures_of
from compressor.benchmarks.experiments.documents import (
    SCHEMA,
    STUDY,
    DoneLine,
    Head,
    Line,
    PrunedReport,
    Record,
    Study,
    check_line,
    check_record,
    trial_of,
)
from compressor.benchmarks.measure.bench_document import Environment
from compressor.benchmarks.measure.typed import checked, json_of
from compressor.errors import BadInput, first_line
from compressor.system.files import staged

TRIALS = "trials"
"""In a sweep's folder: a file for each trial."""

LINES = ".jsonl"
STUDY_FILE = f"study{LINES}"
"""In a sweep's folder: a line for each trial whose file need not be there any more."""

RECORD_SCHEMA = 1
"""Schema of the records that this version reads; `trial.SCHEMA` is that of those that it writes."""

BEING_WRITTEN = re.compile(r"\..*\.[0-9a-f]{8}\.json")
"""Names of the files of `staged`."""


def read_record(path: Path) -> Record:
    """One trial's record.

    Raises:
        BadInput: damaged, or of another schema.
    """
    try:
        raw = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("schema") != RECORD_SCHEMA:
            raise BadInput("another schema")
        record = check_record(raw)
        record["trial"] = trial_of(record["trial"]).as_dict()  # with what older ones do not say
    except (OSError, UnicodeDecodeError, BadInput) as error:
        raise BadInput(f"{path}: not a trial's record, or a damaged one ({first_line(error)}); remove it") from error
    return record


def read_records(folder: Path) -> list[Record]:
    """All records of the trials in a sweep's folder.

    Raises:
        BadInput: there are none, or one is damaged.
    """
    found = [read_record(path) for path in _record_files(folder)]
    if not found:
        raise BadInput(f"{folder}: holds no records of trials; `compress sweep` makes them")
    return found


def _record_files(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / TRIALS).glob("*.json")) if not BEING_WRITTEN.fullmatch(path.name)]


Parsed = TypeVar("Parsed")


class Placed(NamedTuple):
    """A trial's line, and where the trial ran; None of one that failed."""

    line: Line
    environment: Environment | None


def line_of(record: Record, sha256: str | None = None) -> Placed:
    """What a study keeps of a record; `sha256` is of its file."""
    if record["status"] == "failed":
        line: Line = {"key": record["key"], "trial": record["trial"], "error": record["error"]}
        placed = Placed(line, None)
    else:
        placed = Placed(_done_line(record), record["document"]["environment"])
    if sha256 is not None:
        placed.line["sha256"] = sha256
    return placed


def _done_line(record: Record) -> DoneLine:
    report, measures = cast(PrunedReport, record["document"]), measures_of(record)
    training, widths = report["training"], report.get("widths", {})
    line: DoneLine = {
        "key": record["key"],
        "trial": record["trial"],
        "stage": training["stage"],
        "unit": "weight" if report.get("masks") else "node",
        "environment": 0,
        "measures": measures,
        "test_accuracies": [epoch["test_accuracy"] for epoch in training["history"]],
    }
    if "builder" in record:
        line["builder"] = record["builder"]
    if training["history"]:
        last = training["history"][-1]
        line["steps"] = sum(epoch.get("steps", 0) for epoch in training["history"])
        line["last_epoch"] = {"train_loss": last.get("train_loss"), "train_accuracy": last.get("train_accuracy")}
    if (test := training["test"]) is not None and (judged := test.get("metric")) is not None:
        line["metric"] = judged
    if widths:
        line["widths"] = [width["small"] for width in widths.values()]
    if notes := [*report["notes"], *_missing(record, measures)]:
        line["notes"] = notes
    return line


def _missing(record: Record, measures: Mapping[str, float]) -> list[str]:
    """Why a measure that one would expect is not there."""
    found = []
    if "bench_failed" in record:
        found.append(f"Times and memory were not measured: {record['bench_failed']}")
    if record["document"]["training"]["test"] is not None and not measures.keys() & {"accuracy", "loss"}:
        found.append("The loss on the test data is no finite number, and is left out.")
    return found


def study_of(placed: Iterable[Placed], title: str) -> Study:
    """Trials as a study; each place where some of them ran is said once."""
    places: dict[str, int] = {}
    study: Study = {"schema": SCHEMA, "kind": STUDY, "title": title, "environments": [], "trials": [], "failed": []}
    for line, environment in placed:
        if environment is None:
            study["failed"].append(line)
            continue
        place = places.setdefault(json.dumps(environment, sort_keys=True), len(places))
        if place == len(study["environments"]):
            study["environments"].append(environment)
        study["trials"].append({**cast(DoneLine, line), "environment": place})
    return study


def read_study(place: Path, title: str | None = None) -> Study:
    """The trials of a sweep's folder, from their records and from the lines of its `study.jsonl`; or those of such a file.

    A trial that has both is told by its record, unless that one failed.

    Args:
        title: by default what the file says, or else the folder's name.
    Raises:
        BadInput: there are none, or something is damaged.
    """
    if not place.is_dir():
        study = _parsed(place)
        return study_of(_placed(study), title or study["title"])
    made = [line_of(read_record(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in _record_files(place)]
    kept = _parsed(place / STUDY_FILE) if (place / STUDY_FILE).is_file() else None
    if not made and kept is None:
        raise BadInput(f"{place}: holds no records of trials; `compress sweep` makes them")
    lines = _joined(_placed(kept), made) if kept else made
    return study_of(lines, title or (kept["title"] if kept else place.resolve().name))


def _joined(kept: Sequence[Placed], made: Sequence[Placed]) -> list[Placed]:
    """Lines and records of one folder, in the order of the records' names."""
    done = {new.line["key"] for new in made if new.environment is not None}
    known = {old.line["key"] for old in kept}
    lines = [old for old in kept if old.line["key"] not in done]
    lines += [new for new in made if new.environment is not None or new.line["key"] not in known]
    return sorted(lines, key=lambda placed: _file_name(placed.line))


def _file_name(line: Line) -> str:
    return f"{trial_of(line['trial']).name}-{line['key']}"


def _placed(study: Study) -> list[Placed]:
    done = [Placed(line, study["environments"][line["environment"]]) for line in study["trials"]]
    return sorted([*done, *(Placed(line, None) for line in study["failed"])], key=lambda placed: _file_name(placed.line))


def _parsed(path: Path) -> Study:
    """What a study's file says."""
    try:
        first, *rest = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({first_line(error)})") from error
    head = _at(path, 1, _head_of, first)
    places = len(head["environments"])
    lines = [_at(path, n, lambda text: _line_of(text, places), text) for n, text in enumerate(rest, 2) if text.strip()]
    keys = [line["key"] for line in lines]
    if twice := [key for n, key in enumerate(keys) if key in keys[:n]]:
        raise BadInput(f"{path}: the trial {twice[0]} is there twice")
    done = [cast(DoneLine, line) for line in lines if "error" not in line]
    return {**head, "trials": done, "failed": [line for line in lines if "error" in line]}


def _at(path: Path, number: int, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """What a line says; where it is damaged, its number is said."""
    try:
        return parse(text)
    except BadInput as error:
        raise BadInput(f"{path}: line {number}: {error}") from error


def _head_of(text: str) -> Head:
    raw = json_of(text)
    if not isinstance(raw, dict) or raw.get("kind") != STUDY:
        raise BadInput("not a study's, which says its kind and schema")
    if raw.get("schema") != SCHEMA:
        raise BadInput(f"study schema {raw.get('schema')}, this version reads {SCHEMA}; update compressor")
    return checked(raw, Head)


def _line_of(text: str, places: int) -> Line:
    line = check_line(json_of(text), places)
    return {**line, "trial": trial_of(line["trial"]).as_dict()}


def study_text(study: Study) -> str:
    """A study's file: its first line, then the trials in the order of their names."""
    head = {name: value for name, value in study.items() if name not in ("trials", "failed")}
    lines = [{**placed.line, "trial": _short(placed.line["trial"])} for placed in _placed(study)]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in (head, *lines))


def done_lines(folder: Path) -> set[str]:
    """Keys of the trials that a sweep's folder holds as lines of its study."""
    path = folder / STUDY_FILE
    return {line["key"] for line in _parsed(path)["trials"]} if path.is_file() else set()


def relabel(folder: Path, labels: Mapping[str, str]) -> None:
    """Give the lines of a folder's study the labels, by key, that their trials have now."""
    path = folder / STUDY_FILE
    if not path.is_file():
        return
    study = _parsed(path)
    changed = [line for line in study["trials"] if labels.get(line["key"], line["trial"]["label"]) != line["trial"]["label"]]
    for line in changed:
        line["trial"]["label"] = labels[line["key"]]
    if changed:
        with staged(path) as [temporary]:
            temporary.write_text(study_text(study), encoding="utf-8")


SAID = ("network", "data", "label", "seed")
"""What every trial says of itself; the rest may go without saying."""


def _short(trial: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values but those that go without saying."""
    unsaid = trial_of({name: trial[name] for name in SAID}).as_dict()
    return {name: value for name, value in trial.items() if name in SAID or value != unsaid[name]}
