"""Agents, sessions, documents and attachments as they are kept, and the protocol of what keeps them. Everything belongs to an owner.

An object of another owner does not exist. A session has one open turn at most; its labels and grants grow with its turns and never shrink.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from herd.agents.config import AgentConfig
from herd.agents.errors import SessionBusyError
from herd.agents.steps import Passage, Step, ToolStep
from herd.agents.turn import Turn
from herd.base.errors import UsageError
from herd.text.messages import Message
from herd.tools.tool import Attachment, Taint

MAX_DOCUMENT_CHARS = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentRecord:
    """An agent that is kept."""

    id: str
    config: AgentConfig
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """A session: its labels, the tools that run without asking, its open turn, and figures for lists."""

    id: str
    agent_id: str | None = None
    name: str = ""
    config: AgentConfig | None = None
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    taint: Taint = field(default_factory=Taint)
    grants: frozenset[str] = frozenset()
    open_turn: str | None = None
    num_turns: int = 0
    created_at: float = field(default_factory=time.time)
    used_at: float = field(default_factory=time.time)

    def with_turn(self, turn: Turn) -> SessionRecord:
        """The session after a turn was saved."""
        return replace(
            self,
            taint=self.taint | turn.taint_now(),
            grants=self.grants | frozenset(turn.grants),
            open_turn=turn.id if turn.is_open else None if self.open_turn == turn.id else self.open_turn,
            used_at=time.time(),
        )

    def check_free(self) -> None:
        """Raises SessionBusyError if a turn is open."""
        if self.open_turn is not None:
            raise SessionBusyError(
                f"session {self.id} has a turn that is not over: {self.open_turn}",
                hint="let it go on, answer what it waits for, or cancel it",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text that a session remembers: searched, cited, and taken for a stranger's word."""

    id: str
    text: str
    title: str = ""
    source: str = ""
    mime_type: str = "text/plain"
    created_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if len(self.text) > MAX_DOCUMENT_CHARS:
            raise UsageError(
                f"the document {self.title or self.source!r} has {len(self.text):,} characters, the limit is {MAX_DOCUMENT_CHARS:,}",
                hint="split it",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A file of a session: brought by the application (no turn), or given back by a tool."""

    id: str
    file: Attachment
    turn_id: str | None = None
    step_id: str | None = None
    created_at: float = field(default_factory=time.time)


@runtime_checkable
class SessionStore(Protocol):
    """What keeps agents and sessions. Every method raises NotFoundError for what the owner has not."""

    async def create_agent(self, owner: str, config: AgentConfig) -> AgentRecord:
        """Keep a new agent."""
        ...

    async def agent(self, owner: str, agent_id: str) -> AgentRecord:
        """An agent."""
        ...

    async def update_agent(self, owner: str, agent_id: str, config: AgentConfig) -> AgentRecord:
        """Change an agent; its sessions go on with the new one."""
        ...

    async def agents(self, owner: str) -> list[AgentRecord]:
        """All agents, newest first."""
        ...

    async def delete_agent(self, owner: str, agent_id: str) -> None:
        """Remove an agent and its sessions."""
        ...

    async def create_session(
        self,
        owner: str,
        *,
        agent_id: str | None = None,
        name: str = "",
        config: AgentConfig | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> SessionRecord:
        """Begin a session, of an agent or with a config of its own."""
        ...

    async def session(self, owner: str, session_id: str) -> SessionRecord:
        """A session."""
        ...

    async def sessions(self, owner: str, *, agent_id: str | None = None) -> list[SessionRecord]:
        """Sessions, of all agents or of one, last used first."""
        ...

    async def delete_session(self, owner: str, session_id: str) -> None:
        """Remove a session and all that is in it."""
        ...

    async def begin_turn(self, owner: str, session_id: str, inputs: Sequence[Message], *, taint: Taint | None = None) -> Turn:
        """A new turn, saved, with the session's history, labels, grants and files. Raises SessionBusyError while another is open."""
        ...

    async def turn(self, owner: str, session_id: str, turn_id: str) -> Turn:
        """A turn as it stands, with all that it needs to run on."""
        ...

    async def turns(self, owner: str, session_id: str) -> list[Turn]:
        """The turns of a session in order, without their histories."""
        ...

    async def open_turns(self) -> list[tuple[str, str, str]]:
        """Owner, session and turn of all that are not over, for a start after a crash."""
        ...

    async def save_turn(self, owner: str, turn: Turn) -> None:
        """A turn changed; so does its session."""
        ...

    async def save_step(self, owner: str, turn: Turn, step: Step) -> None:
        """A step is new or changed."""
        ...

    async def add_file(
        self, owner: str, session_id: str, file: Attachment, *, turn_id: str | None = None, step_id: str | None = None
    ) -> Kept:
        """Keep a file."""
        ...

    async def files(self, owner: str, session_id: str) -> list[Kept]:
        """The files of a session."""
        ...

    async def add_document(self, owner: str, session_id: str, *, text: str, title: str = "", source: str = "") -> Document:
        """Remember a text."""
        ...

    async def documents(self, owner: str, session_id: str) -> list[Document]:
        """What the session remembers."""
        ...

    async def delete_document(self, owner: str, session_id: str, document_id: str) -> None:
        """Forget a text."""
        ...


class StoreJournal:
    """A store as a turn's journal, for one owner."""

    def __init__(self, store: SessionStore, owner: str) -> None:
        self._store, self._owner = store, owner

    async def save_turn(self, turn: Turn) -> None:
        """See `Journal`."""
        await self._store.save_turn(self._owner, turn)

    async def save_step(self, turn: Turn, step: Step) -> None:
        """See `Journal`."""
        await self._store.save_step(self._owner, turn, step)

    async def save_attachment(self, turn: Turn, step: ToolStep, attachment: Attachment) -> str:
        """See `Journal`."""
        return (await self._store.add_file(self._owner, turn.session_id, attachment, turn_id=turn.id, step_id=step.id)).id


def with_session(turn: Turn, session: SessionRecord, before: Sequence[Turn], files: Sequence[Kept]) -> Turn:
    """A turn with what its session gives it: what was said, what may be cited, what runs without asking, and its files."""
    history: list[Message] = []
    passages: list[Passage] = []
    for earlier in before:
        history += earlier.said()
        if earlier.status == "failed" and history and history[-1].role == "user":
            history.pop()
        passages += earlier.all_passages()
    turn.history, turn.passages = tuple(history), tuple(passages)
    turn.grants |= session.grants
    turn.taint = turn.taint | session.taint
    turn.files = tuple(kept.file for kept in files if kept.turn_id is None)
    return turn
