"""Read an assistant's answer, as it streams or whole: text on one side, tool calls on the other.

What may be a call is held back until it is known to be one or not; everything else passes at once. However an answer is cut into pieces,
the message that results is the same, and the time is linear in its length. Special tokens come by `push_special`, so text that spells one
is text. After <|python_tag|> whatever is no other call is code for the interpreter. Llama 3.1 prompt format document, tool calling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import regex

from herd.text.messages import CODE_INTERPRETER, Message, Part, TextPart, ToolCall
from herd.text.specials import EOM, EOT, PYTHON_TAG
from herd.text.tool_calls import FUNCTION_OPEN, parse_calls, parse_function_tags

_OPENING = regex.compile(r'\{\s*+"|\[\s*+(?:[A-Za-z_][\w.]*+\s*+\(|\{\s*+")|<function=|(?:brave_search|wolfram_alpha|photogen)\.call\(')
_MAX_OPENING = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """Text to show now."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallDelta:
    """Raw text of what looks like a call, as it arrives. If it turns out to be none, the same text follows as a TextDelta."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallDone:
    """A whole, parsed call."""

    call: ToolCall


ReplyEvent = TextDelta | CallDelta | CallDone


def _held_suffix(text: str) -> int:
    """Length of the longest end of `text` that could begin `<function=`."""
    for length in range(min(len(text), len(FUNCTION_OPEN) - 1), 0, -1):
        if FUNCTION_OPEN.startswith(text[-length:]):
            return length
    return 0


class ReplyParser:
    """Feed with `push` and `push_special`, end with `finish`; `message` is then the whole answer.

    `calls` false takes everything as text: for conversations without tools.
    """

    def __init__(self, *, calls: bool = True) -> None:
        self._calls = calls
        self._state: Literal["start", "text", "call", "tagged"] = "start" if calls else "text"
        self._leading: list[str] = []
        self._held: list[str] = []
        self._opening = ""
        self._parts: list[Part] = []
        self._texts: list[str] = []

    def push(self, text: str) -> list[ReplyEvent]:
        """Take a piece of the answer; returns what can be shown of it."""
        if not text:
            return []
        if not self._calls:
            return self._emit(text)
        if self._state == "start":
            return self._push_start(text)
        if self._state == "text":
            return self._push_text(text)
        self._held.append(text)
        return [CallDelta(text=text)]

    def push_special(self, name: str) -> list[ReplyEvent]:
        """Take a special token. The end-of-message, -turn and -text tokens say nothing here; <|python_tag|> opens a call."""
        if name == PYTHON_TAG and self._calls and self._state in ("start", "text"):
            events = self._flush_opening()
            self._state = "tagged"
            return events
        return []

    def finish(self) -> list[ReplyEvent]:
        """End of the answer: resolves what was held."""
        events = self._flush_opening(at_end=True)
        held = "".join(self._held)
        self._held = []
        if self._state in ("call", "tagged") and held:
            events += self._resolve(held)
        self._close_text()
        return events

    @property
    def message(self) -> Message:
        """The answer so far as a message; whole after `finish`. It ends the turn unless it calls a tool."""
        parts = [*self._parts, *([TextPart(text="".join(self._texts))] if self._texts else [])]
        has_calls = any(isinstance(part, ToolCall) for part in parts)
        return Message(role="assistant", parts=tuple(parts), ends_turn=not has_calls)

    def _push_start(self, text: str) -> list[ReplyEvent]:
        self._opening += text
        stripped = self._opening.lstrip()
        self._leading.append(self._opening[: len(self._opening) - len(stripped)])
        self._opening = stripped
        if not stripped:
            return []
        match = _OPENING.match(stripped, endpos=_MAX_OPENING, partial=True)
        if match is not None and match.partial and len(stripped) < _MAX_OPENING:
            return []
        self._opening = ""
        if match is not None and not match.partial:
            self._state = "call"
            self._held.append(stripped)
            return [CallDelta(text=stripped)]
        self._state = "text"
        return self._push_text(self._take_leading() + stripped)

    def _push_text(self, text: str) -> list[ReplyEvent]:
        text = self._opening + text
        place = text.find(FUNCTION_OPEN)
        if place >= 0:
            self._opening = ""
            self._state = "call"
            self._held.append(text[place:])
            return [*self._emit(text[:place]), CallDelta(text=text[place:])]
        keep = _held_suffix(text)
        self._opening = text[len(text) - keep :]
        return self._emit(text[: len(text) - keep])

    def _take_leading(self) -> str:
        leading, self._leading = "".join(self._leading), []
        return leading

    def _flush_opening(self, *, at_end: bool = False) -> list[ReplyEvent]:
        """What was held back in case a call would open: it is text. White space alone before a tag is not."""
        if self._state not in ("start", "text"):
            return []
        leading, opening = self._take_leading(), self._opening
        self._opening = ""
        return self._emit(leading + opening) if opening or at_end else []

    def _emit(self, text: str) -> list[ReplyEvent]:
        if not text:
            return []
        self._texts.append(text)
        return [TextDelta(text=text)]

    def _close_text(self) -> None:
        if self._texts:
            self._parts.append(TextPart(text="".join(self._texts)))
            self._texts = []

    def _resolve(self, held: str) -> list[ReplyEvent]:
        calls, rest = parse_calls(held), ""
        if calls is None and held.lstrip().startswith(FUNCTION_OPEN):
            calls, rest = parse_function_tags(held)
        if not calls and self._state == "tagged":
            calls = (ToolCall(name=CODE_INTERPRETER, arguments={"code": held}),)
        if not calls:
            return self._emit(self._take_leading() + held)
        self._close_text()
        self._parts.extend(calls)
        return [*(CallDone(call=call) for call in calls), *(self._emit(rest) if rest.strip() else [])]


def parse_reply(text: str, *, calls: bool = True) -> Message:
    """Parse a whole answer given as text, where a leading <|python_tag|> and a final <|eot_id|> or <|eom_id|> are the special tokens."""
    parser = ReplyParser(calls=calls)
    ended = EOM if text.endswith(EOM) else EOT if text.endswith(EOT) else ""
    body = text.removesuffix(ended)
    if body.lstrip(" ").startswith(PYTHON_TAG):
        parser.push_special(PYTHON_TAG)
        body = body.lstrip(" ").removeprefix(PYTHON_TAG)
    parser.push(body)
    parser.finish()
    message = parser.message
    if not ended:
        return message
    return Message(role=message.role, parts=message.parts, ends_turn=ended == EOT)
