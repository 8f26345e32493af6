"""`herd chat`: the terminal around a `repl.Session`. Editing, history and completion are prompt_toolkit's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.cli.load import (
    DeviceOption,
    DtypeOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    load_llm,
)

if TYPE_CHECKING:
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
) -> None:
    """Talk to a model. /help lists the commands."""
    from herd.cli.repl import Session
    from herd.inference.params import SamplingParams

    params = SamplingParams(
        temperature=settings.value("temperature", temperature),
        top_p=settings.value("top_p", top_p),
        max_tokens=settings.value("max_tokens", max_tokens),
        seed=seed,
    )
    llm = load_llm(model, device=device, dtype=dtype, threads=threads)
    session = Session(llm, params, _Terminal(), system=system)
    _greet(llm)
    for text in _inputs():
        session.handle(text)
        if session.done:
            break


def _greet(llm: LLM) -> None:
    from herd.cli.output import dim, note

    note(dim(f"{llm.name}: {llm.model.config.num_parameters:,} parameters, context {llm.context:,} tokens. /help lists commands, Ctrl-D leaves."))


def _inputs() -> Iterator[str]:
    """Messages, from the terminal or from a pipe."""
    return _typed() if sys.stdin.isatty() else _piped(iter(sys.stdin))


def _piped(lines: Iterator[str]) -> Iterator[str]:
    """A message a line; a line that is only triple quotes opens a message of several lines, the next one closes it."""
    for line in lines:
        text = line.rstrip("\n")
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
        body += "\n" + following.rstrip("\n")
    return body.rstrip().removesuffix(_FENCE).strip("\n")


def _typed() -> Iterator[str]:
    """Messages from a terminal, with editing, history on disk and completed commands."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from herd.base.paths import home
    from herd.cli.repl import COMMANDS

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    try:
        home().mkdir(parents=True, exist_ok=True)
        history = FileHistory(str(home() / "history"))
    except OSError:
        history = InMemoryHistory()
    prompts: PromptSession[str] = PromptSession(
        history=history, key_bindings=keys, completer=WordCompleter(list(COMMANDS), sentence=True), complete_while_typing=False,
        enable_open_in_editor=True,
    )  # fmt: skip
    while True:
        try:
            yield _one_message(prompts.prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _one_message(ask) -> str:  # type: ignore[no-untyped-def]
    """Ask for a message; triple quotes go on until they are closed."""
    text = ask(">>> ")
    if not text.strip().startswith(_FENCE):
        return text

    def rest() -> Iterator[str]:
        while True:
            yield ask("... ")

    return _fenced(text, rest())
