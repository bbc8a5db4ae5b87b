"""Why a group stays whole: code asks for the cause, people read the sentence."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from compressor.errors import BadInput
from compressor.types import NOT_IN_EVAL, OUTPUT, Plan
from compressor.types.reason import Cause, Reason, asked_for, cause_of, reasons_from

PLAN = Plan(
    {"a": 3}, "f" * 16, (),
    {"b": OUTPUT, "c": asked_for("freeze c"), "d": NOT_IN_EVAL, "e": Reason("e (roll): a size in the code")},
)  # fmt: skip


def test_a_cause_outlives_copies_files_and_other_words() -> None:
    for plan in (PLAN, copy.deepcopy(PLAN), Plan.from_json(PLAN.to_json())):
        assert [cause_of(reason) for reason in plan.frozen.values()] == [
            Cause.OUTPUT, Cause.ASKED, Cause.TRAINING, Cause.CODE
        ]  # fmt: skip
        assert plan.frozen == PLAN.frozen
    said_otherwise = dataclasses.replace(PLAN, frozen={"b": Reason("the network returns it", Cause.OUTPUT)})
    assert cause_of(Plan.from_json(said_otherwise.to_json()).frozen["b"]) is Cause.OUTPUT


def test_plans_of_before_say_it_by_their_sentences() -> None:
    raw = json.loads(PLAN.to_json())
    del raw["causes"]
    assert [cause_of(reason) for reason in Plan.from_json(json.dumps(raw)).frozen.values()] == [
        Cause.OUTPUT, Cause.ASKED, Cause.TRAINING, Cause.CODE
    ]  # fmt: skip


def test_a_damaged_cause_is_refused() -> None:
    raw = json.loads(PLAN.to_json())
    for change in ({"causes": {"b": "weather"}}, {"causes": [1]}, {"frozen": {"b": 5}}):
        with pytest.raises(BadInput, match="not a plan"):
            Plan.from_json(json.dumps(raw | change))
    with pytest.raises(TypeError):
        reasons_from({"a": None}, None)
