"""Registrations of a herd before revision 0005, which were files, taken over into the database: once, by the first server that starts.

    STATE/registered/OWNER.json             {"shields": {...}, "toolgroups": {...}, "prompts": {...}}
    STATE/registered/agreed-GROUP.json      what was agreed to of a tool group's server

OWNER and GROUP are digests of names, so a file is looked for by the name of each key. A file goes once its rows are there; a crash between
the two finds the rows at the next start, and changes nothing. A file whose key this server does not have stays until it has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.store import registrations as rows
from herd.store.database import Database

log = get_logger(__name__)

FOLDER = "registered"


def take_over(database: Database, state_dir: Path, owners: Iterable[str]) -> int:
    """Take over the files of these owners; how many things came. Raises ConfigError for a file that is damaged."""
    folder, total = state_dir / FOLDER, 0
    if not folder.is_dir():
        return 0
    for owner in owners:
        path = folder / f"{_digest(owner)}.json"
        if not path.is_file():
            continue
        things = _things(folder, owner, path)
        total += rows.add_missing(database, owner, things)
        for name in [name for kind, name, _ in things if kind == "toolgroups"]:
            _agreed_path(folder, owner, name).unlink(missing_ok=True)
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    if total:
        log.info("%d registrations of files are in the database now", total)
    return total


def _things(folder: Path, owner: str, path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    read = _read(path)
    found: list[tuple[str, str, dict[str, Any]]] = []
    for kind in rows.SHAPES:
        for name, thing in (read.get(kind) or {}).items():
            found.append((kind, name, _with_agreed(folder, owner, name, thing) if kind == "toolgroups" else thing))
    return found


def _with_agreed(folder: Path, owner: str, name: str, thing: dict[str, Any]) -> dict[str, Any]:
    """A tool group, with what was agreed to of its server."""
    path = _agreed_path(folder, owner, name)
    pinned = _read(path) if path.is_file() else {}
    return {**thing, "agreed": {tool: digest for tools in pinned.values() for tool, digest in tools.items()}}


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict) or not all(isinstance(inner, dict) for inner in read.values()):
            raise ValueError("no object of objects")
    except ValueError as error:
        raise ConfigError(f"{path} is damaged", hint="remove it, and register again what was in it") from error
    return read


def _agreed_path(folder: Path, owner: str, name: str) -> Path:
    digest = _digest(f"{owner}\0{name}")
    return folder / f"agreed-{digest}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
