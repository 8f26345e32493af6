"""One sequence's place in its grammar: which ids may come next, taking one, taking some back.

A mask is one bit an id, 32 to a word, as uint32 of shape [words]: id i is bit i % 32 of word i // 32. End ids are allowed exactly where the
grammar accepts; after one the state is finished. A state belongs to one thread at a time; different states may run at once, also those of
one grammar, which share its text automaton behind the library's own lock. The automaton only grows; when it is full the grammar is compiled
anew, and the state that found it full writes its tokens into the new one and goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from herd.base.errors import FormatError
from herd.engine.grammar.vocabulary import GrammarVocabulary

MatcherSource = Callable[[int | None], tuple[LLMatcher, int]]
"""A matcher at the start and the number of its automaton; a new automaton if the number given is the latest's."""
Mask = NDArray[np.uint32]


class GrammarState:
    """Made by `CompiledGrammar.state()`."""

    def __init__(self, source: MatcherSource, vocabulary: GrammarVocabulary, *, max_space_run: int) -> None:
        self._source, self._vocabulary, self._max_space_run = source, vocabulary, max_space_run
        self._matcher, self._automaton = source(None)
        self._ids: list[int] = []
        self._spaces = [0]
        self._finished = False

    @property
    def num_tokens(self) -> int:
        """Tokens taken, an end id among them."""
        return len(self._ids) + self._finished

    @property
    def finished(self) -> bool:
        """Whether an end id was taken."""
        return self._finished

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        return self._finished or self._matcher.is_accepting()

    def mask(self, out: Mask | None = None) -> Mask:
        """The ids that may come next. Raises FormatError if the grammar is too complex at this place; the request has to end then.

        Args:
            out: where to write it: uint32, contiguous, of shape [words].
        """
        words = self._vocabulary.num_words
        mask = np.empty(words, np.uint32) if out is None else out
        assert mask.shape == (words,) and mask.dtype == np.uint32 and mask.flags.c_contiguous
        if self._finished:
            mask[:] = self._vocabulary.stop_mask
            return mask
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            self._renew()
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():
                raise self._too_complex()
        if self._spaces[-1] >= self._max_space_run:
            kept = mask & ~self._vocabulary.space_mask
            if kept.any():
                mask[:] = kept
        return mask

    def accept(self, token_id: int) -> bool:
        """Take an id. False, and nothing changes, if it may not come here."""
        if self._finished or not 0 <= token_id < self._vocabulary.size:
            return False
        if token_id in self._vocabulary.stop_ids:
            self._finished = self._matcher.is_accepting()
            return self._finished
        if self._spaces[-1] >= self._max_space_run and not _bit(self.mask(), token_id):
            return False
        if not self._matcher.try_consume_tokens([token_id]) and not self._take_after_all(token_id):
            return False
        self._ids.append(token_id)
        self._spaces.append(self._vocabulary.space_run(token_id, self._spaces[-1]))
        return True

    def _take_after_all(self, token_id: int) -> bool:
        """A full automaton refuses what the grammar allows, in silence; the mask finds that out."""
        return _bit(self.mask(), token_id) and self._matcher.try_consume_tokens([token_id]) == 1

    def rollback(self, num_tokens: int) -> None:
        """Take back the last ids, an end id too."""
        if not 0 <= num_tokens <= self.num_tokens:
            raise FormatError(f"cannot take back {num_tokens} of {self.num_tokens} tokens", hint="take back no more than were accepted")
        num_text = num_tokens - (self._finished and num_tokens > 0)
        self._finished = self._finished and not num_tokens
        if num_text:
            del self._ids[len(self._ids) - num_text :], self._spaces[len(self._spaces) - num_text :]
            if not self._matcher.rollback(num_text):
                self._renew()

    def clone(self) -> GrammarState:
        """A state at the same place that goes its own way from here."""
        copy = object.__new__(GrammarState)
        copy._source, copy._vocabulary, copy._max_space_run = self._source, self._vocabulary, self._max_space_run
        copy._matcher, copy._automaton = self._matcher.deep_copy(), self._automaton
        copy._ids, copy._spaces, copy._finished = self._ids.copy(), self._spaces.copy(), self._finished
        return copy

    def _renew(self) -> None:
        """Go on in a new automaton if this one is full. Raises FormatError for any other error."""
        if "too many states" not in self._matcher.get_error():
            raise self._too_complex()
        matcher, self._automaton = self._source(self._automaton)
        if self._ids and not matcher.consume_tokens(self._ids):
            raise self._too_complex()
        self._matcher = matcher

    def _too_complex(self) -> FormatError:
        reason = self._matcher.get_error().partition("\n")[0][:200]
        return FormatError(
            f"the grammar became too complex after {self.num_tokens:,} tokens: {reason}",
            hint="use simpler patterns or shorter bounded strings",
        )


def allowed_ids(mask: Mask) -> NDArray[np.int64]:
    """The ids of a mask, ascending."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def _bit(mask: Mask, token_id: int) -> bool:
    return bool(int(mask[token_id >> 5]) >> (token_id & 31) & 1)
