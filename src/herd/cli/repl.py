"""The conversation behind `herd chat`: what each line does, with no terminal in it.

A line is a message or a /command. `Session.handle` answers through a `Screen`, which the terminal implements and tests fake. An interrupt
keeps what the model had said so far. Saved conversations are JSON: messages in OpenAI's shape and the settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from herd.base.errors import ContextOverflowError, FormatError, HerdError, NotFoundError, UsageError, did_you_mean
from herd.cli.failures import known_error
from herd.inference.params import SamplingParams
from herd.inference.port import Event, Finished
from herd.text.messages import Message
from herd.text.reply import CallDone, TextDelta
from herd.text.tool_calls import json_text

if TYPE_CHECKING:
    from herd.cli.remote_chat import RemoteChat
    from herd.inference.llm import LLM

HELP = """\
/help             this list
/model NAME       go on with another model: path, hub name or alias (none: which one answers)
/system TEXT      set the instructions (none: no instructions)
/set NAME VALUE   temperature, top_p, top_k, min_p, max_tokens, seed, stop
/show             model, instructions, settings, context used
/stats            answers, tokens and speed so far
/retry            answer the last message again
/undo             take back the last message and its answer
/save FILE        write the conversation and the settings
/load FILE        go on with a saved one
/clear            begin anew
/exit             leave (also Ctrl-D)

Enter sends, Alt-Enter begins a new line, \"\"\" opens and closes a long message, Ctrl-G opens your editor, pasted text stays whole,
Ctrl-C stops an answer and keeps it."""

COMMANDS = ("/help", "/model", "/system", "/set", "/show", "/stats", "/retry", "/undo", "/save", "/load", "/clear", "/exit")
_SYNONYMS = {"/quit": "/exit", "/bye": "/exit", "/?": "/help"}
_COMMAND = re.compile(r"/[A-Za-z?]+(?=\s|$)")
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
}
SETTINGS = (*_NUMBERS, "stop")


@runtime_checkable
class Screen(Protocol):
    """Where a session writes: the answer, and remarks about it."""

    def answer(self, text: str) -> None:
        """A piece of the answer."""
        ...

    def remark(self, text: str) -> None:
        """A line that is not the answer."""
        ...


class Session:
    """A conversation with one model. `done` is true after /exit, `stopped` while the last answer was interrupted.

    `load` gives the model of a name, for /model.
    """

    def __init__(
        self,
        llm: LLM | RemoteChat,
        params: SamplingParams,
        screen: Screen,
        *,
        system: str | None = None,
        load: Callable[[str], LLM | RemoteChat] | None = None,
    ) -> None:
        self.llm = llm
        self.params = params
        self.screen = screen
        self.system = system
        self.messages: list[Message] = []
        self.done = False
        self.stopped = False
        self._load = load
        self._finished: list[Finished] = []

    def handle(self, text: str) -> None:
        """Take one message or command. Errors a user can cause are shown; the conversation goes on as if nothing had been said."""
        self.stopped = False
        kept = list(self.messages)
        try:
            if _COMMAND.match(text.lstrip()):
                self._command(text.strip())
            elif text.strip():
                self.messages.append(Message.user(text))
                self._answer()
        except KeyboardInterrupt:
            self.stopped = True
            self.screen.remark("stopped")
        except BrokenPipeError:
            raise
        except Exception as error:
            known = known_error(error)
            if known is None:
                raise
            self.messages = kept
            self._explain(known)

    def _explain(self, error: HerdError) -> None:
        self.screen.remark(f"error: {error.message}")
        full = isinstance(error, ContextOverflowError) and self.messages
        hint = "/undo takes the last exchange back, /clear begins anew; nothing was cut" if full else error.hint
        if hint:
            self.screen.remark(f"hint: {hint}")

    def _conversation(self) -> list[Message]:
        return [*([Message.system(self.system)] if self.system else []), *self.messages]

    def _answer(self) -> None:
        """Stream an answer to the last message; Ctrl-C keeps what has come."""
        pieces: list[str] = []
        finished: Finished | None = None
        events: Iterable[Event] = ()
        try:
            events = self.llm.stream(self._conversation(), self.params)
            for event in events:
                if isinstance(event, Finished):
                    finished = event
                else:
                    self._show(event, pieces)
        except KeyboardInterrupt:
            self.stopped = True
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()
        self.screen.answer("\n")
        if finished is not None:
            self.messages.append(finished.message)
            self._statistics(finished)
        else:
            self._interrupted("".join(pieces))

    def _show(self, event: Event, pieces: list[str]) -> None:
        if isinstance(event, TextDelta):
            pieces.append(event.text)
            self.screen.answer(event.text)
        elif isinstance(event, CallDone):
            self.screen.answer(f"{event.call.name}({json_text(dict(event.call.arguments))})")

    def _interrupted(self, said: str) -> None:
        if said:
            self.messages.append(Message.assistant(said))
            self.screen.remark("stopped; what was said is kept (/undo takes it back, /retry answers again)")
        else:
            self.screen.remark("stopped before anything was said (/retry answers again, /undo takes your message back)")

    def _statistics(self, finished: Finished) -> None:
        self._finished.append(finished)
        usage, timings = finished.usage, finished.timings
        used = usage.prompt_tokens + usage.completion_tokens
        self.screen.remark(
            f"[{usage.completion_tokens} tokens, {timings.tokens_per_s:.1f} tokens/s, first after {timings.prefill_s:.2f} s, "
            f"context {self._of_context(used)}{self._why(finished, used)}]"
        )

    def _of_context(self, used: int | None) -> str:
        """So many tokens of the context, as far as both are known."""
        told = "?" if used is None else f"{used:,}"
        return told if self.llm.context is None else f"{told} of {self.llm.context:,}"

    def _why(self, finished: Finished, used: int) -> str:
        """Why the answer ended, unless the model ended it."""
        if finished.reason == "stop":
            return ""
        if finished.reason == "tool_calls":
            return "; it waits for a tool's result"
        full = self.llm.context is not None and used >= self.llm.context
        return "; cut: the context is full" if full else f"; cut at max_tokens {self.params.max_tokens} (/set max_tokens N)"

    def _used(self) -> int | None:
        """Tokens of the conversation so far; those of an empty one are none. Of a model elsewhere, as its last answer told them."""
        conversation = self._conversation()
        model: Any = getattr(self.llm, "inference", None)
        if not conversation:
            return 0
        if model is None:
            last = self._finished[-1].usage if self._finished else None
            return None if last is None else last.prompt_tokens + last.completion_tokens
        return len(model.prompt_format.encode(model.tokenizer, conversation, generation_prompt=False))

    def _command(self, text: str) -> None:
        name, argument = _split(text)
        name = name.lower()
        name = _SYNONYMS.get(name, name)
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name}", hint=did_you_mean(name, COMMANDS, otherwise="/help lists the commands"))
        getattr(self, f"_do_{name[1:]}")(argument)

    def _do_help(self, _: str) -> None:
        self.screen.remark(HELP)

    def _do_exit(self, _: str) -> None:
        self.done = True

    def _do_clear(self, _: str) -> None:
        self.messages.clear()
        self.screen.remark("cleared")

    def _do_model(self, name: str) -> None:
        if name:
            if self._load is None:
                raise UsageError("this session has one model", hint="leave, and begin with another --model")
            before, self.llm = self.llm, self._load(name)
            before.close()
        self.screen.remark(f"model: {self.llm.name}, {told_of(self.llm)}")

    def _do_system(self, text: str) -> None:
        self.system = text or None
        self.screen.remark(f"system: {self.system}" if self.system else "no system message")

    def _do_set(self, argument: str) -> None:
        name, value = _split(argument)
        self.params = replace(self.params, **{name: _setting(name, value)})
        self.screen.remark(f"{name} = {getattr(self.params, name)}")

    def _do_show(self, _: str) -> None:
        self._do_model("")
        self.screen.remark(f"system: {self.system or '(none)'}")
        for name in SETTINGS:
            self.screen.remark(f"{name}: {getattr(self.params, name)}")
        self.screen.remark(f"messages: {len(self.messages)}; context: {self._of_context(self._used())} tokens")

    def _do_stats(self, _: str) -> None:
        written = sum(finished.usage.completion_tokens for finished in self._finished)
        read = sum(finished.usage.prompt_tokens for finished in self._finished)
        reading_s = sum(finished.timings.prefill_s for finished in self._finished)
        writing_s = sum(finished.timings.decode_s for finished in self._finished)
        rate = f"{written / writing_s:.1f} tokens/s" if writing_s > 0 else "no speed yet"
        self.screen.remark(f"answers: {len(self._finished)}; tokens read: {read:,} in {reading_s:.1f} s")
        self.screen.remark(f"tokens written: {written:,} in {writing_s:.1f} s, {rate}")
        self.screen.remark(f"context: {self._of_context(self._used())} tokens")

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
            raise UsageError("there is no message to answer again", hint="say something first")
        self._answer()
        if self.messages[-1].role == "user":
            self.messages = kept

    def _do_save(self, argument: str) -> None:
        from herd.base.atomic import atomic_file

        if not argument:
            raise UsageError("/save needs a file name", hint="/save talk.json")
        settings = {name: getattr(self.params, name) for name in SETTINGS}
        data = {"model": self.llm.name, "settings": settings, "messages": [message.to_dict() for message in self._conversation()]}
        try:
            with atomic_file(_path(argument)) as temporary:
                temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise NotFoundError(f"cannot write {argument}: {error}", hint="name a file in a folder that you may write to") from error
        self.screen.remark(f"saved {len(self.messages)} messages to {argument}")

    def _do_load(self, argument: str) -> None:
        if not argument:
            raise UsageError("/load needs a file name", hint="/load talk.json")
        messages, settings = read_conversation(_path(argument))
        self.params = replace(self.params, **settings)
        self.system = messages[0].text if messages and messages[0].role == "system" else None
        self.messages = messages[1:] if self.system is not None else messages
        self.screen.remark(f"loaded {len(self.messages)} messages from {argument}")


def told_of(llm: Any) -> str:
    """What a model is, in a few words."""
    facts: str | None = getattr(llm, "facts", None)
    return facts or f"{llm.config.num_parameters:,} parameters, context {llm.context:,} tokens"


def _split(text: str) -> tuple[str, str]:
    """The first word, and what follows it."""
    words = text.split(maxsplit=1)
    return words[0] if words else "", words[1].strip() if len(words) > 1 else ""


def _path(text: str) -> Path:
    """The path that was typed, `~` and `~name` for homes. Raises NotFoundError for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise NotFoundError(f"there is no home folder for {text}", hint="write the path out") from error


def _setting(name: str, value: str) -> Any:
    """The value of a sampling setting from what was typed. Raises UsageError for an unknown one or something that is no number."""
    if name not in SETTINGS:
        raise UsageError(f"unknown setting {name!r}", hint=did_you_mean(name, SETTINGS, otherwise="settings: " + ", ".join(SETTINGS)))
    if name == "stop":
        return (value.replace("\\n", "\n"),) if value else ()
    if value.lower() in ("none", "off", "") and name in ("seed", "max_tokens"):
        return None
    try:
        return _NUMBERS[name](value)
    except ValueError as error:
        kind = "a whole number" if _NUMBERS[name] is int else "a number"
        raise UsageError(
            f"{name} is {value!r}, it must be {kind}", hint=f"/set {name} {'1' if _NUMBERS[name] is int else '0.7'}"
        ) from error


def read_conversation(path: Path) -> tuple[list[Message], dict[str, Any]]:
    """The messages and settings of a saved conversation. Raises NotFoundError, or FormatError for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the name") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}", hint="load a file that /save wrote") from error
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise FormatError(f"{path} holds no list of messages", hint="load a file that /save wrote")
    return [Message.from_dict(message) for message in messages], _saved_settings(data.get("settings") or {}, path)


def _saved_settings(settings: Any, path: Path) -> dict[str, Any]:
    """Known settings of a saved conversation, each of the type it must have. Raises FormatError."""
    values: dict[str, Any] = {}
    for name, value in settings.items() if isinstance(settings, dict) else [("settings", settings)]:
        optional = value is None and name in ("seed", "max_tokens")
        number = isinstance(value, int) or (isinstance(value, float) and _NUMBERS.get(name) is float)
        texts = name == "stop" and isinstance(value, list) and all(isinstance(text, str) for text in value)
        if name not in SETTINGS or not (optional or texts or (number and name in _NUMBERS and not isinstance(value, bool))):
            raise FormatError(f"{path}: the setting {name!r} is {value!r}", hint="load a file that /save wrote")
        values[name] = tuple(value) if isinstance(value, list) else value
    return values
