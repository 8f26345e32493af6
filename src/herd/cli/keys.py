"""`herd keys`: keys for `herd serve`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Keys for `herd serve --api-key-file`.", no_args_is_help=True)


@app.command("new")
def new(name: Annotated[str | None, typer.Argument(help="Whose key it is.")] = None) -> None:
    """Print a new key as a line for the key file: herd keys new anna >> keys.txt"""
    from herd.cli.output import line
    from herd.stack.keys import new_key

    line(f"{name} {new_key()}" if name else new_key())


@app.command("check")
def check(file: Annotated[str, typer.Argument(help="A key file.")]) -> None:
    """Read a key file and list its keys by name, with their limits; never the keys."""
    from pathlib import Path

    from herd.cli.output import table
    from herd.stack.keys import read_keys

    def told(value: int | None) -> str:
        return "no limit" if value is None else f"{value:,}"

    rows = [
        [key.name, told(key.rpm), told(key.tpm), told(key.concurrent), str(key.priority), "yes" if key.admin else ""]
        for key in read_keys(Path(file))
    ]
    table(rows, ["name", "requests/min", "tokens/min", "at once", "priority", "admin"])
