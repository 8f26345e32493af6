"""What clients register by name: shields, tool groups and prompts. Each key has its own, and finds no one else's.

    STATE/registered/OWNER.json    {"shields": {...}, "toolgroups": {...}, "prompts": {...}}

One small file for each owner, replaced whole at every change, so that what was acknowledged is there after a crash. Without a state
directory it is kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any, Literal, cast

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError
from herd.stack.errors import RequestError

Kind = Literal["shields", "toolgroups", "prompts"]
KINDS: tuple[Kind, ...] = ("shields", "toolgroups", "prompts")
MOST: dict[Kind, int] = {"shields": 100, "toolgroups": 32, "prompts": 1000}
MAX_OWNER_BYTES = 16 * 2**20
"""Of everything that one owner registered."""
_Things = dict[Kind, dict[str, dict[str, Any]]]


class Registrations:
    """All of them. Methods are short, and for any thread."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, _Things] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise ConfigError(f"cannot keep registrations in {folder}: {error.strerror}", hint="choose another --state-dir") from error

    def _path(self, owner: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"

    def _of(self, owner: str) -> _Things:
        if owner not in self._known:
            things: _Things = {kind: {} for kind in KINDS}
            if self._folder is not None and self._path(owner).is_file():
                path = self._path(owner)
                try:
                    read = json.loads(path.read_text(encoding="utf-8"))
                    things |= {kind: dict(read.get(kind, {})) for kind in KINDS}
                except (ValueError, AttributeError, TypeError) as error:
                    raise ConfigError(f"{path} is damaged", hint="remove it, and register again what was in it") from error
            self._known[owner] = things
        return self._known[owner]

    def all(self, owner: str, kind: Kind) -> dict[str, dict[str, Any]]:
        """What an owner has, by id, in the order in which it came."""
        with self._lock:
            return {name: cast("dict[str, Any]", _copied(thing)) for name, thing in self._of(owner)[kind].items()}

    def get(self, owner: str, kind: Kind, name: str) -> dict[str, Any] | None:
        """One of them."""
        with self._lock:
            thing = self._of(owner)[kind].get(name)
            return None if thing is None else cast("dict[str, Any]", _copied(thing))

    def put(self, owner: str, kind: Kind, name: str, thing: dict[str, Any], *, expected: dict[str, Any] | None = None) -> None:
        """Keep a thing, in place of `expected` if there is one. Raises RequestError where it is there already or has changed since."""
        with self._lock:
            things = self._of(owner)
            if things[kind].get(name) != expected:
                told = f"there is a registration {name!r:.100} already" if expected is None else f"{name!r:.100} has changed meanwhile"
                raise RequestError("conflict", told, hint="unregister it first" if expected is None else "read it, and change it again")
            if expected is None and len(things[kind]) >= MOST[kind]:
                raise RequestError("conflict", f"you have {MOST[kind]} {kind}, the most there can be", hint="delete one that is not used")
            self._replace(owner, {**things, kind: {**things[kind], name: thing}})

    def drop(self, owner: str, kind: Kind, name: str) -> bool:
        """Forget a thing; says whether it was there."""
        with self._lock:
            things = self._of(owner)
            if name not in things[kind]:
                return False
            self._replace(owner, {**things, kind: {known: thing for known, thing in things[kind].items() if known != name}})
            return True

    def _replace(self, owner: str, things: _Things) -> None:
        text = json.dumps(things, ensure_ascii=True)
        if len(text) > MAX_OWNER_BYTES:
            raise RequestError(
                "too_large", f"what you registered would take over {MAX_OWNER_BYTES:,} bytes", hint="delete what is not used"
            )
        if self._folder is not None:
            with atomic_file(self._path(owner)) as path:
                path.write_text(text, encoding="utf-8")
                path.chmod(0o600)
        self._known[owner] = things


def _copied(thing: Any) -> Any:
    return json.loads(json.dumps(thing))
