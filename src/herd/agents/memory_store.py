"""A session store in memory: for scripts and tests. What it gives out is a copy, as from a database."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from herd.agents.config import AgentConfig
from herd.agents.ids import new_id
from herd.agents.sessions import AgentRecord, Document, Kept, SessionRecord, with_session
from herd.agents.steps import Step
from herd.agents.turn import Turn
from herd.base.errors import NotFoundError
from herd.text.messages import Message
from herd.tools.tool import Attachment, Taint


class MemorySessionStore:
    """A `SessionStore` that goes with the process."""

    def __init__(self) -> None:
        self._agents: dict[tuple[str, str], AgentRecord] = {}
        self._sessions: dict[tuple[str, str], SessionRecord] = {}
        self._turns: dict[str, dict[str, str]] = {}
        self._steps: dict[str, dict[str, str]] = {}
        self._files: dict[str, list[Kept]] = {}
        self._documents: dict[str, list[Document]] = {}

    async def create_agent(self, owner: str, config: AgentConfig) -> AgentRecord:
        """See `SessionStore`."""
        record = AgentRecord(id=new_id("agent"), config=config)
        self._agents[owner, record.id] = record
        return record

    async def agent(self, owner: str, agent_id: str) -> AgentRecord:
        """See `SessionStore`."""
        return _found(self._agents, owner, agent_id, "agent")

    async def update_agent(self, owner: str, agent_id: str, config: AgentConfig) -> AgentRecord:
        """See `SessionStore`."""
        record = self._agents[owner, agent_id] = replace(await self.agent(owner, agent_id), config=config)
        return record

    async def agents(self, owner: str) -> list[AgentRecord]:
        """See `SessionStore`."""
        return [record for (whose, _), record in reversed(self._agents.items()) if whose == owner]

    async def delete_agent(self, owner: str, agent_id: str) -> None:
        """See `SessionStore`."""
        await self.agent(owner, agent_id)
        for session in await self.sessions(owner, agent_id=agent_id):
            await self.delete_session(owner, session.id)
        del self._agents[owner, agent_id]

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
        if agent_id is not None:
            await self.agent(owner, agent_id)
        record = SessionRecord(id=new_id("session"), agent_id=agent_id, name=name, config=config, meta=dict(meta or {}))
        self._sessions[owner, record.id] = record
        return record

    async def session(self, owner: str, session_id: str) -> SessionRecord:
        """See `SessionStore`."""
        return _found(self._sessions, owner, session_id, "session")

    async def sessions(self, owner: str, *, agent_id: str | None = None) -> list[SessionRecord]:
        """See `SessionStore`."""
        found = [record for (whose, _), record in self._sessions.items() if whose == owner and agent_id in (None, record.agent_id)]
        return sorted(found, key=lambda record: record.used_at, reverse=True)

    async def delete_session(self, owner: str, session_id: str) -> None:
        """See `SessionStore`."""
        await self.session(owner, session_id)
        del self._sessions[owner, session_id]
        for turn_id in self._turns.pop(session_id, {}):
            self._steps.pop(turn_id, None)
        self._files.pop(session_id, None)
        self._documents.pop(session_id, None)

    async def begin_turn(self, owner: str, session_id: str, inputs: Sequence[Message], *, taint: Taint | None = None) -> Turn:
        """See `SessionStore`."""
        session = await self.session(owner, session_id)
        session.check_free()
        turn = Turn(session_id=session_id, inputs=tuple(inputs), taint=taint or Taint())
        with_session(turn, session, await self.turns(owner, session_id), await self.files(owner, session_id))
        self._sessions[owner, session_id] = replace(session, num_turns=session.num_turns + 1)
        await self.save_turn(owner, turn)
        return turn

    async def turn(self, owner: str, session_id: str, turn_id: str) -> Turn:
        """See `SessionStore`."""
        session, all_turns = await self.session(owner, session_id), await self.turns(owner, session_id)
        place = next((index for index, turn in enumerate(all_turns) if turn.id == turn_id), None)
        if place is None:
            raise _missing("turn", turn_id)
        return with_session(all_turns[place], session, all_turns[:place], await self.files(owner, session_id))

    async def turns(self, owner: str, session_id: str) -> list[Turn]:
        """See `SessionStore`."""
        await self.session(owner, session_id)
        return [self._read(turn_id, text) for turn_id, text in self._turns.get(session_id, {}).items()]

    def _read(self, turn_id: str, text: str) -> Turn:
        steps = sorted((json.loads(step) for step in self._steps.get(turn_id, {}).values()), key=lambda step: step["number"])
        return Turn.from_dict(json.loads(text) | {"steps": steps})

    async def open_turns(self) -> list[tuple[str, str, str]]:
        """See `SessionStore`."""
        return [(owner, record.id, record.open_turn) for (owner, _), record in self._sessions.items() if record.open_turn is not None]

    async def save_turn(self, owner: str, turn: Turn) -> None:
        """See `SessionStore`."""
        session = await self.session(owner, turn.session_id)
        self._turns.setdefault(turn.session_id, {})[turn.id] = json.dumps(turn.to_dict(steps=False))
        self._sessions[owner, turn.session_id] = session.with_turn(turn)

    async def save_step(self, owner: str, turn: Turn, step: Step) -> None:
        """See `SessionStore`."""
        await self.session(owner, turn.session_id)
        self._steps.setdefault(turn.id, {})[step.id] = json.dumps(step.to_dict(), default=str)

    async def add_file(
        self, owner: str, session_id: str, file: Attachment, *, turn_id: str | None = None, step_id: str | None = None
    ) -> Kept:
        """See `SessionStore`."""
        await self.session(owner, session_id)
        kept = Kept(id=new_id("file"), file=file, turn_id=turn_id, step_id=step_id)
        self._files.setdefault(session_id, []).append(kept)
        return kept

    async def files(self, owner: str, session_id: str) -> list[Kept]:
        """See `SessionStore`."""
        await self.session(owner, session_id)
        return list(self._files.get(session_id, ()))

    async def add_document(self, owner: str, session_id: str, *, text: str, title: str = "", source: str = "") -> Document:
        """See `SessionStore`."""
        await self.session(owner, session_id)
        document = Document(id=new_id("doc"), text=text, title=title, source=source, created_at=time.time())
        self._documents.setdefault(session_id, []).append(document)
        return document

    async def documents(self, owner: str, session_id: str) -> list[Document]:
        """See `SessionStore`."""
        await self.session(owner, session_id)
        return list(self._documents.get(session_id, ()))

    async def delete_document(self, owner: str, session_id: str, document_id: str) -> None:
        """See `SessionStore`."""
        found = await self.documents(owner, session_id)
        kept = [document for document in found if document.id != document_id]
        if len(kept) == len(found):
            raise _missing("document", document_id)
        self._documents[session_id] = kept


def _missing(what: str, name: str) -> NotFoundError:
    return NotFoundError(f"there is no {what} {name!r:.100}", hint="`herd agent --list` shows the sessions" if what == "session" else None)


def _found(where: dict[tuple[str, str], Any], owner: str, name: str, what: str) -> Any:
    if (owner, name) not in where:
        raise _missing(what, name)
    return where[owner, name]
