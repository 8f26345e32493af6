"""What commands print: answers and data on stdout, everything else on stderr; tables, facts and JSON.

Colour is a help, never the message: there is none where stderr is no terminal, or where NO_COLOR is set (no-color.org).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def write(text: str) -> None:
    """Text to stdout, at once. Characters that stdout's encoding lacks become question marks rather than an error."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def line(text: str = "") -> None:
    """A line to stdout."""
    write(text + "\n")


def note(text: str = "") -> None:
    """A line to stderr: anything that is not the answer."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def dim(text: str) -> str:
    """Text in grey where stderr is a terminal that shows colours."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def print_json(value: Any) -> None:
    """A value as indented JSON on stdout."""
    line(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Rows in aligned columns on stdout."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def facts(values: Mapping[str, str]) -> None:
    """Names and values, a line each, on stdout."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        line(f"{name.ljust(width)}  {value}")
