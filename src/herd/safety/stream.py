"""An answer that streams through a judge: text is held back until the window that it belongs to was judged, and only then let go.

Windows are counted in characters. What is judged is the window with the end of what was let go before it (the overlap), so that harm
across a border is seen whole; at the end of the answer all of it is judged once more before its last window goes out. Calls of tools are
held back until they are whole and judged. Log-probabilities carry the text too and wait with it. The first objection ends the answer:
what was held is dropped, the request is cancelled, and a refusal stands in its place. Knows no shield and no model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from herd.base.errors import ConfigError
from herd.inference.port import AsyncAnswer, Event, Finished, Part, Timings, Usage
from herd.safety.llama_guard import REFUSAL
from herd.safety.verdict import TouchPoint
from herd.text.messages import Message, ToolCall
from herd.text.reply import CallDelta, CallDone, TextDelta

Judge = Callable[[TouchPoint, str], Awaitable[bool]]
"""Says whether a text may pass at a touch point: `output` for text, `tool-input` for a call as JSON. What it raises ends the answer too."""


@dataclass(slots=True)
class _Held:
    """One continuation: what was let go, what waits, and its events in order."""

    released: str = ""
    text: str = ""
    parts: list[Part] = field(default_factory=list[Part])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    passed: list[ToolCall] = field(default_factory=list[ToolCall])


class GuardedAnswer:
    """An `AsyncAnswer` that lets go only of what was judged.

    Args:
        answer: what is to be judged.
        judge: see `Judge`.
        window: characters that are held back and judged at once.
        overlap: characters before the window that are judged with it.
        whole: judge the whole answer at its end as well, when it was longer than one window.
        n: answers that were asked for: the request is cancelled once all of them have ended.
        refusal: the text in place of what is stopped.
        hold_calls: hold calls back until they are whole and judged; false lets them go as they are written, for where nothing judges them.

    Raises:
        ConfigError: a window below one character, a negative overlap.
    """

    def __init__(
        self,
        answer: AsyncAnswer,
        judge: Judge,
        *,
        window: int = 400,
        overlap: int = 200,
        whole: bool = True,
        n: int = 1,
        refusal: str = REFUSAL,
        hold_calls: bool = True,
    ) -> None:
        if window < 1 or overlap < 0:
            raise ConfigError(
                f"the window is {window} and the overlap {overlap} characters", hint="a window is at least 1, an overlap at least 0"
            )
        self._answer, self._judge = answer, judge
        self._window, self._overlap, self._whole, self._n, self._refusal = window, overlap, whole, n, refusal
        self._hold_calls = hold_calls
        self._held: dict[int, _Held] = {}
        self._ended: set[int] = set()
        self.stopped: set[int] = set()
        """Continuations that were stopped, by index."""

    def close(self) -> None:
        """End the request now."""
        self._answer.close()

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncGenerator[list[Part], None]:
        try:
            async for parts in self._answer:
                ready: list[Part] = []
                for part in parts:
                    if part.index not in self._ended:
                        ready += await self._take(part)
                if ready:
                    yield ready
                if self.stopped and len(self._ended) >= self._n:
                    return
        finally:
            self.close()

    async def _take(self, part: Part) -> list[Part]:
        """An event in; what may go out because of it."""
        held = self._held.setdefault(part.index, _Held())
        event = part.event
        if isinstance(event, Finished):
            return await self._finish(part.index, held, event)
        held.parts.append(part)
        if isinstance(event, TextDelta):
            held.text += event.text
        elif isinstance(event, CallDone):
            held.calls.append(event.call)
            if not await self._judge(TouchPoint.TOOL_INPUT, _spelled(event.call)):
                return self._stop(part.index, held, None)
        if self._hold_calls and (isinstance(event, CallDelta) or _is_open(held)):
            return []
        if len(held.text) < self._window and not isinstance(event, CallDone | CallDelta):
            return []
        if held.text and not await self._judge(TouchPoint.OUTPUT, self._window_text(held)):
            return self._stop(part.index, held, None)
        return _release(held)

    async def _finish(self, index: int, held: _Held, finished: Finished) -> list[Part]:
        """The end: what is still held is judged, and the whole, which is the text of the last event as well."""
        new = [call for call in finished.message.tool_calls if call not in held.calls]
        for call in new:
            if not await self._judge(TouchPoint.TOOL_INPUT, _spelled(call)):
                return self._stop(index, held, finished)
        spoken = finished.message.text or finished.text
        texts = [self._window_text(held)] if held.text else []
        if spoken and spoken not in texts and (self._whole or not held.released):
            texts.append(spoken)
        for text in texts:
            if not await self._judge(TouchPoint.OUTPUT, text):
                return self._stop(index, held, finished)
        self._ended.add(index)
        return [*_release(held), Part(index, finished)]

    def _window_text(self, held: _Held) -> str:
        return (held.released[-self._overlap :] if self._overlap else "") + held.text

    def _stop(self, index: int, held: _Held, finished: Finished | None) -> list[Part]:
        """Drop what is held and say the refusal in its place."""
        self.stopped.add(index)
        self._ended.add(index)
        said = f"\n\n{self._refusal}" if held.released else self._refusal
        text = held.released + said
        held.parts.clear()
        end: Event = stopped_end(text, held.passed, finished)
        return [Part(index, TextDelta(text=said)), Part(index, end)]


def stopped_end(text: str, calls: list[ToolCall], finished: Finished | None) -> Finished:
    """The last event of an answer that was stopped: the text that went out, no tokens and no log-probabilities of the rest."""
    message = Message.assistant(text, calls)
    if finished is not None:
        return replace(finished, reason="stop", text=text, message=message, token_ids=(), logprobs=(), stop_reason=None)
    return Finished(
        reason="stop",
        text=text,
        message=message,
        token_ids=(),
        usage=Usage(prompt_tokens=0, completion_tokens=0),
        timings=Timings(prefill_s=0.0, decode_s=0.0, tokens_per_s=0.0),
    )


def _release(held: _Held) -> list[Part]:
    parts, held.parts = held.parts, []
    held.released += held.text
    held.text = ""
    held.passed = list(held.calls)
    return parts


def _is_open(held: _Held) -> bool:
    """Whether a call is being written: nothing goes out before it is whole, since an event of it may carry anything."""
    for part in reversed(held.parts):
        if isinstance(part.event, CallDone | TextDelta):
            return False
        if isinstance(part.event, CallDelta):
            return True
    return False


def _spelled(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)
