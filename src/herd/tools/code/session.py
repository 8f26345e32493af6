"""Kernels by session: each conversation has an interpreter of its own, taken warm from a pool, ended when idle or when there are too many.

A kernel serves one session only and is never handed on. Runs of one session follow one another; runs of several go side by side.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.tools.code.kernel import Kernel
from herd.tools.code.outcome import Outcome
from herd.tools.errors import JailError
from herd.tools.jail.process import JailSpec
from herd.tools.tool import Attachment

_log = get_logger(__name__)
_REMEMBERED = 10_000


@dataclass(eq=False, kw_only=True, slots=True)
class _Session:
    lock: threading.Lock = field(default_factory=threading.Lock)
    kernel: Kernel | None = None
    used: float = field(default_factory=time.monotonic)
    files: set[str] = field(default_factory=set[str])
    is_new: bool = True
    closed: bool = False
    current: threading.Event | None = None
    """Tells apart the run that is in the interpreter now: cancelling another one must not end it."""


class CodeSessions:
    """Sessions of one jail spec. Close it when done; the end of the process closes it too."""

    def __init__(
        self,
        spec: JailSpec,
        *,
        warm: int = 1,
        max_sessions: int = 32,
        max_running: int | None = None,
        idle_s: float = 600.0,
        preload: Sequence[str] = (),
    ) -> None:
        """Start filling the pool.

        Args:
            spec: the jail, as `choose` gives it.
            warm: interpreters that wait, started, for a session.
            max_sessions: sessions that keep their names; the one unused for longest gives way.
            max_running: pieces of code that run at once; the others wait. Default: the processors.
            idle_s: seconds after which an unused session is ended.
            preload: modules to load before a session comes, such as numpy.
        """
        self.spec = spec
        self._warm_wanted, self._max_sessions, self._idle_s, self._preload = warm, max_sessions, idle_s, tuple(preload)
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._evicted: OrderedDict[str, None] = OrderedDict()
        self._warm: list[Kernel] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._runners = ThreadPoolExecutor(max_running or max(2, os.cpu_count() or 2), thread_name_prefix="herd-code")
        self._turns: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()
        self._fill_now = threading.Event()
        self._fill_now.set()
        self._filler = threading.Thread(target=self._fill, name="herd-code-pool", daemon=True)
        self._filler.start()

    async def run(self, session_id: str, code: str, *, files: Sequence[Attachment] = (), run_s: float | None = None) -> Outcome:
        """Run code in a session's interpreter. Cancelling ends the interpreter. Raises JailError if none can be started."""
        cancelled = threading.Event()
        # Runs of one session wait here for their turn, so that they hold no thread which another session could use.
        turn = self._turns.setdefault((id(asyncio.get_running_loop()), session_id), asyncio.Lock())
        async with turn:
            future = self._submit(session_id, code, tuple(files), run_s, cancelled)
            try:
                return await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                self._cancel(session_id, cancelled)
                raise

    def _submit(self, *arguments: Any) -> Future[Outcome]:
        try:
            return self._runners.submit(self._run, *arguments)
        except RuntimeError as error:
            raise _closed() from error

    def _cancel(self, session_id: str, cancelled: threading.Event) -> None:
        cancelled.set()
        with self._lock:
            session = self._sessions.get(session_id)
            kernel = session.kernel if session is not None and session.current is cancelled else None
        if kernel is not None:
            kernel.kill("cancelled")

    def run_blocking(self, session_id: str, code: str, *, files: Sequence[Attachment] = (), run_s: float | None = None) -> Outcome:
        """`run` for code without an event loop."""
        return self._run(session_id, code, tuple(files), run_s, threading.Event())

    def _run(self, session_id: str, code: str, files: tuple[Attachment, ...], run_s: float | None, cancelled: threading.Event) -> Outcome:
        while True:
            session = self._session(session_id)
            with session.lock:
                if session.closed:
                    continue
                if cancelled.is_set():
                    return Outcome(status="failed", ended="cancelled")
                session.current = cancelled
                try:
                    return self._run_in(session_id, session, code, files, run_s)
                finally:
                    session.current = None

    def _run_in(self, session_id: str, session: _Session, code: str, files: tuple[Attachment, ...], run_s: float | None) -> Outcome:
        kernel = session.kernel
        if kernel is None or not kernel.alive():
            if kernel is not None:
                kernel.close()
            session.kernel = kernel = self._take()
            session.files.clear()
        for file in files:
            digest = f"{file.name}:{hashlib.sha256(file.data).hexdigest()}"
            if digest not in session.files:
                kernel.put(file)
                session.files.add(digest)
        # Whoever cancels or closes sets the flag first and looks for the kernel then: between the two sides one sees the other.
        if self._closed.is_set() or (session.current is not None and session.current.is_set()):
            return Outcome(status="failed", ended="cancelled")
        outcome = kernel.run(code, run_s=run_s)
        session.used = time.monotonic()
        with self._lock:
            was_evicted = session.is_new and self._evicted.pop(session_id, 0) is None
        session.is_new = False
        if was_evicted:
            note = "earlier variables and files of this session are gone: it was unused for long, or too many others came"
            outcome = replace(outcome, left_out=(*outcome.left_out, note))
        return outcome

    def _session(self, session_id: str) -> _Session:
        with self._lock:
            if self._closed.is_set():
                raise _closed()
            session = self._sessions.get(session_id)
            if session is None:
                session = self._sessions[session_id] = _Session()
            self._sessions.move_to_end(session_id)
            session.used = time.monotonic()
            too_many = len(self._sessions) - self._max_sessions
            # Those in a run are left: there are no more of them than run at once.
            idle = [name for name, other in self._sessions.items() if other is not session and not other.lock.locked()][: max(0, too_many)]
        for name in idle:
            self.end(name)
        return session

    def end(self, session_id: str, *, remember: bool = True) -> None:
        """End a session, after the run that it is in. One that does not exist is no error."""
        with self._lock:
            session = self._sessions.pop(session_id, None)
            if session is not None and remember:
                self._evicted[session_id] = None
                while len(self._evicted) > _REMEMBERED:
                    self._evicted.popitem(last=False)
        if session is None:
            return
        with session.lock:
            session.closed = True
            if session.kernel is not None:
                session.kernel.close()

    def _take(self) -> Kernel:
        """A warm kernel, or a new one."""
        try:
            while True:
                with self._lock:
                    kernel = self._warm.pop(0) if self._warm else None
                if kernel is None:
                    kernel = Kernel(self.spec, preload=self._preload)
                    kernel.wait_ready()
                    return kernel
                if kernel.alive():
                    return kernel
                kernel.close()
        finally:
            self._fill_now.set()

    def _fill(self) -> None:
        while not self._closed.is_set():
            self._fill_now.wait(min(30.0, self._idle_s))
            self._fill_now.clear()
            self._end_idle()
            while not self._closed.is_set() and self.num_warm < self._warm_wanted:
                try:
                    kernel = Kernel(self.spec, preload=self._preload)
                    kernel.wait_ready()
                except (HerdError, OSError):
                    _log.exception("no interpreter could be started for the pool")
                    break
                with self._lock:
                    self._warm.append(kernel)
        self._close_warm()

    @property
    def num_warm(self) -> int:
        """Interpreters that wait for a session."""
        with self._lock:
            return len(self._warm)

    @property
    def num_sessions(self) -> int:
        """Sessions that there are."""
        with self._lock:
            return len(self._sessions)

    def _end_idle(self) -> None:
        before = time.monotonic() - self._idle_s
        with self._lock:
            idle = [name for name, session in self._sessions.items() if session.used < before and not session.lock.locked()]
        for name in idle:
            self.end(name)

    def _close_warm(self) -> None:
        with self._lock:
            kernels, self._warm = self._warm, []
        for kernel in kernels:
            kernel.close()

    def close(self) -> None:
        """End every interpreter, those in a run too."""
        self._closed.set()
        self._fill_now.set()
        with self._lock:
            sessions = dict(self._sessions)
        for session in sessions.values():
            if session.kernel is not None:
                session.kernel.kill("cancelled")
        for name in sessions:
            self.end(name, remember=False)
        self._runners.shutdown(wait=True, cancel_futures=True)
        self._filler.join(timeout=90)
        self._close_warm()


def _closed() -> JailError:
    return JailError("the code interpreter is closed", hint="the server is shutting down; ask again later")
