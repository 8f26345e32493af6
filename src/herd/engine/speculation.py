"""Guesses at the next tokens: what the stepper asks of who makes them, and prompt lookup, which costs nothing to make. No torch.

A guess is verified by the step that would have computed the token anyway: the sampler draws at each guessed place with the very number that
it would draw with, and what differs is thrown away, so the tokens are those without speculation. `draft_model` guesses by a smaller model.

Prompt lookup takes what followed when the last few tokens stood here before. It pays where texts repeat (code, quotations, extraction) and
is switched off for a sequence, for a while, where guesses fail. Prompt lookup decoding, Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from herd.engine.params import TokenParams
from herd.engine.payoff import Payoff
from herd.engine.request import Sequence
from herd.engine.sampler import Seen

DEFAULT_NUM_DRAFT = 4
"""Tokens guessed at once where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A running sequence whose next token is drawn in the coming step. At most `limit` guesses are of use."""

    sequence: Sequence
    params: TokenParams
    seen: Seen | None
    limit: int


@runtime_checkable
class Guesser(Protocol):
    """Makes guesses for many sequences at once; keeps what it needs to know of each, by id."""

    def guess(self, due: Many[Due]) -> dict[int, list[int]]:
        """Guesses by sequence; none for a sequence where they do not pay."""
        ...

    def learn(self, sequence_id: int, num_guessed: int, tokens: Many[int]) -> None:
        """A step drew these tokens; of so many guesses all but the last token came true."""
        ...

    def forget(self, sequence_id: int) -> None:
        """The sequence ended. One that is not known is left alone."""
        ...


class PromptLookup:
    """Guesses `num_draft` tokens at once by prompt lookup."""

    def __init__(self, num_draft: int) -> None:
        self._num_draft = num_draft
        self._drafters: dict[int, NgramDrafter] = {}

    def guess(self, due: Many[Due]) -> dict[int, list[int]]:
        """See `Guesser.guess`."""
        found: dict[int, list[int]] = {}
        for one in due:
            sequence = one.sequence
            drafter = self._drafters.get(sequence.id)
            if drafter is None:
                drafter = self._drafters[sequence.id] = NgramDrafter(self._num_draft)
                drafter.extend(sequence.tokens(0, sequence.num_tokens))
            found[sequence.id] = drafter.propose(one.limit)
        return found

    def learn(self, sequence_id: int, num_guessed: int, tokens: Many[int]) -> None:
        """See `Guesser.learn`."""
        drafter = self._drafters.get(sequence_id)
        if drafter is not None:
            drafter.observe(num_guessed, len(tokens) - 1)
            drafter.extend(tokens)

    def forget(self, sequence_id: int) -> None:
        """See `Guesser.forget`."""
        self._drafters.pop(sequence_id, None)


class NgramDrafter:
    """Looks a sequence's last n tokens up in itself, the longest n first.

    Args:
        num_draft: tokens guessed at once, at most.
        longest, shortest: lengths n of what is looked up.
    """

    def __init__(self, num_draft: int, *, longest: int = 4, shortest: int = 2) -> None:
        self._num_draft, self._lengths = num_draft, range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}
        self.payoff = Payoff()

    def extend(self, tokens: Many[int]) -> None:
        """Take in tokens that are known now."""
        known, followed = self._tokens, self._followed
        for token_id in tokens:
            end = len(known)
            for length in self._lengths:
                if end >= length:
                    followed[tuple(known[end - length :])] = end
            known.append(token_id)
        self.payoff.advance(len(tokens))

    def propose(self, limit: int) -> list[int]:
        """Guesses for what comes next, at most `limit`; none while they do not pay."""
        if self.payoff.is_paused or limit < 1:
            return []
        known = self._tokens
        for length in self._lengths:
            place = self._followed.get(tuple(known[-length:])) if len(known) >= length else None
            if place is not None:
                return known[place : place + min(limit, self._num_draft)]
        return []

    def observe(self, num_guessed: int, num_accepted: int) -> None:
        """Learn how many of a step's guesses came true."""
        self.payoff.observe(num_guessed, num_accepted)
