"""A request in token ids and the stream of events that answers it. No torch, no text.

`TokenStream` is for threads: iterate it, or `cancel` it. Leaving a `for` loop early cancels too, once the iterator is closed.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from herd.base.errors import UsageError
from herd.engine.grammar.spec import Grammar
from herd.engine.params import TokenParams
from herd.engine.pooling import POOLINGS, Pooling
from herd.engine.sampler import TokenLogprobs

Finish = Literal["stop", "length", "cancelled"]
"""Why a sequence ended: a stop id, its limit of tokens, or the caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """A prompt to continue `n` times.

    Attributes:
        prompt: at least one id.
        n: continuations; the i-th draws with a seed of its own, a function of `params.seed` and i.
        priority: lower goes first.
        tenant: whose request it is; the engine shares its time fairly between tenants.
        salt: what separates one tenant's cached prefixes from another's.
        reuse_prefix: whether cached keys of an equal prefix may be taken.
        grammar: what every continuation has to look like.
        embed: the prompt is read and answered with an `Embedded`, its hidden states pooled this way, and with no token. The params are
            not looked at.
    """

    prompt: tuple[int, ...]
    params: TokenParams
    n: int = 1
    priority: int = 0
    tenant: str = ""
    salt: bytes = b""
    reuse_prefix: bool = True
    grammar: Grammar | None = None
    embed: Pooling | None = None

    def __post_init__(self) -> None:
        if self.embed is None:
            return
        if self.embed not in POOLINGS:
            raise UsageError(f"embed is {self.embed!r}", hint="choose " + ", ".join(POOLINGS))
        if self.n != 1 or self.grammar is not None or self.params.prompt_logprobs is not None:
            raise UsageError("an embedding has no continuations", hint="leave n, grammar and prompt_logprobs out")


@dataclass(slots=True)
class Tokens:
    """What one step added to continuation `index`; several ids where drafts were accepted. `finish` comes with the last.

    Not frozen because thousands are made in a second, and freezing doubles what one costs; no one changes them.
    """

    index: int
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens first, first+1, ... as they become known; the first token of a prompt has none."""

    first: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """The pooled hidden state of a request with `embed`: float32 values, neither scaled nor normalised."""

    vector: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """The request began to run: how many tokens of its prompt were found in the cache."""

    num_cached: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The request ended by an error: its own, or the engine's."""

    error: Exception


TokenEvent = Tokens | PromptLogprobs | Embedded | Admitted | Failed
Emit = Callable[[TokenEvent], None]


class TokenStream:
    """The events of one request, in order, for one consumer.

    `drive` is called while the consumer waits, where the engine has no thread of its own: it takes steps while its argument says so.
    """

    def __init__(self, n: int, *, cancel: Callable[[int | None], None], drive: Callable[[Callable[[], bool]], None] | None) -> None:
        self._queue: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        self._open = n
        self._cancel, self._drive = cancel, drive

    def emit(self, event: TokenEvent) -> None:
        """Called by the engine, from the thread that takes the step."""
        self._queue.put(event)

    def cancel(self, index: int | None = None) -> None:
        """End the request, or one of its continuations: its blocks are free within one step."""
        self._cancel(index)

    def _next(self) -> TokenEvent:
        if self._drive is not None and self._queue.empty():
            self._drive(self._queue.empty)
        return self._queue.get()

    def __iter__(self) -> Iterator[TokenEvent]:
        """Events until every continuation has finished. Raises what the request or the engine failed with."""
        try:
            while self._open:
                event = self._next()
                if isinstance(event, Failed):
                    self._open = 0
                    raise event.error
                if isinstance(event, Tokens) and event.finish is not None:
                    self._open -= 1
                yield event
        finally:
            if self._open:
                self._cancel(None)
