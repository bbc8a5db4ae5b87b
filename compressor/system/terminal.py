"""What reaches a terminal: text alone, whatever stood in a file."""

from __future__ import annotations

import sys
import unicodedata

LONGEST = 4000
"""Characters of a line, beyond which nobody reads it."""


def printable(text: str) -> str:
    """The text with what a terminal would obey, or cannot show, written out: control and format characters, broken bytes."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in HIDDEN else _written(c) for c in text)


HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of such characters; Cs are bytes of a file's name that are no UTF-8."""


def _written(character: str) -> str:
    """`\\x1b`, `\\u202e`."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(text: str, *, error: bool = False) -> None:
    """Write a line to stdout, or to stderr; a full disk is an error here, where it can be told."""
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def one_line(text: str) -> str:
    """The text in one line, its middle left out where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
