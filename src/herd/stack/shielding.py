"""Shields around every answer: what comes in is judged before a model reads it, what goes out before a client does.

Judged at the input is what is new: the messages after the assistant's last one, a user's as input, a tool's as a third party's. At the
output a stream is held in windows that are let go once they were judged. A shield that fails or is late counts as an objection. Logs and
metrics tell the shield, the point and the category, never the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.inference.port import AsyncAnswer, ChatRequest, CompletionRequest, Finished, Part, Timings, Usage
from herd.safety.defaults import make_shield
from herd.safety.llama_guard import REFUSAL
from herd.safety.shields import Report, Shields
from herd.safety.stream import GuardedAnswer
from herd.safety.verdict import Content, TouchPoint, Verdict
from herd.stack.metrics import Metrics
from herd.text.messages import Message, TextPart
from herd.text.reply import TextDelta

log = get_logger(__name__)

DEFAULT_SHIELDS = ("harm=0.9", "injection=0.8")
"""What stands where nobody chose: the two that are measured, at thresholds that leave ordinary use alone. The guide of the Llama Stack
has the figures."""
WINDOW, OVERLAP = 120, 280
"""Characters of an answer that are held back and judged at once, and those before them that are judged again with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Why an answer was stopped."""

    point: TouchPoint
    shield: str
    categories: tuple[str, ...]
    score: float | None
    failed: bool
    message: str

    def to_dict(self) -> dict[str, Any]:
        """The `herd` field of a choice. The text is not in it."""
        return {
            "point": self.point.value,
            "shield": self.shield,
            "categories": list(self.categories),
            "score": None if self.score is None else round(self.score, 4),
            "failed": self.failed,
        }


def stopped_by(report: Report) -> Stopped | None:
    """What stops the text of a report, if anything does."""
    verdict: Verdict | None = report.violation
    if verdict is None:
        return None
    return Stopped(
        point=report.point,
        shield=verdict.shield,
        categories=verdict.categories,
        score=verdict.score,
        failed=verdict.failed,
        message=verdict.user_message or REFUSAL,
    )


def shields_of(names: Sequence[str]) -> Shields:
    """Shields as a command line names them, each NAME or NAME=THRESHOLD. Raises ConfigError."""
    made = []
    for text in names:
        name, equals, number = text.strip().partition("=")
        try:
            threshold = float(number) if equals else None
        except ValueError as error:
            raise ConfigError(f"the threshold of shield {name!r} is {number!r:.40}", hint=f"write {name}=0.7") from error
        made.append(make_shield(name.strip(), threshold=threshold))
    return Shields(made)


class Shielding:
    """The shields of a server, and what is counted of them."""

    def __init__(self, shields: Shields, metrics: Metrics, *, window: int = WINDOW, overlap: int = OVERLAP) -> None:
        self.shields, self._metrics = shields, metrics
        self._window, self._overlap = window, overlap
        points = {point for shield in shields.shields for point in shield.points}
        self._judges_answers = bool(points & {TouchPoint.OUTPUT, TouchPoint.TOOL_INPUT})
        self._judges_calls = TouchPoint.TOOL_INPUT in points

    async def check(self, content: Content) -> Report:
        """Judge a text, and count what was said of it."""
        report = await self.shields.check(content)
        self._metrics.judged(report)
        return report

    async def incoming(
        self, request: ChatRequest | CompletionRequest, *, decode: Callable[[Sequence[int]], str] | None = None
    ) -> tuple[ChatRequest | CompletionRequest, Stopped | None]:
        """The request to go on with, redacted where shields asked for that, or why it is stopped. `decode` reads prompts of ids."""
        if isinstance(request, ChatRequest):
            return await self._messages(request)
        text = request.prompt if isinstance(request.prompt, str) else None if decode is None else decode(request.prompt)
        if text is None:
            unread = Stopped(point=TouchPoint.INPUT, shield="ids", categories=(), score=None, failed=True, message=REFUSAL)
            return request, unread
        report = await self.check(Content(point=TouchPoint.INPUT, text=text))
        stopped = stopped_by(report)
        if stopped is None and report.text != text:
            return replace(request, prompt=report.text), None
        return request, stopped

    async def _messages(self, request: ChatRequest) -> tuple[ChatRequest, Stopped | None]:
        messages = list(request.messages)
        start = max((place + 1 for place, message in enumerate(messages) if message.role == "assistant"), default=0)
        for place in range(start, len(messages)):
            message = messages[place]
            if message.role not in ("user", "tool") or not message.text:
                continue
            point = TouchPoint.INPUT if message.role == "user" else TouchPoint.TOOL_OUTPUT
            report = await self.check(Content(point=point, text=message.text, conversation=tuple(messages[:place])))
            stopped = stopped_by(report)
            if stopped is not None:
                return request, stopped
            if report.text != message.text:
                messages[place] = replace(message, parts=(TextPart(text=report.text),))
        return replace(request, messages=tuple(messages)), None

    def outgoing(
        self, answer: AsyncAnswer, request: ChatRequest | CompletionRequest, used: Callable[[], Usage], stopped: dict[int, Stopped]
    ) -> AsyncAnswer:
        """The answer behind the shields; what is stopped is told in `stopped`, by its index."""
        if not self._judges_answers:
            return answer
        conversation = request.messages if isinstance(request, ChatRequest) else ()
        return _Guarded(self, answer, conversation, request.n, used, stopped)

    def guard(self, answer: AsyncAnswer, judge: Callable[[TouchPoint, str], Any], n: int) -> GuardedAnswer:
        """The stream that holds text back."""
        return GuardedAnswer(answer, judge, window=self._window, overlap=self._overlap, n=n, hold_calls=self._judges_calls)


class _Guarded:
    """A guarded answer whose last events say that a guard ended them."""

    def __init__(
        self,
        shielding: Shielding,
        answer: AsyncAnswer,
        conversation: tuple[Message, ...],
        n: int,
        used: Callable[[], Usage],
        stopped: dict[int, Stopped],
    ) -> None:
        self._shielding, self._conversation, self._used = shielding, conversation, used
        self._stopped = stopped
        self._objections: deque[Stopped] = deque()
        self._answer = shielding.guard(answer, self._judge, n)

    async def _judge(self, point: TouchPoint, text: str) -> bool:
        report = await self._shielding.check(Content(point=point, text=text, conversation=self._conversation))
        stopped = stopped_by(report)
        if stopped is None and report.text != text:
            # What went out before cannot be taken back, so what would be redacted is stopped.
            verdict = next(verdict for verdict in report.verdicts if verdict.findings)
            stopped = Stopped(point=point, shield=verdict.shield, categories=verdict.categories, score=None, failed=False, message=REFUSAL)
        if stopped is not None:
            self._objections.append(stopped)
        return stopped is None

    def close(self) -> None:
        """End the request now."""
        self._answer.close()

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncGenerator[list[Part], None]:
        async with aclosing(cast("AsyncGenerator[list[Part], None]", aiter(self._answer))) as ticks:
            async for parts in ticks:
                yield [self._marked(part) for part in parts]

    def _marked(self, part: Part) -> Part:
        event = part.event
        if not isinstance(event, Finished) or part.index not in self._answer.stopped:
            return part
        self._stopped[part.index] = self._objections.popleft()
        usage = event.usage if event.usage.prompt_tokens else self._used()
        return Part(part.index, replace(event, reason="content_filter", stop_reason=None, usage=usage))


class RefusedAnswer:
    """An answer that no model gave: the refusal, `n` times."""

    def __init__(self, text: str, n: int) -> None:
        self._text, self._n, self._closed = text, n, False

    def close(self) -> None:
        """Nothing runs."""
        self._closed = True

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncGenerator[list[Part], None]:
        for index in range(self._n):
            if not self._closed:
                end = Finished(
                    reason="content_filter",
                    text=self._text,
                    message=Message.assistant(self._text),
                    token_ids=(),
                    usage=Usage(prompt_tokens=0, completion_tokens=0),
                    timings=Timings(prefill_s=0.0, decode_s=0.0, tokens_per_s=0.0),
                )
                yield [Part(index, TextDelta(text=self._text)), Part(index, end)]
