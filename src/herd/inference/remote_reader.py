"""From the events of an OpenAI-compatible stream to those of the port. Sans-IO: lines go in, parts of answers come out.

A call is told as it is written, in the form of `reply.CallDelta`, and once it is whole as `CallDone`; one whose arguments are no JSON comes
as text, as a local one does. A remote tells no ids of tokens (they are -1 in log-probabilities), and one sum of tokens for all answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from herd.base.errors import HerdError
from herd.inference.port import Event, Finished, FinishReason, Part, Timings, TokenLogprob, TokensDone, Usage
from herd.inference.remote_errors import RemoteError, error_of
from herd.text.messages import Message, ToolCall
from herd.text.reply import CallDelta, CallDone, TextDelta

MAX_LINE = 4 * 2**20
"""Bytes of one event at most."""
_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class Lines:
    """Bytes in, whole lines out. Raises RemoteError for a line that does not end."""

    def __init__(self, provider: str) -> None:
        self._provider, self._held = provider, b""

    def push(self, data: bytes) -> list[bytes]:
        """The lines that are whole now."""
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
            raise RemoteError(f"the provider {self._provider!r} sent an event of over {MAX_LINE:,} bytes", hint="see what it sends")
        return lines


@dataclass(slots=True)
class _Call:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])
    begun: bool = False


@dataclass(slots=True)
class _Answer:
    """What is known of one continuation."""

    texts: list[str] = field(default_factory=list[str])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    open: _Call | None = None
    open_place: int = -1
    num_calls: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    token_ids: tuple[int, ...] = ()
    num_pieces: int = 0
    reason: FinishReason | None = None
    stop_reason: str | int | None = None
    first: float | None = None
    last: float = 0.0


class RemoteReader:
    """Feed `line` with every line of the stream; `finish` gives the last events once it has ended."""

    def __init__(self, provider: str, n: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._provider, self._clock = provider, clock
        self._answers = [_Answer() for _ in range(n)]
        self._usage: Mapping[str, Any] | None = None
        self._started = clock()
        self.done = False

    def line(self, line: bytes) -> list[Part]:
        """Take a line. Raises HerdError for an error that the server tells of, RemoteError for what is none of the format."""
        text = line.strip()
        if self.done or not text.startswith(b"data:"):
            return []
        data = text[5:].strip()
        if data == b"[DONE]":
            return self.finish()
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._strange("an event that is not JSON") from error
        if not isinstance(chunk, dict):
            raise self._strange("an event that is no object")
        return self.chunk(cast("dict[str, Any]", chunk))

    def _strange(self, what: str) -> RemoteError:
        return RemoteError(f"the provider {self._provider!r} sent {what}", hint="its base_url has to lead to an OpenAI-compatible API")

    def chunk(self, chunk: Mapping[str, Any]) -> list[Part]:
        """Take a chunk."""
        if chunk.get("error"):
            raise error_of(self._provider, 500, chunk)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        parts: list[Part] = []
        try:
            for choice in chunk.get("choices") or ():
                index = int(choice.get("index") or 0)
                if 0 <= index < len(self._answers):
                    parts += [Part(index, event) for event in self._choice(self._answers[index], choice)]
        except HerdError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise self._strange("a chunk of another shape than OpenAI's") from error
        return parts

    def _choice(self, answer: _Answer, choice: Mapping[str, Any]) -> list[Event]:
        now = self._clock()
        answer.first = now if answer.first is None else answer.first
        answer.last = now
        delta: Any = choice.get("delta") or {}
        events: list[Event] = []
        told = _logprobs(choice.get("logprobs"))
        if told:
            answer.logprobs += told
            events.append(TokensDone(logprobs=tuple(told)))
        for text in (choice.get("text"), delta.get("content"), delta.get("refusal")):
            if text:
                events += [*self._end_call(answer), *_say(answer, str(text))]
        for piece in delta.get("tool_calls") or ():
            events += self._call(answer, piece)
        if choice.get("token_ids"):
            answer.token_ids = tuple(int(token_id) for token_id in choice["token_ids"])
        if choice.get("finish_reason"):
            answer.reason = _REASONS.get(str(choice["finish_reason"]), "stop")
            stop = choice.get("stop_reason")
            answer.stop_reason = stop if isinstance(stop, str | int) and not isinstance(stop, bool) else None
            events += self._end_call(answer)
        return events

    def _call(self, answer: _Answer, piece: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        place = int(piece.get("index") or 0)
        call = answer.open
        # A second id at one index is a second call: some servers count all calls as the first.
        if call is None or place != answer.open_place or (piece.get("id") and call.id and piece["id"] != call.id):
            events += self._end_call(answer)
            call = answer.open = _Call()
            answer.open_place = place
        function: Any = piece.get("function") or {}
        call.id = call.id or piece.get("id")
        call.name = call.name or str(function.get("name") or "")
        answer.num_pieces += 1
        text = str(function.get("arguments") or "")
        if call.name and not call.begun:
            call.begun = True
            text = _opening(call.name, later=answer.num_calls > 0) + "".join(call.arguments) + text
            answer.num_calls += 1
        if function.get("arguments"):
            call.arguments.append(str(function["arguments"]))
        return [*events, CallDelta(text=text)] if call.begun and text else events

    def _end_call(self, answer: _Answer) -> list[Event]:
        """The call that was being written is whole, or was cut."""
        call, answer.open = answer.open, None
        if call is None:
            return []
        text = "".join(call.arguments)
        try:
            arguments = json.loads(text or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if call.name and isinstance(arguments, dict):
            whole = ToolCall(name=call.name, arguments=cast("dict[str, Any]", arguments), id=call.id)
            answer.calls.append(whole)
            return [CallDelta(text="}" if text else "{}}"), CallDone(call=whole)]
        return _say(answer, _opening(call.name, later=False) + text)

    def finish(self) -> list[Part]:
        """The stream has ended. Raises RemoteError if an answer has not."""
        if self.done:
            return []
        missing = sum(answer.reason is None for answer in self._answers)
        if missing:
            raise RemoteError(
                f"the provider {self._provider!r} broke off: {missing} of {len(self._answers)} answers have no end", hint="ask again"
            )
        self.done = True
        return [Part(index, self._finished(index, answer)) for index, answer in enumerate(self._answers)]

    def _finished(self, index: int, answer: _Answer) -> Finished:
        text = "".join(answer.texts)
        assert answer.reason is not None
        reason: FinishReason = "tool_calls" if answer.calls and answer.reason == "stop" else answer.reason
        return Finished(
            reason=reason,
            text=text,
            message=Message.assistant(text, answer.calls, ends_turn=not answer.calls),
            token_ids=answer.token_ids,
            usage=self._used(index),
            timings=self._timings(answer),
            logprobs=tuple(answer.logprobs),
            stop_reason=answer.stop_reason,
        )

    def _used(self, index: int) -> Usage:
        """What the server counted; for all answers together it stands at the first. What it did not count are the pieces that came."""
        if self._usage is None:
            return Usage(prompt_tokens=0, completion_tokens=self._answers[index].num_pieces)
        told = self._usage
        details = told.get("prompt_tokens_details")
        cached = _count(cast("Mapping[str, Any]", details).get("cached_tokens")) if isinstance(details, dict) else 0
        counts = [max(len(answer.logprobs), len(answer.token_ids)) for answer in self._answers]
        total = _count(told.get("completion_tokens"))
        own = counts[index] if all(counts) and sum(counts) == total else total if index == 0 else 0
        return Usage(prompt_tokens=_count(told.get("prompt_tokens")), completion_tokens=own, cached_tokens=cached)

    def _timings(self, answer: _Answer) -> Timings:
        first = self._started if answer.first is None else answer.first
        decode_s = max(0.0, answer.last - first)
        rate = (answer.num_pieces - 1) / decode_s if answer.num_pieces > 1 and decode_s > 0 else 0.0
        return Timings(prefill_s=round(first - self._started, 6), decode_s=round(decode_s, 6), tokens_per_s=round(rate, 2))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _say(answer: _Answer, text: str) -> list[Event]:
    answer.texts.append(text)
    answer.num_pieces += 1
    return [TextDelta(text=text)]


def _opening(name: str, *, later: bool) -> str:
    """How Llama's JSON format begins a call."""
    return ("; " if later else "") + '{"name": ' + json.dumps(name, ensure_ascii=False) + ', "parameters": '


def _logprobs(told: Any) -> list[TokenLogprob]:
    if not isinstance(told, dict):
        return []
    told = cast("dict[str, Any]", told)
    if "content" in told:
        return [
            TokenLogprob(
                token_id=-1,
                data=_bytes(found),
                logprob=float(found["logprob"]),
                top=tuple((-1, _bytes(other), float(other["logprob"])) for other in found.get("top_logprobs") or ()),
            )
            for found in told["content"] or ()
        ]
    tops: Any = told.get("top_logprobs") or [{}] * len(told.get("tokens") or ())
    return [
        TokenLogprob(
            token_id=-1,
            data=str(token).encode(),
            logprob=float(logprob if logprob is not None else 0.0),
            top=tuple((-1, str(text).encode(), float(value)) for text, value in (top or {}).items() if text != token),
        )
        for token, logprob, top in zip(told.get("tokens") or (), told.get("token_logprobs") or (), tops, strict=False)
    ]


def _bytes(found: Mapping[str, Any]) -> bytes:
    raw = found.get("bytes")
    return bytes(cast("list[int]", raw)) if isinstance(raw, list) else str(found.get("token") or "").encode("utf-8", "replace")
