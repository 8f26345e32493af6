"""Sequences that live, as the stepper sees them: what is kept of each beside the scheduler's record, by id and by request. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from herd.engine.params import TokenParams
from herd.engine.pooling import Pooler
from herd.engine.request import Sequence
from herd.engine.sampler import Seen, seed_of
from herd.engine.stream import Emit, TokenRequest

if TYPE_CHECKING:
    from herd.engine.grammar.compiler import CompiledGrammar
    from herd.engine.grammar.state import GrammarState


@dataclass(slots=True)
class Live:
    """What is kept of a sequence beside the scheduler's record."""

    sequence: Sequence
    request: int
    index: int
    params: TokenParams
    seen: Seen | None
    emit: Emit
    state: GrammarState | None = None
    pooler: Pooler | None = None
    admitted: bool = False
    num_told: int = 0
    plain: bool = False  # the next token is drawn from the scores as they are, and nothing but the token is told

    @property
    def wants_token_alone(self) -> bool:
        """Whether nothing bends its scores, and nothing is told of them."""
        params = self.params
        silent = params.logprobs is None and params.prompt_logprobs is None and self.pooler is None
        return silent and not params.bends_scores and self.state is None


def continuations(
    number: int, request: TokenRequest, emit: Emit, *, ids: Iterator[int], arrival: float, grammar: CompiledGrammar | None = None
) -> list[Live]:
    """The continuations of a request under the caller's number, each a sequence with the next of the ids and a seed of its own."""
    params, embed = request.params, request.embed
    scored = params.prompt_logprobs_from - 1
    seen = frozenset(request.prompt) if params.bends_scores else None
    lives = []
    for index in range(request.n):
        sequence = Sequence(
            id=next(ids),
            prompt=request.prompt,
            max_new_tokens=1 if embed else params.max_tokens,
            priority=request.priority,
            tenant=request.tenant,
            salt=request.salt,
            arrival=arrival,
            reuse_prefix=request.reuse_prefix and embed != "mean" and (params.prompt_logprobs is None or scored > 0),
            reuse_limit=None if params.prompt_logprobs is None else scored,
        )
        own = replace(params, seed=seed_of(params.seed, index))
        live = Live(sequence, number, index, own, None if seen is None else Seen(seen), emit)
        live.state = None if grammar is None else grammar.state()
        live.pooler = None if embed is None else Pooler(embed)
        lives.append(live)
    return lives


class LiveSequences:
    """All of them.

    Attributes:
        by_id: each by its sequence's id, oldest first.
        num_grammars, num_poolers: how many have one.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, Live] = {}
        self.num_grammars = self.num_poolers = 0
        self._members: dict[int, list[int]] = {}

    def add(self, number: int, lives: list[Live]) -> None:
        """Take in a request's continuations."""
        for live in lives:
            self.num_grammars += live.state is not None
            self.num_poolers += live.pooler is not None
            self.by_id[live.sequence.id] = live
        self._members[number] = [live.sequence.id for live in lives]

    @property
    def requests(self) -> list[int]:
        """The numbers of the requests that live."""
        return list(self._members)

    def of_request(self, number: int) -> list[Live]:
        """Those of a request's continuations that live."""
        return [self.by_id[member] for member in self._members.get(number, ()) if member in self.by_id]

    def forget(self, live: Live) -> None:
        """Let go of one, and of its request with the last."""
        del self.by_id[live.sequence.id]
        self.num_grammars -= live.state is not None
        self.num_poolers -= live.pooler is not None
        if not any(member in self.by_id for member in self._members[live.request]):
            del self._members[live.request]
