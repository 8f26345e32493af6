"""Write docs/reference/cli.md from the help texts of every command; `--check` fails when the page is stale.

Run: `python docs/cli_reference.py [--check]`. `make docs` runs it, a test checks it. The texts are those of `herd COMMAND --help`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).parent / "reference" / "cli.md"
_WIDTH = "100"
_INTRODUCTION = """\
# Command line

<!-- Written by docs/cli_reference.py from the help texts: change those, then run `make docs`. -->

Answers and data go to stdout, everything else to stderr. Every listing and report takes `--json`. `herd completion` makes your shell
complete commands and options.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | usage: a flag or an argument that means nothing |
| 3 | a model or file is missing |
| 4 | it does not fit: memory, disk or context |
| 5 | a gate failed: what you asked to have checked is not sound |
| 75 | a training run was asked to end and is saved: run the command again |
| 76 | a training run hung, and its watchdog ended it: run the command again |
| 130 | interrupted |

An error is `error: MESSAGE`, an empty line and `hint: WHAT TO DO`. The [list of errors](errors.md) explains each code. `--debug` goes
with any command and shows the whole trace.
"""


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it, groups before their members, in the order of the help."""
    if command is None:
        from herd.cli.app import app

        command = typer.main.get_command(app)
    yield path, command
    for name, member in getattr(command, "commands", {}).items():
        yield from commands(member, (*path, name))


def help_text(path: tuple[str, ...]) -> str:
    """What `herd PATH --help` prints, at a fixed width."""
    from herd.cli.app import run

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            run([*path, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return re.sub(r"[ \t]+$", "", printed.getvalue(), flags=re.MULTILINE).strip("\n")


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for path, _ in commands():
        parts.append(f"## herd {' '.join(path)}".rstrip())
        parts.append(f"```text\n{help_text(path)}\n```")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare it; returns the exit code."""
    page = render()
    if arguments == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
            print(f"error: {PAGE} is stale\n\nhint: run python docs/cli_reference.py", file=sys.stderr)
            return 1
        return 0
    if arguments:
        print("error: unknown arguments\n\nhint: python docs/cli_reference.py [--check]", file=sys.stderr)
        return 2
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
