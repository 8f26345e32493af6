"""Putting together what a turn runs with: tools from a registry, a session's memory, shields by name, a journal. For the class, the command
line and the routes alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from herd.agents.config import AgentConfig
from herd.agents.memory import SessionMemory
from herd.agents.runtime import Approver, Runtime
from herd.agents.sessions import SessionStore, StoreJournal
from herd.agents.toolset import toolset_of
from herd.inference.port import AsyncInference, Caller
from herd.safety.defaults import default_shields
from herd.safety.shields import Shields
from herd.tools.knowledge import KnowledgeSearchTool
from herd.tools.registry import Registry
from herd.tools.tool import Tool


@lru_cache(maxsize=32)
def shields_of(names: tuple[str, ...]) -> Shields | None:
    """The shields of these names, made once; None for none. Raises ConfigError for a name that there is not."""
    return default_shields(names=names) if names else None


async def runtime_of(
    config: AgentConfig,
    store: SessionStore,
    owner: str,
    session_id: str,
    inference: AsyncInference,
    *,
    registry: Registry | None = None,
    tools: Iterable[Tool] = (),
    shields: Shields | None = None,
    approve: Approver | None = None,
    caller: Caller | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Runtime:
    """What a turn of a session runs with.

    Args:
        config: the agent.
        store: where its sessions are kept.
        owner: whose session it is.
        session_id: the session.
        inference: the model.
        registry: tools by name, for those that the config names.
        tools: tools beside them.
        shields: in place of those that the config names.
        approve: asks a person; None lets turns pause.
        caller: whose request it is.
        secrets: keys for tools.

    Raises:
        NotFoundError: a tool that there is not.
        ConfigError: a shield that there is not, a tool's name twice.
    """
    more = list(tools)
    memory = None
    if config.memory != "off" and await store.documents(owner, session_id):
        memory = SessionMemory(store, owner, session_id)
        more.append(KnowledgeSearchTool(memory))
    return Runtime(
        inference=inference,
        tools=toolset_of(config, registry, more=more),
        shields=shields if shields is not None else shields_of(config.shields),
        journal=StoreJournal(store, owner),
        approve=approve,
        retriever=memory,
        caller=caller or Caller(),
        secrets=dict(secrets or {}),
    )
