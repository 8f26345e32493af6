"""The conversation behind `herd chat`: what each line does, with no terminal in it.

A line is a message or a /command. `Session.handle` answers through a `Screen`, which the terminal implements and tests fake. An interrupt keeps
what the model had said so far. Saved conversations are JSON: messages in OpenAI's shape and the settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from herd.base.errors import FormatError, HerdError, NotFoundError, UsageError, did_you_mean
from herd.inference.params import SamplingParams
from herd.inference.port import Finished
from herd.text.messages import Message
from herd.text.reply import CallDone, TextDelta
from herd.text.tool_calls import json_text

if TYPE_CHECKING:
    from herd.inference.llm import LLM

HELP = """\
/help             this list
/system TEXT      set the instructions (empty: none)
/set NAME VALUE   temperature, top_p, top_k, min_p, max_tokens, seed, stop
/show             model, settings, tokens used
/retry            answer the last message again
/undo             take back the last message and its answer
/save FILE        write the conversation
/load FILE        go on with a saved one
/clear            begin anew
/exit             leave (also Ctrl-D)

Enter sends, Alt-Enter begins a new line, \"\"\" opens and closes a long message, pasted text stays whole, Ctrl-C stops an answer and keeps it."""

COMMANDS = ("/help", "/system", "/set", "/show", "/retry", "/undo", "/save", "/load", "/clear", "/exit")
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
}


class Screen(Protocol):
    """Where a session writes: the answer, and remarks about it."""

    def answer(self, text: str) -> None:
        """A piece of the answer."""
        ...

    def remark(self, text: str) -> None:
        """A line that is not the answer."""
        ...


class Session:
    """A conversation with one model. `done` is true after /exit."""

    def __init__(self, llm: LLM, params: SamplingParams, screen: Screen, *, system: str | None = None) -> None:
        self.llm = llm
        self.params = params
        self.screen = screen
        self.system = system
        self.messages: list[Message] = []
        self.used = 0
        self.done = False

    def handle(self, text: str) -> None:
        """Take one message or command. Errors a user can cause are shown; the conversation goes on."""
        try:
            if text.lstrip().startswith("/"):
                self._command(text.strip())
            elif text.strip():
                self._say(text)
        except HerdError as error:
            self.screen.remark(f"error: {error.message}")
            if error.hint:
                self.screen.remark(f"hint: {error.hint}")

    def _say(self, text: str) -> None:
        self.messages.append(Message.user(text))
        try:
            self._answer()
        except HerdError:
            self.messages.pop()
            raise

    def _conversation(self) -> list[Message]:
        return [*([Message.system(self.system)] if self.system else []), *self.messages]

    def _answer(self) -> None:
        """Stream an answer to the last message; Ctrl-C keeps what has come."""
        pieces: list[str] = []
        finished: Finished | None = None
        events = self.llm.stream(self._conversation(), self.params)
        try:
            for event in events:
                if isinstance(event, TextDelta):
                    pieces.append(event.text)
                    self.screen.answer(event.text)
                elif isinstance(event, CallDone):
                    self.screen.answer(f"{event.call.name}({json_text(dict(event.call.arguments))})")
                elif isinstance(event, Finished):
                    finished = event
        except KeyboardInterrupt:
            self.screen.answer("\n")
            self.screen.remark("stopped; what was said is kept (/undo takes it back)")
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()
        self.messages.append(finished.message if finished else Message.assistant("".join(pieces)))
        if finished is not None:
            self.screen.answer("\n")
            self._statistics(finished)

    def _statistics(self, finished: Finished) -> None:
        usage, timings = finished.usage, finished.timings
        self.used = usage.prompt_tokens + usage.completion_tokens
        ended = "" if finished.reason == "stop" else f", ended by {finished.reason}"
        self.screen.remark(
            f"[{usage.completion_tokens} tokens, {timings.tokens_per_s:.1f} tokens/s, first after {timings.prefill_s:.2f} s, "
            f"context {self.used:,} of {self.llm.context:,}{ended}]"
        )

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        if name in ("/quit", "/bye"):
            name = "/exit"
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name}", hint=did_you_mean(name, COMMANDS, otherwise="/help lists the commands"))
        getattr(self, f"_do_{name[1:]}")(argument.strip())

    def _do_help(self, _: str) -> None:
        self.screen.remark(HELP)

    def _do_exit(self, _: str) -> None:
        self.done = True

    def _do_clear(self, _: str) -> None:
        self.messages.clear()
        self.used = 0
        self.screen.remark("cleared")

    def _do_system(self, text: str) -> None:
        self.system = text or None
        self.screen.remark(f"system: {self.system}" if self.system else "no system message")

    def _do_set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        value = value.strip()
        if name == "stop":
            self.params = replace(self.params, stop=(value,) if value else ())
        elif name in _NUMBERS:
            self.params = replace(self.params, **{name: self._number(name, value)})
        else:
            raise UsageError(f"unknown setting {name!r}", hint=did_you_mean(name, [*_NUMBERS, "stop"], otherwise="settings: " + ", ".join(_NUMBERS)))
        self.screen.remark(f"{name} = {getattr(self.params, name)}")

    def _number(self, name: str, value: str) -> Any:
        if value.lower() in ("none", "off", "") and name in ("seed", "max_tokens"):
            return None
        try:
            return _NUMBERS[name](value)
        except ValueError as error:
            raise UsageError(f"{name} is {value!r}, it must be a number", hint=f"write /set {name} 0.7" if "." in name else f"/set {name} 1") from error

    def _do_show(self, _: str) -> None:
        params = self.params
        self.screen.remark(f"model        {self.llm.name}: {self.llm.model.config.num_parameters:,} parameters")
        self.screen.remark(f"system       {self.system or '(none)'}")
        for name in (*_NUMBERS, "stop"):
            self.screen.remark(f"{name:12} {getattr(params, name)}")
        self.screen.remark(f"messages     {len(self.messages)}; context {self.used:,} of {self.llm.context:,} tokens used")

    def _do_undo(self, _: str) -> None:
        if not self.messages:
            raise UsageError("there is nothing to undo", hint="say something first")
        while self.messages and self.messages.pop().role != "user":
            pass
        self.screen.remark("took back the last message and its answer")

    def _do_retry(self, _: str) -> None:
        kept = list(self.messages)
        while self.messages and self.messages[-1].role != "user":
            self.messages.pop()
        if not self.messages:
            self.messages = kept
            raise UsageError("there is no message to answer again", hint="say something first")
        self._answer()

    def _do_save(self, argument: str) -> None:
        from herd.base.atomic import atomic_file

        if not argument:
            raise UsageError("/save needs a file name", hint="/save talk.json")
        settings = {name: getattr(self.params, name) for name in (*_NUMBERS, "stop")}
        data = {"model": self.llm.name, "settings": settings, "messages": [message.to_dict() for message in self._conversation()]}
        with atomic_file(Path(argument).expanduser()) as temporary:
            temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.screen.remark(f"saved {len(self.messages)} messages to {argument}")

    def _do_load(self, argument: str) -> None:
        if not argument:
            raise UsageError("/load needs a file name", hint="/load talk.json")
        messages = read_conversation(Path(argument).expanduser())
        self.system = messages[0].text if messages and messages[0].role == "system" else None
        self.messages = messages[1:] if self.system is not None else messages
        self.screen.remark(f"loaded {len(self.messages)} messages from {argument}")


def read_conversation(path: Path) -> list[Message]:
    """The messages of a saved conversation. Raises NotFoundError, or FormatError for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the name") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}", hint="load a file that /save wrote") from error
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise FormatError(f"{path} holds no list of messages", hint="load a file that /save wrote")
    return [Message.from_dict(message) for message in messages]
