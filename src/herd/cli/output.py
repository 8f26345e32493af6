"""What commands print: answers and data on stdout, everything else on stderr; tables, JSON, errors with a hint.

Exit codes: 0 done, 1 failed, 2 usage, 3 missing model or file, 4 does not fit, 5 a gate failed, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from herd.base.errors import HerdError
from herd.base.paths import home


def write(text: str) -> None:
    """Text to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def line(text: str = "") -> None:
    """A line to stdout."""
    write(text + "\n")


def note(text: str = "") -> None:
    """A line to stderr: anything that is not the answer."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def dim(text: str) -> str:
    """Text in grey where stderr is a terminal."""
    return f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text


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


def report_error(error: HerdError) -> None:
    """`error: what, with values`, a blank line, `hint: what to do` on stderr."""
    note(f"error: {error.message}")
    if error.hint:
        note()
        note(f"hint: {error.hint}")


def report_crash(error: BaseException) -> None:
    """A bug of ours: one line and where the whole trace is."""
    path = home() / "last-error.log"
    trace = "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(trace, encoding="utf-8")
        place = f"the trace is in {path}"
    except OSError:
        note(trace)
        place = "the trace is above"
    note(f"error: herd failed: {type(error).__name__}: {error}")
    note()
    note(f"hint: this is a bug in herd; {place}; run again with --debug to see it here")
