"""Guesses at the next tokens that cost nothing to make: what followed when the last few tokens stood here before. No torch.

A guess is verified by the step that would have computed the token anyway: the sampler draws at each guessed place with the very number that
it would draw with, and what differs is thrown away, so the tokens are those without speculation. It pays where texts repeat (code,
quotations, extraction) and is switched off for a sequence, for a while, where guesses fail. Prompt lookup decoding, Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

_SMOOTH = 0.85
"""Weight of the past in the share of guesses that came true."""
_PAYS = 0.25
"""Below this share guesses stop: a guessed token costs a row of every product, and saves a step only if it comes true."""
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256
"""Tokens without guesses after a bad run; each following pause is twice as long."""


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
        self._share = 1.0
        self._pause = 0
        self._next_pause = _FIRST_PAUSE
        self.num_guessed = self.num_accepted = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens that are known now."""
        known, followed = self._tokens, self._followed
        for token_id in tokens:
            end = len(known)
            for length in self._lengths:
                if end >= length:
                    followed[tuple(known[end - length :])] = end
            known.append(token_id)
        self._pause = max(0, self._pause - len(tokens))

    def propose(self, limit: int) -> list[int]:
        """Guesses for what comes next, at most `limit`; none while they do not pay."""
        if self._pause or limit < 1:
            return []
        known = self._tokens
        for length in self._lengths:
            place = self._followed.get(tuple(known[-length:])) if len(known) >= length else None
            if place is not None:
                return known[place : place + min(limit, self._num_draft)]
        return []

    def observe(self, num_guessed: int, num_accepted: int) -> None:
        """Learn how many of a step's guesses came true."""
        if not num_guessed:
            return
        self.num_guessed += num_guessed
        self.num_accepted += num_accepted
        self._share = _SMOOTH * self._share + (1 - _SMOOTH) * num_accepted / num_guessed
        if self._share < _PAYS:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)
            self._share = 2 * _PAYS
