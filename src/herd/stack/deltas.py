"""What a chat answer says, as OpenAI's deltas. A stream sends them; a whole answer is their sum, so that both are the same by construction.

A call that a grammar guarantees is told as it is written: id, type and name first, then its arguments. Where the text was cut within it,
its arguments end there. A call in a format that is no JSON (a Python list, `tool.call(...)`) comes in one delta.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from herd.inference.port import Event
from herd.stack.answers import new_id
from herd.text.call_stream import CallBegan, CallStream, CallText
from herd.text.messages import ToolCall
from herd.text.reply import CallDelta, CallDone, TextDelta

Delta = dict[str, Any]


class Deltas:
    """The deltas of one answer. `sure` says that a grammar holds it: what begins as a call is one."""

    def __init__(self, *, sure: bool) -> None:
        self._stream = CallStream() if sure else None
        self._num_told = self._num_done = 0
        self._held_text = False

    def of(self, event: Event) -> list[Delta]:
        """What an event of the answer adds."""
        if isinstance(event, CallDelta):
            self._held_text = True
            return [] if self._stream is None else self._pieces(self._stream.push(event.text))
        if isinstance(event, CallDone):
            return [*self._end(), *self._done(event.call)]
        if isinstance(event, TextDelta):
            # The raw text of a call that was cut comes again as text; what was told as a call is not told twice.
            again = self._held_text and not self._num_done and self._num_told > 0
            return self._end() if again else [*self._end(), {"content": event.text}]
        return []

    def _end(self) -> list[Delta]:
        """The raw text is over."""
        return [] if self._stream is None or not self._held_text else self._pieces(self._stream.finish())

    def _done(self, call: ToolCall) -> list[Delta]:
        self._num_done += 1
        if self._num_done <= self._num_told:
            return []
        told = {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
        self._num_told += 1
        return [_call({"index": self._num_told - 1, "id": call.id or new_id("call_"), "type": "function", "function": told})]

    def _pieces(self, pieces: Iterable[CallBegan | CallText]) -> list[Delta]:
        out: list[Delta] = []
        for piece in pieces:
            if isinstance(piece, CallBegan):
                told = {"name": piece.name, "arguments": ""}
                out.append(_call({"index": self._num_told, "id": new_id("call_"), "type": "function", "function": told}))
                self._num_told += 1
            else:
                out.append(_call({"index": self._num_told - 1, "function": {"arguments": piece.text}}))
        return out


def _call(call: dict[str, Any]) -> Delta:
    return {"tool_calls": [call]}


class Sum:
    """The message that deltas make."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []

    def add(self, delta: Delta) -> None:
        """Take the next one."""
        if "content" in delta:
            self._texts.append(delta["content"])
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                self._calls.append({key: value for key, value in piece.items() if key != "index"})
                self._arguments.append([])
            self._arguments[piece["index"]].append(piece["function"]["arguments"])

    def message(self) -> dict[str, Any]:
        """As OpenAI's."""
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text or None if self._calls else text, "refusal": None}
        if self._calls:
            pairs = zip(self._calls, self._arguments, strict=True)
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": "".join(arguments)}} for call, arguments in pairs
            ]
        return message
