"""A session store in a database: SQLite or PostgreSQL, each change a transaction of its own, on a thread.

A cancelled caller's write is waited for, so that an earlier state of a step never lands after a later one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from herd.agents.config import AgentConfig
from herd.agents.ids import new_id
from herd.agents.sessions import AgentRecord, Document, Kept, SessionRecord, with_session
from herd.agents.steps import Step, step_from_dict
from herd.agents.turn import Turn
from herd.base.errors import NotFoundError
from herd.store.database import Database, sqlite_url
from herd.store.migrate import upgrade
from herd.store.paging import owned
from herd.store.tables.agents import AgentDocumentRow, AgentFileRow, AgentRow, AgentSessionRow, AgentStepRow, AgentTurnRow
from herd.text.messages import Message
from herd.tools.tool import Attachment, Taint

_Result = TypeVar("_Result")
_HINT = "`herd agent --list` shows the sessions"


def open_session_store(path: Path | str) -> SqlSessionStore:
    """A store in a SQLite file, made where there is none, or in the database of a URL."""
    if isinstance(path, Path) or "://" not in path:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = sqlite_url(Path(path))
    database = Database(path)
    upgrade(database)
    return SqlSessionStore(database)


class SqlSessionStore:
    """A `SessionStore` on a database whose schema is up to date."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    async def _read(self, work: Callable[[Session], _Result]) -> _Result:
        def run() -> _Result:
            with self.database.read() as session:
                return work(session)

        return await asyncio.to_thread(run)

    async def _write(self, work: Callable[[Session], _Result]) -> _Result:
        def run() -> _Result:
            with self.database.write() as session:
                return work(session)

        writing = asyncio.ensure_future(asyncio.to_thread(run))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    async def create_agent(self, owner: str, config: AgentConfig) -> AgentRecord:
        """See `SessionStore`."""
        record = AgentRecord(id=new_id("agent"), config=config)
        row = AgentRow(id=record.id, owner=owner, created=record.created_at, config=_dumps(config.to_dict()))
        await self._write(lambda session: session.add(row))
        return record

    async def agent(self, owner: str, agent_id: str) -> AgentRecord:
        """See `SessionStore`."""
        return await self._read(lambda session: _agent(owned(session, AgentRow, owner, agent_id, what="agent")))

    async def update_agent(self, owner: str, agent_id: str, config: AgentConfig) -> AgentRecord:
        """See `SessionStore`."""

        def work(session: Session) -> AgentRecord:
            row = owned(session, AgentRow, owner, agent_id, what="agent", lock=True)
            row.config = _dumps(config.to_dict())
            return _agent(row)

        return await self._write(work)

    async def agents(self, owner: str) -> list[AgentRecord]:
        """See `SessionStore`."""
        query = select(AgentRow).where(AgentRow.owner == owner).order_by(AgentRow.created.desc(), AgentRow.id.desc())
        return await self._read(lambda session: [_agent(row) for row in session.scalars(query)])

    async def delete_agent(self, owner: str, agent_id: str) -> None:
        """See `SessionStore`."""

        def work(session: Session) -> None:
            row = owned(session, AgentRow, owner, agent_id, what="agent", lock=True)
            query = select(AgentSessionRow).where(AgentSessionRow.owner == owner, AgentSessionRow.agent_id == agent_id)
            for found in session.scalars(query).all():
                _delete_session(session, found)
            session.delete(row)

        await self._write(work)

    async def create_session(
        self,
        owner: str,
        *,
        agent_id: str | None = None,
        name: str = "",
        config: AgentConfig | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> SessionRecord:
        """See `SessionStore`."""
        record = SessionRecord(id=new_id("session"), agent_id=agent_id, name=name, config=config, meta=dict(meta or {}))

        def work(session: Session) -> None:
            if agent_id is not None:
                owned(session, AgentRow, owner, agent_id, what="agent")
            row = AgentSessionRow(id=record.id, owner=owner, created=record.created_at)
            _put(row, record)
            session.add(row)

        await self._write(work)
        return record

    async def session(self, owner: str, session_id: str) -> SessionRecord:
        """See `SessionStore`."""
        return await self._read(lambda session: _session(_session_row(session, owner, session_id)))

    async def sessions(self, owner: str, *, agent_id: str | None = None) -> list[SessionRecord]:
        """See `SessionStore`."""
        query = select(AgentSessionRow).where(AgentSessionRow.owner == owner)
        if agent_id is not None:
            query = query.where(AgentSessionRow.agent_id == agent_id)
        query = query.order_by(AgentSessionRow.used.desc(), AgentSessionRow.id.desc())
        return await self._read(lambda session: [_session(row) for row in session.scalars(query)])

    async def delete_session(self, owner: str, session_id: str) -> None:
        """See `SessionStore`."""
        await self._write(lambda session: _delete_session(session, _session_row(session, owner, session_id, lock=True)))

    async def begin_turn(self, owner: str, session_id: str, inputs: Sequence[Message], *, taint: Taint | None = None) -> Turn:
        """See `SessionStore`."""
        turn = Turn(session_id=session_id, inputs=tuple(inputs), taint=taint or Taint())

        def work(session: Session) -> Turn:
            row = _session_row(session, owner, session_id, lock=True)
            record = _session(row)
            record.check_free()
            with_session(turn, record, _turns(session, session_id), _files(session, session_id))
            session.add(
                AgentTurnRow(
                    id=turn.id,
                    owner=owner,
                    created=turn.started_at,
                    session_id=session_id,
                    number=row.num_turns,
                    status=turn.status,
                    data=_dumps(turn.to_dict(steps=False)),
                )
            )
            _put(row, replace(record.with_turn(turn), num_turns=row.num_turns + 1))
            return turn

        return await self._write(work)

    async def turn(self, owner: str, session_id: str, turn_id: str) -> Turn:
        """See `SessionStore`."""

        def work(session: Session) -> Turn:
            record = _session(_session_row(session, owner, session_id))
            found = _turns(session, session_id)
            place = next((index for index, turn in enumerate(found) if turn.id == turn_id), None)
            if place is None:
                raise NotFoundError(f"there is no turn {turn_id!r:.100}")
            return with_session(found[place], record, found[:place], _files(session, session_id))

        return await self._read(work)

    async def turns(self, owner: str, session_id: str) -> list[Turn]:
        """See `SessionStore`."""

        def work(session: Session) -> list[Turn]:
            _session_row(session, owner, session_id)
            return _turns(session, session_id)

        return await self._read(work)

    async def open_turns(self) -> list[tuple[str, str, str]]:
        """See `SessionStore`."""
        query = select(AgentSessionRow).where(AgentSessionRow.open_turn.is_not(None))
        return await self._read(lambda session: [(row.owner, row.id, row.open_turn or "") for row in session.scalars(query)])

    async def save_turn(self, owner: str, turn: Turn) -> None:
        """See `SessionStore`."""

        def work(session: Session) -> None:
            row = _session_row(session, owner, turn.session_id, lock=True)
            kept = owned(session, AgentTurnRow, owner, turn.id, what="turn", lock=True)
            kept.status, kept.data = turn.status, data
            _put(row, _session(row).with_turn(turn))

        data = _dumps(turn.to_dict(steps=False))
        await self._write(work)

    async def save_step(self, owner: str, turn: Turn, step: Step) -> None:
        """See `SessionStore`."""
        row = AgentStepRow(id=step.id, turn_id=turn.id, number=step.number, kind=step.kind, data=_dumps(step.to_dict()))

        def work(session: Session) -> None:
            owned(session, AgentTurnRow, owner, turn.id, what="turn")
            session.merge(row)

        await self._write(work)

    async def add_file(
        self, owner: str, session_id: str, file: Attachment, *, turn_id: str | None = None, step_id: str | None = None
    ) -> Kept:
        """See `SessionStore`."""
        kept = Kept(id=new_id("file"), file=file, turn_id=turn_id, step_id=step_id)

        def work(session: Session) -> None:
            _session_row(session, owner, session_id)
            session.add(
                AgentFileRow(
                    id=kept.id,
                    owner=owner,
                    created=kept.created_at,
                    session_id=session_id,
                    turn_id=turn_id,
                    step_id=step_id,
                    name=file.name,
                    mime_type=file.mime_type,
                    data=file.data,
                )
            )

        await self._write(work)
        return kept

    async def files(self, owner: str, session_id: str) -> list[Kept]:
        """See `SessionStore`."""

        def work(session: Session) -> list[Kept]:
            _session_row(session, owner, session_id)
            return _files(session, session_id)

        return await self._read(work)

    async def add_document(self, owner: str, session_id: str, *, text: str, title: str = "", source: str = "") -> Document:
        """See `SessionStore`."""
        document = Document(id=new_id("doc"), text=text, title=title, source=source)
        row = AgentDocumentRow(
            id=document.id,
            owner=owner,
            created=document.created_at,
            session_id=session_id,
            title=title,
            source=source,
            mime_type=document.mime_type,
            text=text,
        )

        def work(session: Session) -> None:
            _session_row(session, owner, session_id)
            session.add(row)

        await self._write(work)
        return document

    async def documents(self, owner: str, session_id: str) -> list[Document]:
        """See `SessionStore`."""

        def work(session: Session) -> list[Document]:
            _session_row(session, owner, session_id)
            query = select(AgentDocumentRow).where(AgentDocumentRow.session_id == session_id)
            return [_document(row) for row in session.scalars(query.order_by(AgentDocumentRow.created, AgentDocumentRow.id))]

        return await self._read(work)

    async def delete_document(self, owner: str, session_id: str, document_id: str) -> None:
        """See `SessionStore`."""

        def work(session: Session) -> None:
            row = owned(session, AgentDocumentRow, owner, document_id, what="document", lock=True)
            if row.session_id != session_id:
                raise NotFoundError(f"there is no document {document_id!r:.100}")
            session.delete(row)

        await self._write(work)


def _dumps(data: Any) -> str:
    return json.dumps(data, default=str)


def _agent(row: AgentRow) -> AgentRecord:
    return AgentRecord(id=row.id, config=AgentConfig.from_dict(json.loads(row.config)), created_at=row.created)


def _session_row(session: Session, owner: str, session_id: str, *, lock: bool = False) -> AgentSessionRow:
    return owned(session, AgentSessionRow, owner, session_id, what="session", hint=_HINT, lock=lock)


def _session(row: AgentSessionRow) -> SessionRecord:
    return SessionRecord(
        id=row.id,
        agent_id=row.agent_id,
        name=row.name,
        config=None if row.config is None else AgentConfig.from_dict(json.loads(row.config)),
        meta=json.loads(row.meta),
        taint=Taint(**json.loads(row.labels)),
        grants=frozenset(json.loads(row.grants)),
        open_turn=row.open_turn,
        num_turns=row.num_turns,
        created_at=row.created,
        used_at=row.used,
    )


def _put(row: AgentSessionRow, record: SessionRecord) -> None:
    row.agent_id, row.name, row.open_turn = record.agent_id, record.name, record.open_turn
    row.config = None if record.config is None else _dumps(record.config.to_dict())
    row.meta, row.labels, row.grants = _dumps(dict(record.meta)), _dumps(asdict(record.taint)), _dumps(sorted(record.grants))
    row.num_turns, row.used = record.num_turns, time.time()


def _turns(session: Session, session_id: str) -> list[Turn]:
    rows = session.scalars(select(AgentTurnRow).where(AgentTurnRow.session_id == session_id).order_by(AgentTurnRow.number)).all()
    query = select(AgentStepRow).where(AgentStepRow.turn_id.in_([row.id for row in rows]))
    steps: dict[str, list[Step]] = {}
    for row in session.scalars(query.order_by(AgentStepRow.number)) if rows else ():
        steps.setdefault(row.turn_id, []).append(step_from_dict(json.loads(row.data)))
    return [Turn.from_dict(json.loads(row.data), steps=steps.get(row.id, ())) for row in rows]


def _files(session: Session, session_id: str) -> list[Kept]:
    query = select(AgentFileRow).where(AgentFileRow.session_id == session_id).order_by(AgentFileRow.created, AgentFileRow.id)
    return [
        Kept(
            id=row.id,
            file=Attachment(name=row.name, mime_type=row.mime_type, data=row.data),
            turn_id=row.turn_id,
            step_id=row.step_id,
            created_at=row.created,
        )
        for row in session.scalars(query)
    ]


def _document(row: AgentDocumentRow) -> Document:
    return Document(id=row.id, text=row.text, title=row.title, source=row.source, mime_type=row.mime_type, created_at=row.created)


def _delete_session(session: Session, row: AgentSessionRow) -> None:
    """A session and all that is in it, whether or not the database follows its foreign keys."""
    turns = select(AgentTurnRow.id).where(AgentTurnRow.session_id == row.id).scalar_subquery()
    session.execute(delete(AgentStepRow).where(AgentStepRow.turn_id.in_(turns)))
    for kind in (AgentTurnRow, AgentDocumentRow, AgentFileRow):
        session.execute(delete(kind).where(kind.session_id == row.id))
    session.delete(row)
