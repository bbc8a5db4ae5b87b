"""Seeded damage to files, for the tests that feed broken ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

EDGE = 200
"""Bytes at either end of a file that half of the damage hits: there are the headers and the directories."""

JUNK = [None, True, -1, 0, 3, 10**9, 1e308, 0.5, "x", "", [], [1], {}, {"a": 1}, [[0, 1]], float("nan")]


def damaged(content: bytes, seed: int) -> bytes:
    """The content with bytes overwritten, a bit flipped, bytes put in, a piece taken out, or its end cut off."""
    draw = random.Random(seed)
    changed = bytearray(content)
    edge = min(EDGE, len(content))
    place = draw.choice([draw.randrange(edge), len(content) - 1 - draw.randrange(edge), *2 * [draw.randrange(len(content))]])
    kind = draw.randrange(5)
    if kind == 0:
        changed[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        size = draw.randint(1, 8)
        changed[place : place + size] = draw.randbytes(size)
    elif kind == 2:
        changed[place:place] = draw.randbytes(draw.randint(1, 40))
    elif kind == 3:
        del changed[place : place + draw.randint(1, max(1, len(content) // 2))]
    else:
        del changed[max(place, 1) :]
    return bytes(changed)


def damages(content: bytes, count: int) -> Iterator[bytes]:
    """As many damaged contents, always the same."""
    return (damaged(content, seed) for seed in range(count))


def places(value, path=()):
    """Every place in a JSON document."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def misfilled(text: str, seed: int) -> str:
    """A JSON document with something unexpected in one of its places."""
    draw, document = random.Random(seed), json.loads(text)
    path = draw.choice(list(places(document))[1:])
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = draw.choice(JUNK)
    return json.dumps(document)
