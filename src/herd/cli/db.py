"""`herd db`: what `herd serve` keeps, brought up to date, copied while it runs, and looked through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.cli.load import JsonOption

if TYPE_CHECKING:
    from herd.store.blobs import Blobs
    from herd.store.database import Database

app = typer.Typer(help="The database and files of `herd serve`: upgrade, backup, check.", no_args_is_help=True)

StateOption = Annotated[Path | None, typer.Option(help="The server's state directory. [default: server in herd's home]")]
DatabaseOption = Annotated[
    str | None, typer.Option(help="URL of the database. [variable: HERD_DATABASE; default: a file of the state directory]")
]
FilesOption = Annotated[str | None, typer.Option(help="Folder or URL of files. [variable: HERD_FILES; default: in the state directory]")]


def _folder(state_dir: Path | None) -> Path:
    from herd.base.paths import server_dir

    return state_dir or server_dir()


def _opened(state_dir: Path | None, database: str | None, files: str | None) -> tuple[Path, Database, Blobs]:
    """What is there, without being its server. Raises NotFoundError for a folder that is none."""
    from herd.base.errors import NotFoundError
    from herd.store.state import DATABASE_FILE, blobs_of, database_of

    folder, url = _folder(state_dir), settings.value("database", database) or None
    if url is None and not (folder / DATABASE_FILE).is_file():
        raise NotFoundError(f"there is no server's database in {folder}", hint="name the --state-dir or the --database of the server")
    return folder, database_of(folder, url), blobs_of(folder, settings.value("files", files) or None)


@app.command("upgrade")
def upgrade(state_dir: StateOption = None, database: DatabaseOption = None, json: JsonOption = False) -> None:
    """Bring the database to this herd's revision, as the server's start does. No server may run on it meanwhile."""
    from herd.cli.output import line, print_json
    from herd.store.state import State

    state = State(_folder(state_dir), database_url=settings.value("database", database) or None)
    before, after = state.revisions
    told = state.database.told_url
    state.close()
    if json:
        print_json({"database": told, "before": before, "after": after})
    elif before == after:
        line(f"{told} is at revision {after} already")
    else:
        line(f"{told}: from revision {before or 'none'} to {after}")


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(help="Folder to make; it becomes a state directory.")],
    state_dir: StateOption = None,
    database: DatabaseOption = None,
    files: FilesOption = None,
    json: JsonOption = False,
) -> None:
    """Copy database and files as they are at one moment, while the server runs."""
    from herd.base.memory import gib
    from herd.base.progress import track_steps
    from herd.cli.output import line, print_json
    from herd.store.backup import back_up

    folder, opened, blobs = _opened(state_dir, database, files)
    try:
        with track_steps("backup", total=None) as advance:
            manifest = back_up(opened, blobs, folder, target, report=advance)
    finally:
        opened.close()
    if json:
        print_json({"target": str(target), **manifest})
    else:
        line(f"{target}: revision {manifest['revision']}, {manifest['num_files']:,} files, {gib(manifest['size_bytes'])}")


@app.command("check")
def check(
    state_dir: StateOption = None,
    database: DatabaseOption = None,
    files: FilesOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every file, and compare its SHA-256.")] = False,
    json: JsonOption = False,
) -> None:
    """Look for damage: the database's own check, lost and orphaned bytes, counts and indexes against rows. Exit code 5 where any is."""
    from dataclasses import asdict

    from herd.base.errors import GateError
    from herd.base.progress import track_steps
    from herd.cli.output import line, print_json, table
    from herd.store import check as checks
    from herd.store.vectors import Vectors

    folder, opened, blobs = _opened(state_dir, database, files)
    try:
        with track_steps("check", total=None) as advance:
            found = checks.check(opened, blobs, Vectors(folder / "indexes"), deep=deep, report=advance)
    finally:
        opened.close()
    if json:
        print_json({"ok": not found.problems, **asdict(found)})
    else:
        if found.problems:
            table([(one.kind, one.subject, one.message) for one in found.problems], ("kind", "object", "what is wrong"))
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.counts.items())
        line(f"revision {found.revision}: {counts or 'nothing was looked at'}")
    if found.problems:
        raise GateError(f"{len(found.problems)} things are wrong in {folder}", hint="the guide `storage` tells what to do about each kind")
