"""What is measured of one request while its answer comes: times and tokens, for the metrics, its trace and its key's limits."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from herd.base.errors import HerdError
from herd.inference.aio import Stream
from herd.inference.port import Finished, Part, PromptRead
from herd.inference.remote import RemoteStream
from herd.stack.guard import Context
from herd.stack.keys import Quota
from herd.stack.metrics import Metrics
from herd.stack.served import ServedModel
from herd.stack.tracing import Tracing


class Call:
    """What is measured of one request, and what it pays.

    Args:
        metrics: counts it.
        tracing: has its span.
        quota: its key's, which pays for what is written.
        context: the HTTP request.
        model: who answers.
        leave: gives back its place among the requests that are answered; called once.
        first_token: told when the first token comes.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracing: Tracing,
        quota: Quota | None,
        context: Context,
        model: ServedModel,
        *,
        leave: Callable[[], None],
        first_token: Callable[[], None] | None = None,
    ) -> None:
        self._metrics, self._tracing, self._quota, self._context, self._model = metrics, tracing, quota, context, model
        self._leave, self._first_token = leave, first_token
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._ended = False
        self._num_spent = 0

    async def watch(self, stream: Stream | RemoteStream) -> AsyncGenerator[list[Part], None]:
        """The stream's parts, each looked at on its way."""
        try:
            async for parts in stream:
                now = time.monotonic()
                for part in parts:
                    self._see(part, now)
                yield parts
        except HerdError as error:
            if self._model.remote is not None:
                self._metrics.asked(self._model.provider, error.code)
            raise
        finally:
            self.end(written_by(stream))

    def _see(self, part: Part, now: float) -> None:
        metrics = self._metrics
        if isinstance(part.event, PromptRead):
            return
        if part.index not in self._first:
            self._first[part.index] = now
            if len(self._first) == 1:
                metrics.time_to_first_token.observe(now - self._context.started)
                if self._first_token is not None:
                    self._first_token()
        elif now > self._last[part.index]:
            metrics.inter_token.observe(now - self._last[part.index])
        self._last[part.index] = now
        if isinstance(part.event, Finished):
            self._finish(part.event, now - self._first[part.index], now - self._context.started)

    def _finish(self, finished: Finished, decode_s: float, whole_s: float) -> None:
        metrics, count = self._metrics, finished.usage.completion_tokens
        now = time.monotonic()
        self._tracing.generated(
            self._context.span,
            model=self._model.id,
            num_prompt=finished.usage.prompt_tokens,
            num_cached=finished.usage.cached_tokens,
            num_answer=count,
            reason=finished.reason,
            started=now - whole_s,
            first=now - decode_s,
            ended=now,
        )
        metrics.finished(finished.reason)
        metrics.generation_tokens.inc(count)
        metrics.answer_sizes.observe(count)
        metrics.e2e.observe(whole_s)
        if count > 1:
            metrics.per_token.observe(decode_s / (count - 1))
        self._num_spent += count
        if self._quota is not None:
            self._quota.spend(count)

    def end(self, num_written: int = 0) -> None:
        """Give back what was counted; once. `num_written` tokens are paid for, also those of answers that were cut."""
        if not self._ended:
            self._ended = True
            self._leave()
            if self._quota is not None:
                self._quota.spend(max(0, num_written - self._num_spent))
                self._quota.end()


class Watched:
    """A stream that is measured, and whose request ends with it."""

    def __init__(self, call: Call, stream: Stream | RemoteStream) -> None:
        self._call, self._stream = call, stream

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._call.watch(self._stream)

    def close(self) -> None:
        """End it now, if it still runs."""
        self._stream.close()
        self._call.end(written_by(self._stream))


def written_by(stream: Stream | RemoteStream) -> int:
    """Tokens that the engine wrote so far; a remote tells them at the end alone."""
    return stream.num_tokens if isinstance(stream, Stream) else 0
