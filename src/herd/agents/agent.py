"""`herd.Agent`: a model with tools, guards, sessions and a person who is asked. Here or against a server, in plain code or async alike.

    agent = herd.Agent(tools=[weather], instructions="Answer in one sentence.")
    print(agent.ask("Is it raining in Bern?").text)

The work runs in an event loop on a thread of the agent's own; `ask` and `stream` wait for it, `aask` and `astream` await it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.agents.assembly import runtime_of
from herd.agents.background import AsyncItems, Background
from herd.agents.config import AgentConfig, ApprovalMode, ApprovalPolicy, ClientTool, Decision, Memory, TurnLimits
from herd.agents.errors import AgentError
from herd.agents.events import AgentEvent, ToolDone
from herd.agents.function_tool import FunctionTool
from herd.agents.loop import cancel_turn, run_turn
from herd.agents.memory_store import MemorySessionStore
from herd.agents.models import Source, source_of
from herd.agents.result import AgentResult, result_of, schema_of
from herd.agents.runtime import Runtime
from herd.agents.sessions import SessionRecord, SessionStore
from herd.agents.sql_store import open_session_store
from herd.agents.steps import ToolStep
from herd.agents.toolset import toolset_of
from herd.agents.turn import Output, Turn
from herd.base.errors import UsageError
from herd.inference.params import SamplingParams
from herd.safety.defaults import DEFAULT_NAMES
from herd.safety.shields import Shields
from herd.text.messages import Message
from herd.tools.mcp.config import load_servers
from herd.tools.registry import Registry
from herd.tools.tool import Attachment, Taint, Tool
from herd.tools.toolbox import Toolbox, ToolboxConfig, open_toolbox

Approve = Callable[["ApprovalRequest"], Any]
OWNER = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalRequest:
    """What a person is asked: a call, what for, and the labels of the tool and of all that the session has seen.

    `why`: `policy` (the tool acts outside, or is set so), `rule_of_two` (untrusted input, private data and outside effect come together),
    `interrupted` (the call may have run before a crash).
    """

    tool: str
    arguments: Mapping[str, Any]
    why: str
    taint: Taint
    session_taint: Taint
    call_id: str
    session_id: str


class Agent:
    """A model with tools.

    Args:
        model: a name or path, a `herd.AsyncLLM`, or any `AsyncInference`; with `base_url`, the server's name of it.
        base_url: a server that speaks OpenAI's API, herd's own among them; None loads the model here.
        api_key: the server's key; None takes the variable HERD_API_KEY.
        instructions: the system message.
        tools: Python functions, `Tool` objects, `ClientTool`s that the application runs, and names of built-in tools or groups
            (`herd tools list`), such as "clock", "web_search", "code_interpreter" or "mcp::NAME".
        files: a folder that the file tools may read.
        shields: names of shields, a `Shields`, or () for none; default: those that ship.
        approve: asks a person, with an `ApprovalRequest`: returns "once", "always", "deny", or true or false. Plain or async. None: a turn
            with such a call waits, and `Session.answer` goes on with it.
        approval: how each tool is approved, by name: "auto", "ask" or "deny". Default: what acts outside is asked for, your own functions
            are not. The Rule of Two stands above it.
        limits: of a turn.
        sampling: how tokens are drawn.
        response: the form of the answer: a JSON Schema or a pydantic model; `AgentResult.parsed` has it.
        memory: how documents of a session are found: "tool", "always" or "off".
        num_passages: with "always", passages that are put before the model at each turn.
        store: where sessions are kept: a SQLite file, a database's URL, a `SessionStore`; None: in memory.
        owner: whose sessions they are.
        name: for people and traces.
        rule_of_two: whether a call that brings untrusted input, private data and outside effect together waits for a person.
        parallel_tool_calls: whether the model may call several tools at once.
        load: further arguments of `herd.AsyncLLM`, such as dtype.

    Raises:
        UsageError: arguments that do not go together.
        NotFoundError: a tool, a model or a folder that there is not.
    """

    def __init__(
        self,
        model: Any = "cria",
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        instructions: str = "",
        tools: Sequence[Any] = (),
        files: str | Path | None = None,
        shields: Sequence[str] | Shields = DEFAULT_NAMES,
        approve: Approve | None = None,
        approval: Mapping[str, ApprovalMode] | None = None,
        limits: TurnLimits | None = None,
        sampling: SamplingParams | None = None,
        response: Any = None,
        memory: Memory = "tool",
        num_passages: int = 5,
        store: str | Path | SessionStore | None = None,
        owner: str = OWNER,
        name: str = "",
        rule_of_two: bool = True,
        parallel_tool_calls: bool = True,
        **load: Any,
    ) -> None:
        self._own, client, names = _sorted(tools)
        if files is not None:
            names = (*names, "builtin::files") if "builtin::files" not in names else names
        self.owner, self.response, self._approve, self._files = owner, response, approve, files
        self._shields = shields if isinstance(shields, Shields) else None
        self._source: Source = source_of(model, base_url=base_url, api_key=api_key, load=load)
        functions: dict[str, ApprovalMode] = {tool.name: tool.approval for tool in self._own if isinstance(tool, FunctionTool)}
        self.config = AgentConfig(
            model=self._source.name,
            instructions=instructions,
            name=name,
            tools=names,
            client_tools=client,
            shields=() if isinstance(shields, Shields) else tuple(shields),
            limits=limits or TurnLimits(),
            approval=ApprovalPolicy(by_tool={**functions, **(approval or {})}),
            rule_of_two=rule_of_two,
            sampling=sampling or SamplingParams(),
            parallel_tool_calls=parallel_tool_calls,
            memory=memory,
            num_passages=num_passages,
            response_schema=schema_of(response),
        )
        self._opened = store is None or isinstance(store, str | Path)
        self.store: SessionStore = _store_of(store)
        self._background = Background()
        self._toolbox: Toolbox | None = None
        try:
            self.registry: Registry = self._background.run(self._open())
            self._inference = self._background.run(_bound(self._source))
        except BaseException:
            self.close()
            raise

    async def _open(self) -> Registry:
        """The tools that are named, and no others: nothing is started for what is not used."""
        if not self.config.tools:
            return Registry()
        names = self.config.tools
        wanted = ToolboxConfig.from_settings(files_root=None if self._files is None else str(self._files), warm=0, code=_wants_code(names))
        servers = tuple(server for server in load_servers() if _wants_server(names, server.name))
        self._toolbox = await open_toolbox(replace(wanted, servers=servers))
        for name in names:
            reason = self._toolbox.missing.get(name) or self._toolbox.missing.get(_GROUPS.get(name, ""))
            if reason is not None:
                raise UsageError(f"there is no {name} here: {reason}", hint="`herd tools list` shows what there is, and why not")
        return self._toolbox.registry

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End what was started for it: interpreters, connections, the model, the thread. What runs is cancelled."""
        if self._toolbox is not None:
            self._background.run(self._toolbox.close())
            self._toolbox = None
        if self._background.alive:
            self._background.run(_closed(self._source))
            self._background.close()
        if self._opened and hasattr(self.store, "close"):
            self.store.close()  # type: ignore[attr-defined]

    def session(self, session_id: str | None = None, *, name: str = "") -> Session:
        """A new session, or one to go on with. Raises NotFoundError."""
        return self._background.run(self._session(session_id, name))

    async def asession(self, session_id: str | None = None, *, name: str = "") -> Session:
        """As `session`, for async code."""
        return await self._background.arun(self._session(session_id, name))

    async def _session(self, session_id: str | None, name: str) -> Session:
        if session_id is None:
            record = await self.store.create_session(self.owner, name=name, config=self.config)
        else:
            record = await self.store.session(self.owner, session_id)
        return Session(self, record.id)

    def tool_labels(self) -> dict[str, Taint]:
        """What the model may call, by name, with the labels that count for the Rule of Two."""
        found = toolset_of(self.config, self.registry, more=self._own)
        return {name: found.find(name).taint for name in found.names}

    def sessions(self) -> list[SessionRecord]:
        """The sessions of this owner, last used first."""
        return self._background.run(self.store.sessions(self.owner))

    def ask(self, text: str) -> AgentResult:
        """Answer in a session of its own; `agent.session(result.session_id)` goes on with it."""
        return self.session().ask(text)

    async def aask(self, text: str) -> AgentResult:
        """As `ask`, for async code."""
        return await (await self.asession()).aask(text)

    def stream(self, text: str) -> Iterator[AgentEvent]:
        """As `ask`, event by event."""
        return self.session().stream(text)

    async def _runtime(self, session_id: str) -> Runtime:
        return await runtime_of(
            self.config,
            self.store,
            self.owner,
            session_id,
            self._inference,
            registry=self.registry,
            tools=self._own,
            shields=self._shields,
            approve=None if self._approve is None else self._ask_person,
        )

    async def _ask_person(self, step: ToolStep, turn: Turn) -> Decision:
        assert self._approve is not None
        request = ApprovalRequest(
            tool=step.call.name,
            arguments=step.call.arguments,
            why=step.why or "policy",
            taint=step.taint,
            session_taint=turn.taint_now(),
            call_id=step.call_id,
            session_id=turn.session_id,
        )
        if inspect.iscoroutinefunction(self._approve):
            said = await self._approve(request)
        else:
            said = await asyncio.to_thread(self._approve, request)
        if isinstance(said, bool):
            return "once" if said else "deny"
        return said if said in ("once", "always") else "deny"


class Session:
    """A conversation with an agent: turns that follow one another, files, documents."""

    def __init__(self, agent: Agent, session_id: str) -> None:
        self.agent, self.id = agent, session_id
        self._turn: Turn | None = None
        self._files: list[Attachment] = []

    @property
    def _background(self) -> Background:
        return self.agent._background

    def ask(self, text: str) -> AgentResult:
        """Answer. Raises SessionBusyError while a turn is open, AgentError for one that failed."""
        return self._background.run(self._whole(lambda: self._begin(text)))

    async def aask(self, text: str) -> AgentResult:
        """As `ask`, for async code."""
        return await self._background.arun(self._whole(lambda: self._begin(text)))

    def stream(self, text: str) -> Iterator[AgentEvent]:
        """As `ask`, event by event; leaving the loop early cancels the turn. `result` has the whole afterwards."""
        return self._background.iterate(lambda: self._begin(text))

    def astream(self, text: str) -> AsyncItems[AgentEvent]:
        """As `stream`, for async code."""
        return self._background.aiterate(lambda: self._begin(text))

    def answer(self, outputs: Mapping[str, Output | str] | None = None, decisions: Mapping[str, str] | None = None) -> AgentResult:
        """Give a waiting turn what it waits for, by call id, and run it on. Raises TurnStateError."""
        return self._background.run(self._whole(lambda: self._go_on(outputs, decisions)))

    async def aanswer(self, outputs: Mapping[str, Output | str] | None = None, decisions: Mapping[str, str] | None = None) -> AgentResult:
        """As `answer`, for async code."""
        return await self._background.arun(self._whole(lambda: self._go_on(outputs, decisions)))

    def stream_answer(
        self, outputs: Mapping[str, Output | str] | None = None, decisions: Mapping[str, str] | None = None
    ) -> Iterator[AgentEvent]:
        """As `answer`, event by event."""
        return self._background.iterate(lambda: self._go_on(outputs, decisions))

    def resume(self) -> AgentResult | None:
        """Run on a turn that a crash cut off, or that waits, now with whom to ask; None where there is none."""
        record = self._background.run(self.agent.store.session(self.agent.owner, self.id))
        return None if record.open_turn is None else self._background.run(self._whole(lambda: self._go_on(None, None)))

    def cancel(self) -> bool:
        """End the turn that runs, within its step, or that waits. False if there is none."""
        return self._background.run(self._cancel())

    @property
    def result(self) -> AgentResult | None:
        """Of the last turn that was run here."""
        return None if self._turn is None else self._result(self._turn)

    def add_file(self, file: str | Path | Attachment, *, mime_type: str | None = None) -> None:
        """A file for tools of this session, such as the code interpreter's working folder."""
        self._background.run(self.agent.store.add_file(self.agent.owner, self.id, _attachment(file, mime_type)))

    def remember(self, text: str | Path, *, title: str = "", source: str = "") -> str:
        """A document, as a text or by its path, that is searched and cited; returns its id."""
        if isinstance(text, Path):
            title, source = title or text.name, source or text.name
            text = text.read_text(encoding="utf-8")
        return self._background.run(self.agent.store.add_document(self.agent.owner, self.id, text=text, title=title, source=source)).id

    def remember_file(self, path: str | Path) -> str:
        """As `remember`, of a file of text. Raises UsageError for one that cannot be read as such."""
        try:
            return self.remember(Path(path))
        except (OSError, UnicodeError) as error:
            raise UsageError(f"cannot read {path} as text: {error}", hint="name a file of UTF-8 text") from error

    @property
    def record(self) -> SessionRecord:
        """What is kept of the session: labels, grants, its open turn."""
        return self._background.run(self.agent.store.session(self.agent.owner, self.id))

    @property
    def turns(self) -> list[Turn]:
        """The turns so far."""
        return self._background.run(self.agent.store.turns(self.agent.owner, self.id))

    async def _begin(self, text: str) -> AsyncGenerator[AgentEvent, None]:
        turn = await self.agent.store.begin_turn(self.agent.owner, self.id, [Message.user(text)])
        return self._events(turn)

    async def _go_on(
        self, outputs: Mapping[str, Output | str] | None, decisions: Mapping[str, str] | None
    ) -> AsyncGenerator[AgentEvent, None]:
        agent = self.agent
        record = await agent.store.session(agent.owner, self.id)
        if record.open_turn is None:
            raise AgentError(f"session {self.id} has no open turn", hint="ask something")
        turn = await agent.store.turn(agent.owner, self.id, record.open_turn)
        turn.answer(outputs, decisions)
        return self._events(turn)

    async def _events(self, turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        self._turn, self._files = turn, []
        runtime = await self.agent._runtime(self.id)
        async for event in _closing(run_turn(runtime, self.agent.config, turn)):
            if isinstance(event, ToolDone):
                self._files += event.attachments
            yield event

    async def _whole(self, start: Callable[[], Any]) -> AgentResult:
        async for _ in _closing(await start()):
            pass
        assert self._turn is not None
        turn = self._turn
        if turn.status == "failed" and turn.error is not None:
            error = AgentError(str(turn.error["message"]), hint=turn.error.get("hint"))
            error.code = str(turn.error["code"])
            raise error
        return self._result(turn)

    def _result(self, turn: Turn) -> AgentResult:
        return result_of(turn, tuple(self._files), self.agent.response)

    async def _cancel(self) -> bool:
        agent = self.agent
        record = await agent.store.session(agent.owner, self.id)
        if record.open_turn is None:
            return False
        if cancel_turn(record.open_turn):
            return True
        turn = await agent.store.turn(agent.owner, self.id, record.open_turn)
        runtime = await agent._runtime(self.id)
        generator = run_turn(runtime, agent.config, turn)
        first = asyncio.ensure_future(anext(generator))
        await asyncio.sleep(0)
        cancel_turn(turn.id)
        await first
        await generator.aclose()
        return True


_GROUPS = {
    "web_search": "builtin::websearch",
    "wolfram_alpha": "builtin::wolfram_alpha",
    "knowledge_search": "builtin::rag",
    "code_interpreter": "builtin::code_interpreter",
    "list_files": "builtin::files",
    "read_file": "builtin::files",
    "search_files": "builtin::files",
}


def _wants_code(names: Iterable[str]) -> bool:
    return any(name in ("code_interpreter", "builtin::code_interpreter") for name in names)


def _wants_server(names: Iterable[str], server: str) -> bool:
    return any(name == f"mcp::{server}" or name.startswith(f"{server}__") for name in names)


def _sorted(tools: Sequence[Any]) -> tuple[list[Tool], tuple[ClientTool, ...], tuple[str, ...]]:
    """What runs here as an object, what the application runs, and names."""
    own: list[Tool] = []
    client: list[ClientTool] = []
    names: list[str] = []
    for item in tools:
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, ClientTool):
            client.append(item)
        elif isinstance(item, Tool):
            own.append(item)
        elif callable(item):
            own.append(FunctionTool(item))
        else:
            raise UsageError(f"{item!r:.80} is no tool", hint="give a function, a Tool, a ClientTool or a name from `herd tools list`")
    return own, tuple(client), tuple(names)


def _store_of(store: Any) -> SessionStore:
    if store is None:
        return MemorySessionStore()
    return open_session_store(store) if isinstance(store, str | Path) else store


async def _bound(source: Source) -> Any:
    return source.bind()


async def _closed(source: Source) -> None:
    await source.close()


async def _closing(items: AsyncGenerator[AgentEvent, None]) -> AsyncGenerator[AgentEvent, None]:
    try:
        async for item in items:
            yield item
    finally:
        await items.aclose()


def _attachment(file: str | Path | Attachment, mime_type: str | None) -> Attachment:
    import mimetypes

    if isinstance(file, Attachment):
        return file
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="check the name") from error
    return Attachment(name=path.name, mime_type=mime_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream", data=data)
