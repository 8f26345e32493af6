"""Are the sessions of agents whole: each knows the turn that is open in it, and no other turn of it is."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from herd.store.tables.agents import AgentSessionRow, AgentTurnRow

OPEN_TURNS = ("running", "waiting")
"""States of a turn that is not over."""


def count(session: Session) -> int:
    """How many sessions there are, of all owners."""
    return session.scalar(select(func.count()).select_from(AgentSessionRow)) or 0


def problems(session: Session) -> Iterator[tuple[str, str]]:
    """Sessions that no turn could go on in, or that lost one: the session, and what is wrong with it."""
    rows = select(AgentTurnRow.session_id, AgentTurnRow.id, AgentTurnRow.owner).where(AgentTurnRow.status.in_(OPEN_TURNS))
    still: dict[str, list[str]] = {}
    for session_id, turn_id, _ in session.execute(rows):
        still.setdefault(session_id, []).append(turn_id)
    grouped = select(AgentTurnRow.session_id, func.count()).group_by(AgentTurnRow.session_id)
    counts = {session_id: num for session_id, num in session.execute(grouped)}  # noqa: C416
    for row in session.scalars(select(AgentSessionRow)):
        found = still.get(row.id, [])
        if found != ([] if row.open_turn is None else [row.open_turn]):
            yield row.id, f"its open turn is {row.open_turn or 'none'}, those that are not over are {', '.join(found) or 'none'}"
        if row.num_turns != counts.get(row.id, 0):
            yield row.id, f"it counts {row.num_turns:,} turns, there are {counts.get(row.id, 0):,}"
