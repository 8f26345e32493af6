"""The engine: requests in from any thread, events out. Steps are taken by a thread of its own, or by whoever waits for an event.

Knows token ids, never text. A request's tokens depend on its prompt, parameters and seed alone.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.base.errors import ContextOverflowError, FormatError, HerdError, TokenizerError
from herd.base.log import get_logger
from herd.engine.batch import Runner
from herd.engine.grammar.spec import Grammar
from herd.engine.memory import MemoryPlan
from herd.engine.params import TokenParams
from herd.engine.sampler import check_ids, named_ids
from herd.engine.scheduler import Scheduler
from herd.engine.speculation import Guesser
from herd.engine.stepper import Stepper
from herd.engine.stream import Emit, TokenRequest, TokenStream

if TYPE_CHECKING:
    from herd.engine.disk.cache import DiskCache
    from herd.engine.grammar.compiler import CompiledGrammar, GrammarCompiler

log = get_logger(__name__)


class EngineError(HerdError):
    """The engine stopped: a bug, or memory that ran out. Requests in flight get it, later ones are refused with it."""

    code = "engine"


class Engine:
    """Runs requests over one runner until `close`. Every method may be called from any thread.

    Args:
        runner, scheduler: over the same blocks.
        context: the most tokens that a prompt and its continuation may have together.
        threaded: take steps on a thread of its own, as a server needs; else nothing runs but while someone waits for an event, and then
            everything does.
        guesser: guesses tokens for the model to verify; None guesses none.
        grammars: makes the compiler of grammars at the first request that has one; without it such requests are refused.
        clock: seconds, for metrics.
        disk: the prefix cache on disk, over the same blocks.
        after_events: called after each step, and after what was posted between two: whoever collects events in `emit` passes them on then.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        context: int,
        threaded: bool = False,
        guesser: Guesser | None = None,
        grammars: Callable[[], GrammarCompiler] | None = None,
        clock: Callable[[], float] = time.monotonic,
        disk: DiskCache | None = None,
        after_events: Callable[[], None] | None = None,
    ) -> None:
        self.after_events = after_events
        self.stepper = Stepper(runner, scheduler, guesser=guesser, clock=clock, disk=disk)
        self.context = context
        self.plans: list[MemoryPlan] = []
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = threading.Event()
        if disk is not None:
            disk.wake_with(self._wake.set)
        self._requests = itertools.count(1)
        self._stepping = threading.RLock()
        self._make_grammars, self._grammars = grammars, None
        self._making = threading.Lock()
        self._closed = False
        self.broken: EngineError | None = None
        self._thread = threading.Thread(target=self._loop, name="herd-engine", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    @property
    def vocab_size(self) -> int:
        """Ids that the model has scores for."""
        return self.stepper.runner.vocab_size

    @property
    def scheduler(self) -> Scheduler:
        """For its counters."""
        return self.stepper.scheduler

    @property
    def disk(self) -> DiskCache | None:
        """For its counters."""
        return self.stepper.disk

    def submit(self, request: TokenRequest, emit: Emit | None = None) -> TokenStream:
        """Queue a request; its events come through the stream, or through `emit`, called by whoever takes the step.

        Raises TokenizerError for ids that the model has no row for, ContextOverflowError for a prompt without room for an answer,
        DoesNotFitError for a request that could not run even alone, FormatError for a grammar that is wrong or costs too much (compiling it
        is waited for), EngineError once the engine is broken or closed.
        """
        params, grammar = self._admissible(request)
        number = next(self._requests)
        drive = None if self._thread is not None else self.drive
        stream = TokenStream(request.n, cancel=lambda index: self._post(lambda: self.stepper.cancel(number, index)), drive=drive)
        self._post(lambda: self.stepper.add(number, replace(request, params=params), emit or stream.emit, grammar=grammar))
        return stream

    def check(self, request: TokenRequest) -> None:
        """Raises what `submit` would raise, and queues nothing."""
        self._admissible(request)

    def _admissible(self, request: TokenRequest) -> tuple[TokenParams, CompiledGrammar | None]:
        self._check(request)
        params = replace(request.params, max_tokens=min(request.params.max_tokens, self.context - len(request.prompt)))
        self.scheduler.check_fits(len(request.prompt), params.max_tokens)
        return params, None if request.grammar is None else self._compiled(request.grammar)

    def _compiled(self, grammar: Grammar) -> CompiledGrammar:
        with self._making:
            if self._grammars is None:
                if self._make_grammars is None:
                    raise FormatError("this engine has no tokenizer's bytes, so no grammars", hint="build it with grammars=...")
                self._grammars = self._make_grammars()
        return self._grammars.compile(grammar)

    def close(self) -> None:
        """Stop; what is in flight fails."""
        self._closed = True
        self._wake.set()
        if self._thread is None:
            with self._stepping:
                self._end(EngineError("the engine was closed", hint="make a new one"))
        elif self._thread is not threading.current_thread():
            self._thread.join()
        self.stepper.close()
        if self._grammars is not None:
            self._grammars.close()

    def _check(self, request: TokenRequest) -> None:
        if self.broken is not None or self._closed:
            raise self.broken or EngineError("the engine is closed", hint="make a new one")
        if not request.prompt:
            raise TokenizerError("the prompt is empty", hint="give at least one token; <|begin_of_text|> begins every text")
        for name, ids in {"the prompt": request.prompt, **named_ids(request.params)}.items():
            wrong = check_ids(ids, self.vocab_size)
            if wrong:
                raise TokenizerError(
                    f"{name} holds the id {wrong[0]}; this model has ids 0 to {self.vocab_size - 1}",
                    hint="the ids come from another tokenizer",
                )
        if len(request.prompt) >= self.context:
            raise ContextOverflowError(
                f"the prompt has {len(request.prompt):,} tokens and the context is {self.context:,}: no room for an answer",
                hint="shorten the prompt or begin a new conversation; nothing was cut",
            )

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.put(action)
        self._wake.set()

    def _loop(self) -> None:
        """The thread's work."""
        while not self._closed and self.broken is None:
            with self._stepping:
                ran = self._step()
            if not ran and self.broken is None:
                self._wake.wait()
                self._wake.clear()
        with self._stepping:
            self._end(self.broken or EngineError("the engine was closed", hint="make a new one"))

    def drive(self, waiting: Callable[[], bool]) -> None:
        """Take steps, in the caller's thread, while it waits for what `emit` brings; nothing where the engine has a thread of its own."""
        if self._thread is not None:
            return
        with self._stepping:
            while waiting():
                if not self._step() and waiting():
                    raise EngineError("a request waits and there is nothing to run", hint="this is a bug: please report it")

    def _step(self) -> bool:
        """Take what was posted and run a step. If it fails, every request in flight fails.

        On a thread of its own the engine is broken then, since no one is there to judge the error; else the error goes to who waited.
        """
        try:
            posted = self._drain()
            ran = self.stepper.step()
            if (ran or posted) and self.after_events is not None:
                self.after_events()
            return ran or self._await_disk()
        except BaseException as error:
            told = (
                error
                if isinstance(error, EngineError)
                else EngineError(
                    f"the engine stopped: {type(error).__name__}: {error}", hint="make a new one; --log-level debug tells more"
                )
            )
            told.__cause__ = None if told is error else error
            if self._thread is None or not isinstance(error, Exception):
                self.stepper.fail_all(told)
                raise
            log.debug("the engine stopped", exc_info=True)
            self.broken = told
            return False

    def _await_disk(self) -> bool:
        """Where all that is left waits for the disk, wait for it too, or for a request; says whether that was so."""
        patience_s = None if self.disk is None else self.disk.patience_s
        if patience_s is None:
            return False
        self._wake.wait(patience_s)
        self._wake.clear()
        return True

    def _drain(self) -> bool:
        """Do what was posted; says whether anything was."""
        any_posted = False
        while not self._inbox.empty():
            self._inbox.get_nowait()()
            any_posted = True
        return any_posted

    def _end(self, error: EngineError) -> None:
        """Fail what is in flight, and what was posted while the engine went down."""
        self.stepper.fail_all(error)
        self._drain()
        self.stepper.fail_all(error)
        if self.after_events is not None:
            self.after_events()
