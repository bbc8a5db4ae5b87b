"""What was read as JSON, held against its declaration: a TypedDict whose fields say their kinds and their ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from compressor.errors import BadInput, first_line

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""How many of something: bytes, nodes, multiply-adds."""

AtLeastOne = Annotated[int, Meta(ge=1, le=2**63 - 1)]

Seconds = Annotated[float, Meta(ge=1e-12, le=1e12)]
"""A time that a clock gave: above zero, and such that ratios of two are finite and above zero."""

LARGEST = 1e30
Measure = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""A number whose mean and variance are finite, too."""

Kind = TypeVar("Kind")


def checked(raw: object, kind: type[Kind], sentences: Mapping[str, str] | None = None) -> Kind:
    """What was read, as it is, if it has all fields of its declaration, of their kinds and in their ranges; it may have others.

    Args:
        kind: a TypedDict or a dataclass.
        sentences: path of a field without its numbers, `times.values` -> what to say first where it is not what it should be.
    Raises:
        BadInput: it is something else; one line, with the field's path.
    """
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BadInput(_in_one_line(str(error), sentences or {})) from error
    return cast(Kind, raw)


def _in_one_line(error: str, sentences: Mapping[str, str]) -> str:
    """`Expected `int`, got `str` - at `$.times[0].batch`` as `times[0].batch: expected int, got str`."""
    reason, _, path = error.replace("`", "").partition(" - at ")
    path = path.replace("key in ", "a name in ").replace("$.", "").replace("$", "")
    said = reason.replace("Object missing required field", "lacks").replace("Expected", "expected")
    said = said.replace("object", "table").replace("array", "list")
    place = f"{path}: {said}" if path else said
    sentence = sentences.get(re.sub(r"\[\d+\]", "", path))
    return f"{sentence} ({place})" if sentence else place


def json_of(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        BadInput: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON ({first_line(error)})") from error
