"""What clients register by name: shields, tool groups, prompts, and names of models. Each key has its own, and finds no one else's.

Rows of the database are the truth, and a change is a row there before it is told of; what an owner has is held in memory once it was read,
since a database has one server. Without a database it is kept in memory alone.
"""

from __future__ import annotations

import json
import threading
from typing import Any, Literal, cast

from herd.stack.errors import RequestError
from herd.store import registrations as rows
from herd.store.database import Database

Kind = Literal["shields", "toolgroups", "prompts", "models"]
KINDS: tuple[Kind, ...] = ("shields", "toolgroups", "prompts", "models")
MOST: dict[Kind, int] = {"shields": 100, "toolgroups": 32, "prompts": 1000, "models": 100}
MAX_OWNER_BYTES = 16 * 2**20
"""Of everything that one owner registered."""
_Things = dict[Kind, dict[str, dict[str, Any]]]


class Registrations:
    """All of them. Methods are short, and for any thread."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known: dict[str, _Things] = {}

    @property
    def outlives_a_restart(self) -> bool:
        """Whether what is registered is kept anywhere but in memory."""
        return self._database is not None

    def _of(self, owner: str) -> _Things:
        if owner not in self._known:
            things: _Things = {kind: {} for kind in KINDS}
            for kind, name, thing in [] if self._database is None else rows.of_owner(self._database, owner):
                if kind in things:
                    things[kind][name] = thing
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
            changed: _Things = {**things, kind: {**things[kind], name: _copied(thing)}}
            if len(json.dumps(changed, ensure_ascii=True)) > MAX_OWNER_BYTES:
                told = f"what you registered would take over {MAX_OWNER_BYTES:,} bytes"
                raise RequestError("too_large", told, hint="delete what is not used")
            if self._database is not None:
                rows.put(self._database, owner, kind, name, thing)
            self._known[owner] = changed

    def drop(self, owner: str, kind: Kind, name: str) -> bool:
        """Forget a thing; says whether it was there."""
        with self._lock:
            things = self._of(owner)
            if name not in things[kind]:
                return False
            if self._database is not None:
                rows.drop(self._database, owner, kind, name)
            self._known[owner] = {**things, kind: {known: thing for known, thing in things[kind].items() if known != name}}
            return True


def _copied(thing: Any) -> Any:
    return json.loads(json.dumps(thing))
