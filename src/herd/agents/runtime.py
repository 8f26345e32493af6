"""What a turn runs with: a model behind the port, tools, shields, a journal, and whom to ask. One runtime serves any number of turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from herd.agents.config import Decision
from herd.agents.steps import Step, ToolStep
from herd.agents.toolset import Toolset
from herd.agents.turn import Turn
from herd.inference.port import AsyncInference, Caller
from herd.safety.shields import Shields
from herd.tools.tool import Attachment, Retriever

Approver = Callable[[ToolStep, Turn], Awaitable[Decision]]
"""Asks a person whether a call may run. `ToolStep.why` says what for."""


@runtime_checkable
class Journal(Protocol):
    """Where a turn is kept as it runs. What returns has been written; what raises ends the turn."""

    async def save_turn(self, turn: Turn) -> None:
        """The turn itself changed: its status, its answer."""
        ...

    async def save_step(self, turn: Turn, step: Step) -> None:
        """A step is new or changed. Called before the step is acted on."""
        ...

    async def save_attachment(self, turn: Turn, step: ToolStep, attachment: Attachment) -> str:
        """Keep a file that a tool gave back; its id."""
        ...


class NoJournal:
    """Keeps nothing: for turns that need not outlive the process."""

    async def save_turn(self, turn: Turn) -> None:
        """Nothing."""

    async def save_step(self, turn: Turn, step: Step) -> None:
        """Nothing."""

    async def save_attachment(self, turn: Turn, step: ToolStep, attachment: Attachment) -> str:
        """The file's own name."""
        return attachment.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """What a turn runs with.

    Attributes:
        inference: the model, here or on a server.
        tools: what it may call.
        shields: what judges at the four touch points; None: nothing does.
        journal: where steps are kept.
        approve: asks a person at once; None: the turn pauses instead, and goes on with `Turn.answer`.
        retriever: finds passages of the session's documents; None: there are none.
        caller: whose request it is, for the engine.
        secrets: keys for tools that came with the request, by name.
    """

    inference: AsyncInference
    tools: Toolset = field(default_factory=Toolset)
    shields: Shields | None = None
    journal: Journal = field(default_factory=NoJournal)
    approve: Approver | None = None
    retriever: Retriever | None = None
    caller: Caller = field(default_factory=Caller)
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
