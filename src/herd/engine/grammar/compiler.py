"""Compile grammars for one tokenizer, within limits of size and time, and keep the latest ones. Over llguidance (derivatives and Earley).

The library's own fuel bounds a compilation and a mask, so a thread is enough: measured on hostile input (docs/log.md), what it does not
bound is the depth of its recursion and texts forced over megabytes, and those are refused before it sees them. A caller waits `compile_s`
at most.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits

from herd.base.errors import FormatError
from herd.engine.grammar.spec import Grammar, GrammarLimits
from herd.engine.grammar.state import GrammarState
from herd.engine.grammar.vocabulary import GrammarVocabulary
from herd.engine.grammar.write import write_grammar

_BASE_BYTES, _BYTES_PER_CHAR = 96 * 1024, 48
"""Of a compiled grammar, measured: what it takes at once. Its text automaton grows with use, about 0.7 kB a state."""
_ROW_ITEMS = 5_000
"""An object with a thousand optional properties may begin with each of them."""


class CompiledGrammar:
    """A grammar for one tokenizer. Many sequences may share it, in many threads."""

    def __init__(self, lark: str, vocabulary: GrammarVocabulary, limits: GrammarLimits) -> None:
        self.lark = lark
        self.size_bytes = _BASE_BYTES + _BYTES_PER_CHAR * len(lark)
        self._vocabulary, self._limits = vocabulary, limits
        self._lock = threading.Lock()
        self._automaton = 0
        self._first = self._build()

    def state(self) -> GrammarState:
        """A state at the start."""
        return GrammarState(self.matcher, self._vocabulary, max_space_run=self._limits.max_space_run)

    def matcher(self, full: int | None = None) -> tuple[LLMatcher, int]:
        """For states: a matcher at the start and the number of its automaton; a new automaton if number `full` is the latest."""
        with self._lock:
            if full == self._automaton:
                self._first, self._automaton = self._build(), self._automaton + 1
            return self._first.deep_copy(), self._automaton

    def _build(self) -> LLMatcher:
        limits = LLParserLimits(
            max_lexer_states=self._limits.max_lexer_states,
            step_max_items=self._limits.step_items,
            max_items_in_row=_ROW_ITEMS,
            precompute_large_lexemes=False,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._vocabulary.tokenizer, self.lark, log_level=0, limits=limits)
        if matcher.is_error():
            raise FormatError(f"the grammar cannot be compiled: {_reason(matcher)}", hint="mend it, or use a simpler one")
        return matcher


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInfo:
    """What the cache did and holds."""

    hits: int
    misses: int
    entries: int
    size_bytes: int


class GrammarCompiler:
    """Compiles and keeps grammars; safe to use from several threads.

    Args:
        token_bytes: the bytes of every id in order; those of special ids are not looked at.
        special_ids: ids that are no text.
        stop_ids: ids that end an answer.
        python_tag_id: the id before built-in tools' calls; without it they cannot be called.
        split_regex: how the tokenizer cuts text; with it, text without alternative is forced in the tokenizer's own pieces.
        vocab_size: rows of the model's output, where it has more than there are tokens.
        limits: what a grammar may cost.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        *,
        special_ids: Collection[int],
        stop_ids: Collection[int],
        python_tag_id: int | None = None,
        split_regex: str | None = None,
        vocab_size: int | None = None,
        limits: GrammarLimits | None = None,
    ) -> None:
        self.limits = limits or GrammarLimits()
        self.vocabulary = GrammarVocabulary(
            token_bytes, special_ids=special_ids, stop_ids=stop_ids, split_regex=split_regex, size=vocab_size
        )
        self._python_tag_id = python_tag_id
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._running: dict[Grammar, Future[CompiledGrammar]] = {}
        self._kept_bytes = self._hits = self._misses = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="herd-grammar")

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled grammar, kept or new. Raises FormatError: it is wrong, matches nothing, or is over a limit of size or time."""
        future = self.start(grammar)
        try:
            return future.result(timeout=self.limits.compile_s)
        except FutureTimeoutError as error:
            raise FormatError(
                f"the grammar was not compiled within {self.limits.compile_s:g} seconds",
                hint="use a smaller schema, fewer tools or simpler patterns",
            ) from error

    def start(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """Compile in the background. The future raises what `compile` raises, but waits as long as its caller does."""
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None:
                self._kept.move_to_end(grammar)
                self._hits += 1
                ready: Future[CompiledGrammar] = Future()
                ready.set_result(kept)
                return ready
            running = self._running.get(grammar)
            if running is None:
                self._misses += 1
                running = self._running[grammar] = self._pool.submit(self._compile, grammar)
            return running

    @property
    def cache_info(self) -> CacheInfo:
        """What the cache did and holds."""
        with self._lock:
            return CacheInfo(hits=self._hits, misses=self._misses, entries=len(self._kept), size_bytes=self._kept_bytes)

    def close(self) -> None:
        """Let the threads end; compiled grammars stay usable."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        try:
            compiled = self._build(grammar)
            self._keep(grammar, compiled)
            return compiled
        finally:
            with self._lock:
                self._running.pop(grammar, None)

    def _build(self, grammar: Grammar) -> CompiledGrammar:
        lark = write_grammar(grammar, self.limits, python_tag_id=self._python_tag_id, forcing=self.vocabulary.forces)
        compiled = CompiledGrammar(lark, self.vocabulary, self.limits)
        state = compiled.state()
        try:
            state.mask()
        except FormatError as error:
            raise FormatError(f"the grammar matches no text, or is too complex at its start: {error.message}", hint="mend it") from error
        return compiled

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        with self._lock:
            self._kept[grammar] = compiled
            self._kept_bytes += compiled.size_bytes
            while self._kept and (len(self._kept) > self.limits.cache_entries or self._kept_bytes > self.limits.cache_bytes):
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.size_bytes


def _reason(matcher: LLMatcher) -> str:
    """The library's message without the grammar that it repeats."""
    lines = [line for line in matcher.get_error().splitlines() if line.strip() and not line.startswith(("<non-verbose", " "))]
    return " ".join(lines)[-300:] if lines else "no reason given"
