"""What owners register by name, as it is kept: a row for each thing, changed in a transaction of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from herd.store.database import Database
from herd.store.tables.registrations import RegistrationRow

Thing = dict[str, Any]
SHAPES: dict[str, dict[str, type]] = {
    "shields": {"identifier": str},
    "toolgroups": {"uri": str, "headers": dict, "args": dict},
    "prompts": {"default": int, "versions": list},
    "models": {"target": str, "metadata": dict},
}
"""The kinds that there are, and what a thing of each has at least."""


def of_owner(database: Database, owner: str) -> list[tuple[str, str, Thing]]:
    """Everything of an owner, in the order in which it came: kind, name, thing."""
    query = select(RegistrationRow).where(RegistrationRow.owner == owner).order_by(RegistrationRow.number)
    with database.read() as session:
        return [(row.kind, row.name, row.thing) for row in session.scalars(query)]


def put(database: Database, owner: str, kind: str, name: str, thing: Thing) -> None:
    """Keep a thing, in place of the one that has its name."""
    with database.write() as session:
        row = session.scalars(_named(owner, kind, name).with_for_update()).one_or_none()
        if row is None:
            session.add(_row(owner, kind, name, thing))
        else:
            row.thing = thing


def drop(database: Database, owner: str, kind: str, name: str) -> None:
    """Forget a thing, if it is there."""
    found = (RegistrationRow.owner == owner, RegistrationRow.kind == kind, RegistrationRow.name == name)
    with database.write() as session:
        session.execute(delete(RegistrationRow).where(*found))


def add_missing(database: Database, owner: str, things: Iterable[tuple[str, str, Thing]]) -> int:
    """Keep those things whose names are free, all at once; how many. What is there already stays as it is."""
    with database.write() as session:
        fresh = [one for one in things if session.scalars(_named(owner, *one[:2])).one_or_none() is None]
        session.add_all(_row(owner, *one) for one in fresh)
    return len(fresh)


def count(session: Session) -> int:
    """How many there are, of all owners."""
    return session.scalar(select(func.count()).select_from(RegistrationRow)) or 0


def problems(session: Session) -> Iterator[tuple[str, str]]:
    """Things that no server could use: `KIND/NAME`, and what is wrong with it."""
    for row in session.scalars(select(RegistrationRow).order_by(RegistrationRow.number)):
        told = _wrong(row.kind, row.thing)
        if told is not None:
            yield f"{row.kind}/{row.name}", told


def _wrong(kind: str, thing: Any) -> str | None:
    shape = SHAPES.get(kind)
    if shape is None:
        return f"there is no kind {kind!r}"
    if not isinstance(thing, dict):
        return "it is no object"
    for field, wanted in shape.items():
        if not isinstance(thing.get(field), wanted):
            return f"its {field!r} is missing or of another kind"
    if kind == "prompts" and not 1 <= thing["default"] <= len(thing["versions"]):
        return f"its default version is {thing['default']}, it has {len(thing['versions'])}"
    return None


def _named(owner: str, kind: str, name: str) -> Any:
    return select(RegistrationRow).where(RegistrationRow.owner == owner, RegistrationRow.kind == kind, RegistrationRow.name == name)


def _row(owner: str, kind: str, name: str, thing: Thing) -> RegistrationRow:
    return RegistrationRow(owner=owner, kind=kind, name=name, created=time.time(), thing=thing)
