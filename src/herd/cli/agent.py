"""`herd agent`: a model with tools in the terminal, its sessions kept, and a person asked where one is due."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.base import settings
from herd.cli.failures import INTERRUPTED
from herd.cli.load import JsonOption, MaxTokensOption, ModelOption, SeedOption, TemperatureOption, ThreadsOption, TopPOption, set_threads

if TYPE_CHECKING:
    from herd.agents.agent import Agent, ApprovalRequest, Session

APPROVALS = ("ask", "always", "never")


class _Terminal:
    """The answer on stdout, remarks on stderr; questions where somebody sits, else no."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self.asked_in_vain = False

    def answer(self, text: str) -> None:
        from herd.cli.output import write

        if not self._quiet:
            write(text)

    def remark(self, text: str) -> None:
        from herd.cli.output import dim, note

        note(dim(text))

    def decide(self, question: str) -> str:
        from herd.cli.output import note

        if not sys.stdin.isatty():
            self.asked_in_vain = True
            note(question + "\nnobody can be asked here, so no; --approve always says yes to what only acts outside")
            return "deny"
        note(question)
        while True:
            sys.stderr.write("[y] once  [a] always in this session  [n] no: ")
            sys.stderr.flush()
            said = sys.stdin.readline().strip().lower()
            if said in ("y", "yes", "a", "always", "n", "no", ""):
                return {"y": "once", "a": "always"}.get(said[:1], "deny")


def agent(
    prompt: Annotated[
        str | None, typer.Argument(help="What to do, answered once; `trace` SESSION shows a session. None talks; - reads stdin.")
    ] = None,
    subject: Annotated[str | None, typer.Argument(help="The session of `herd agent trace SESSION`.", show_default=False)] = None,
    model: ModelOption = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Ask the model of a server at this base URL, as http://127.0.0.1:8321/v1.")
    ] = None,
    instructions: Annotated[str, typer.Option("--instructions", "-i", help="The system message.")] = "",
    tools: Annotated[
        list[str] | None, typer.Option("--tools", help="Tool or group by name (`herd tools list`); may be given again.")
    ] = None,
    mcp: Annotated[list[str] | None, typer.Option("--mcp", help="MCP server of mcp.toml by name; may be given again.")] = None,
    files: Annotated[Path | None, typer.Option("--files", help="Folder that the file tools may read.")] = None,
    documents: Annotated[list[Path] | None, typer.Option("--document", help="Text file to search and cite; may be given again.")] = None,
    shields: Annotated[str, typer.Option("--shields", help="Shields by name with commas, or none.")] = "harm,injection,code-shield,secrets",
    approve: Annotated[
        str, typer.Option(help="ask, always or never, for what acts outside. The Rule of Two is asked for in any case.")
    ] = "ask",
    session: Annotated[str | None, typer.Option("--session", "-s", help="Go on with a session.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the sessions and leave.")] = False,
    database: Annotated[
        str | None, typer.Option("--database", help="File or URL of the sessions. [default: agents.db in herd's home]")
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Answers of the model in a turn at most.")] = 10,
    max_seconds: Annotated[float, typer.Option(help="Seconds of a turn at most.")] = 300.0,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Let a model work with tools: guarded, its steps kept, and you asked before anything outside is changed.

    With a prompt it answers once; without, you talk to it (/help lists commands). Exit code 1 if a turn fails or waits for a yes.
    """
    place = _database(database)
    if list_:
        _list(place, as_json=json)
        return
    if prompt == "trace" and subject is not None:
        _trace(place, subject, as_json=json)
        return
    _check(prompt, subject, approve)
    screen = _Terminal(quiet=json)
    set_threads(threads)
    made = _agent(
        screen,
        approve,
        model=settings.value("model", model),
        base_url=url,
        instructions=instructions,
        tools=[*(tools or ()), *(f"mcp::{name}" for name in mcp or ())],
        files=files,
        shields=() if shields in ("", "none") else tuple(name.strip() for name in shields.split(",")),
        store=place,
        max_steps=max_steps,
        max_seconds=max_seconds,
        sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed},
    )
    with made:
        talked = made.session(session)
        for path in documents or ():
            talked.remember_file(path)
        if prompt is None:
            _talk(made, talked, screen)
        else:
            _once(made, talked, prompt, screen, as_json=json)


def _check(prompt: str | None, subject: str | None, approve: str) -> None:
    from herd.base.errors import UsageError, did_you_mean

    if subject is not None:
        raise UsageError(f"there is a second argument, {subject!r}", hint="put the prompt into quotes, or write herd agent trace SESSION")
    if prompt == "trace":
        raise UsageError("trace needs a session", hint="herd agent --list shows them")
    if approve not in APPROVALS:
        raise UsageError(f"--approve is {approve!r}", hint=did_you_mean(approve, APPROVALS, otherwise="choose ask, always or never"))


def _database(flag: str | None) -> str:
    from herd.base.paths import home

    return flag or str(home() / "agents.db")


def _agent(screen: _Terminal, approve: str, *, max_steps: int, max_seconds: float, sampling: dict[str, Any], **more: Any) -> Agent:
    from herd.agents.agent import Agent
    from herd.agents.config import TurnLimits
    from herd.cli.agent_talk import question_of
    from herd.inference.params import SamplingParams

    def decide(request: ApprovalRequest) -> str:
        if request.why == "policy" and approve != "ask":
            return "once" if approve == "always" else "deny"
        return screen.decide(question_of(request))

    params = SamplingParams(
        temperature=settings.value("temperature", sampling["temperature"]),
        top_p=settings.value("top_p", sampling["top_p"]),
        max_tokens=settings.value("max_tokens", sampling["max_tokens"]),
        seed=sampling["seed"],
    )
    return Agent(approve=decide, limits=TurnLimits(max_steps=max_steps, max_seconds=max_seconds), sampling=params, **more)


def _talk(agent: Agent, session: Session, screen: _Terminal) -> None:
    from herd.cli.agent_talk import COMMANDS, Talk
    from herd.cli.chat import piped_messages, typed_messages

    talk = Talk(agent, screen, session=session)
    screen.remark(f"{agent.config.model} with {', '.join(agent.tool_labels()) or 'no tools'}; session {session.id}. /help lists commands.")
    if session.record.open_turn is not None:
        talk.go_on()
    typed = sys.stdin.isatty()
    for text in typed_messages(COMMANDS) if typed else piped_messages():
        talk.handle(text)
        if talk.stopped and not typed:
            raise typer.Exit(INTERRUPTED)
        if talk.done:
            break


def _once(agent: Agent, session: Session, prompt: str, screen: _Terminal, *, as_json: bool) -> None:
    from herd.cli.agent_talk import Talk
    from herd.cli.output import print_json
    from herd.cli.stdin import argument_or_stdin

    text = argument_or_stdin(prompt, "prompt", example='herd agent --tools clock "What day is it?"')
    talk = Talk(agent, screen, session=session)
    if session.record.open_turn is not None:
        talk.go_on()
    result = talk.say(text)
    if as_json and result is not None:
        print_json(result.to_dict())
    if talk.stopped:
        raise typer.Exit(INTERRUPTED)
    if result is None or result.status in ("failed", "waiting"):
        raise typer.Exit(1)


def _list(place: str, *, as_json: bool) -> None:
    import asyncio
    import time

    from herd.agents.sql_store import open_session_store
    from herd.agents.trace import labels_of
    from herd.cli.output import note, print_json, table

    store = open_session_store(place)
    try:
        found = asyncio.run(store.sessions("local"))
    finally:
        store.close()
    rows = [
        {
            "id": record.id,
            "name": record.name,
            "model": "" if record.config is None else record.config.model,
            "num_turns": record.num_turns,
            "open_turn": record.open_turn,
            "labels": labels_of(record.taint),
            "used_at": record.used_at,
        }
        for record in found
    ]
    if as_json:
        print_json({"sessions": rows})
    elif not rows:
        note("no sessions yet")
    else:
        shown = [
            [
                str(row["id"]),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(float(row["used_at"]))),
                str(row["num_turns"]),
                str(row["model"]),
            ]
            for row in rows
        ]
        table(shown, ["session", "last used", "turns", "model"])


def _trace(place: str, session_id: str, *, as_json: bool) -> None:
    import asyncio

    from herd.agents.sql_store import open_session_store
    from herd.agents.trace import trace_lines
    from herd.cli.agent_talk import printable
    from herd.cli.output import line, print_json

    store = open_session_store(place)
    try:
        turns = asyncio.run(store.turns("local", session_id))
    finally:
        store.close()
    if as_json:
        print_json({"session_id": session_id, "turns": [turn.to_dict() for turn in turns]})
    else:
        for text in trace_lines(turns):
            line(printable(text))
