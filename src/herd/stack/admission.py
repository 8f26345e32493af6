"""Which requests are taken: those whose first token is expected within the target. The others are told when to come again.

The expectation: prompts that wait to be read, over the rate at which tokens were computed lately; and where more requests are in flight
than the engine runs at once, those before this one over the rate at which requests ended lately. Until something was measured, all are
taken, up to the bound. No torch, no clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from herd.stack.errors import RequestError

_SMOOTH = 0.7
"""Weight of the past in a rate, per quarter second of work."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was taken. `first_token` and `end` are called as they happen; both may be called again."""

    num_prompt: int
    num_sequences: int
    reading: bool = True
    open: bool = True


class Admission:
    """For one event loop."""

    def __init__(self, *, ttft_target_s: float, max_waiting: int, clock: Callable[[], float]) -> None:
        self._target, self._max_waiting, self._clock = ttft_target_s, max_waiting, clock
        self.num_requests = self.num_sequences = self.num_unread = 0
        self.num_refused = 0
        self._max_running = 1
        self._tokens_per_s = self._ends_per_s = 0.0
        self._seen: tuple[int, float] | None = None
        self._ended, self._since = 0, clock()

    def learn(self, info: Mapping[str, Any], counters: Mapping[str, Any]) -> None:
        """Take in the engine's counters."""
        self._max_running = int(info.get("max_sequences", 1))
        tokens, seconds = int(counters.get("step_tokens", 0)), float(counters.get("step_s", 0.0))
        if self._seen is not None and tokens > self._seen[0] and seconds > self._seen[1]:
            rate = (tokens - self._seen[0]) / (seconds - self._seen[1])
            self._tokens_per_s = rate if not self._tokens_per_s else _SMOOTH * self._tokens_per_s + (1 - _SMOOTH) * rate
        self._seen = (tokens, seconds)
        now = self._clock()
        if self._ended >= 4 and now > self._since:
            rate = self._ended / (now - self._since)
            self._ends_per_s = rate if not self._ends_per_s else _SMOOTH * self._ends_per_s + (1 - _SMOOTH) * rate
            self._ended, self._since = 0, now
        elif not self.num_sequences:
            self._ended, self._since = 0, now

    def expected_s(self, num_prompt: int) -> float:
        """Seconds until the first token of a request that came now."""
        reading = (self.num_unread + num_prompt) / self._tokens_per_s if self._tokens_per_s else 0.0
        before = self.num_sequences - self._max_running + 1
        waiting = before / self._ends_per_s if before > 0 and self._ends_per_s else 0.0
        return max(reading, waiting)

    def take(self, num_prompt: int, num_sequences: int) -> Ticket:
        """Take a request. Raises RequestError with the seconds to wait."""
        expected = self.expected_s(num_prompt)
        if self.num_requests >= self._max_waiting:
            self.num_refused += 1
            message = f"{self.num_requests:,} requests are in flight, the most is {self._max_waiting:,}"
            raise RequestError("busy", message, hint="ask again later", retry_after_s=max(1.0, expected / 2))
        if expected > self._target and self.num_requests:
            self.num_refused += 1
            message = f"the first token would come in about {expected:.0f} s, and the server promises {self._target:g} s"
            raise RequestError("busy", message, hint="ask again later", retry_after_s=expected - self._target)
        self.num_requests += 1
        self.num_sequences += num_sequences
        self.num_unread += num_prompt
        return Ticket(num_prompt, num_sequences)

    def first_token(self, ticket: Ticket) -> None:
        """The prompt has been read."""
        if ticket.reading:
            ticket.reading = False
            self.num_unread -= ticket.num_prompt

    def end(self, ticket: Ticket) -> None:
        """The request ended, however."""
        if ticket.open:
            ticket.open = False
            self.first_token(ticket)
            self.num_requests -= 1
            self.num_sequences -= ticket.num_sequences
            self._ended += ticket.num_sequences
