"""Whether guessing pays for a sequence: a running share of guesses that came true, and pauses where it is low. No torch.

A guessed token costs a row of every product and saves a step only if it comes true. Each pause is twice as long as the one before.
"""

from __future__ import annotations

import math

_SMOOTH = 0.85
"""Weight of the past in the share of guesses that came true."""
_PAYS = 0.25
"""Below this share guesses stop."""
_FRESH = 2 * _PAYS
"""The share that a sequence begins with, and begins again with after a pause: some five bad steps away from a pause."""
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256
"""Tokens without guesses after a bad run."""


class Payoff:
    """The account of one sequence."""

    def __init__(self) -> None:
        self._share = _FRESH
        self._pause = 0
        self._next_pause = _FIRST_PAUSE
        self.num_guessed = self.num_accepted = 0

    @property
    def is_paused(self) -> bool:
        """Whether no guesses are wanted now."""
        return self._pause > 0

    def worth(self, num_draft: int) -> int:
        """How many of `num_draft` guesses to make: the later ones come true only if the earlier do, so a low share means fewer."""
        return max(1, math.ceil(num_draft * min(1.0, self._share / _FRESH)))

    def advance(self, num_tokens: int) -> None:
        """Count tokens that came."""
        self._pause = max(0, self._pause - num_tokens)

    def observe(self, num_guessed: int, num_accepted: int) -> None:
        """Learn how many of a step's guesses came true."""
        if not num_guessed:
            return
        self.num_guessed += num_guessed
        self.num_accepted += num_accepted
        self._share = _SMOOTH * self._share + (1 - _SMOOTH) * num_accepted / num_guessed
        if self._share < _PAYS:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)
            self._share = _FRESH
