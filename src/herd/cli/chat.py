"""`herd chat`: the terminal around a `repl.Session`. Editing, history and completion are prompt_toolkit's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.base.errors import FormatError, UsageError
from herd.cli.failures import INTERRUPTED
from herd.cli.load import (
    DeviceOption,
    DtypeOption,
    MaxTokensOption,
    ModelOption,
    PpOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    TpOption,
    load_llm,
)

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from herd.cli.remote_chat import RemoteChat
    from herd.inference.llm import LLM

_FENCE = '"""'


class _Terminal:
    """The answer on stdout, remarks dimmed on stderr."""

    def answer(self, text: str) -> None:
        from herd.cli.output import write

        write(text)

    def remark(self, text: str) -> None:
        from herd.cli.output import dim, note

        note(dim(text))


def chat(
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="Instructions for the whole conversation.")] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    tp: TpOption = 1,
    pp: PpOption = 1,
    base_url: Annotated[
        str | None, typer.Option(help="Talk to a model of an OpenAI-compatible server, as http://HOST/v1: --model, or its first.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key for --base-url. [variable: HERD_API_KEY, which other users do not see]")
    ] = None,
) -> None:
    """Talk to a model. /help lists what can be said besides messages.

    From a pipe every line is a message; triple quotes open and close one of several lines.
    """
    from herd.cli.remote_chat import RemoteChat
    from herd.cli.repl import Session
    from herd.cli.stdin import utf8
    from herd.inference.params import SamplingParams

    utf8(system or "", "text of --system")
    params = SamplingParams(
        temperature=settings.value("temperature", temperature),
        top_p=settings.value("top_p", top_p),
        max_tokens=settings.value("max_tokens", max_tokens),
        seed=seed,
    )

    def load(name: str | None) -> LLM | RemoteChat:
        if base_url is not None:
            return RemoteChat(base_url, name, api_key)
        return load_llm(name, device=device, dtype=dtype, threads=threads, tp=tp, pp=pp)

    _check_place(base_url, api_key, {"--device": device, "--dtype": dtype, "--threads": threads})
    llm = load(model)
    session = Session(llm, params, _Terminal(), system=system, load=load)
    _greet(llm)
    typed = sys.stdin.isatty()
    for text in _typed() if typed else _piped(_stdin_lines()):
        session.handle(text)
        if session.stopped and not typed:
            raise typer.Exit(INTERRUPTED)
        if session.done:
            break


def _check_place(base_url: str | None, api_key: str | None, local: Mapping[str, object]) -> None:
    """Raises UsageError for options of a model here beside one elsewhere, and the other way about."""
    if base_url is None and api_key is not None:
        raise UsageError("--api-key is for a server, and none is named", hint="add --base-url http://HOST/v1")
    given = next((name for name, value in local.items() if value is not None), None)
    if base_url is not None and given is not None:
        raise UsageError(f"{given} is for a model on this machine, --base-url names one elsewhere", hint="leave out one of them")


def _greet(llm: LLM | RemoteChat) -> None:
    from herd.cli.output import dim, note
    from herd.cli.repl import told_of

    note(dim(f"{llm.name}: {told_of(llm)}. /help lists commands, Ctrl-D leaves."))


def _stdin_lines() -> Iterator[str]:
    """Lines of a pipe as they come. Raises FormatError for one that is not UTF-8."""
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"line {number} on stdin is not UTF-8", hint="convert it: iconv -t UTF-8") from error


def _piped(lines: Iterator[str]) -> Iterator[str]:
    """A message a line; a line that is only triple quotes opens a message of several lines, the next one closes it."""
    for line in lines:
        text = line.rstrip("\r\n")
        if text.strip().startswith(_FENCE):
            text = _fenced(text, lines)
        if text.strip():
            yield text


def _fenced(first: str, lines: Iterator[str]) -> str:
    body = first.strip().removeprefix(_FENCE)
    while not body.rstrip().endswith(_FENCE):
        following = next(lines, None)
        if following is None:
            return body
        body += "\n" + following.rstrip("\r\n")
    return body.rstrip().removesuffix(_FENCE).strip("\n")


def _typed() -> Iterator[str]:
    """Messages to a model."""
    from herd.cli.repl import COMMANDS, SETTINGS

    return typed_messages([*COMMANDS, *(f"/set {name}" for name in SETTINGS)])


def piped_messages() -> Iterator[str]:
    """Messages from a pipe."""
    return _piped(_stdin_lines())


def typed_messages(words: Sequence[str]) -> Iterator[str]:
    """Messages from a terminal, with editing, history on disk and completed commands."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    prompts: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=_keys(),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
        tempfile_suffix=".txt",
        # What is typed is shown on stderr where answers go to a file.
        output=create_output(always_prefer_tty=True),
    )
    while True:
        try:
            yield _one_message(prompts.prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _history() -> History:
    """What was typed before, in herd's home, readable by its owner alone; of this session only, where nothing can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from herd.base.paths import home

    path = home() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path)) if os.access(path, os.W_OK) else InMemoryHistory()


def _keys() -> KeyBindings:
    """Alt-Enter begins a new line, Ctrl-G opens the editor."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


def _one_message(ask: Callable[[str], str]) -> str:
    """Ask for a message; triple quotes go on until they are closed."""
    text = ask(">>> ")
    if not text.strip().startswith(_FENCE):
        return text

    def rest() -> Iterator[str]:
        while True:
            yield ask("... ")

    return _fenced(text, rest())
