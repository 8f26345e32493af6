"""The engine in a process of its own, as the server sees it: started, watched, and started again when it dies or hangs.

Speaks `engine.wire` over a socket pair that only the two processes hold. When the process goes, every request in flight is told at once;
new ones are refused with 503 until the next process is ready. No torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from herd.base.errors import HerdError, from_dict
from herd.base.log import environment, get_logger
from herd.engine.memory import EngineConfig
from herd.engine.stream import Emit, Failed, TokenRequest, Tokens
from herd.engine.wire import LENGTH, event_from_list, frame, frame_size, request_to_dict

log = get_logger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
"""Pause before a new process; each one that ends within `STEADY_S` doubles it."""
STEADY_S = 60.0
STOP_S = 5.0
"""What an idle process gets to end by itself."""

State = Literal["starting", "ready", "down", "stopped"]


class EngineDownError(HerdError):
    """The engine's process died, hangs or is still starting. Clients may ask again."""

    code = "engine_down"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What a process loads.

    Attributes:
        model: path, hub name or alias.
        dtype, device: None and "cpu" by default.
        threads: CPU threads, 0 for all cores.
        engine: the sizes; a memory limit is each process's own.
        draft: a model that guesses for this one, or `ngram` for prompt lookup; None guesses nothing.
        tp, pp: processes that share every layer, and stages that have the layers behind one another.
        hang_s: seconds without a step, while there is work, after which the process is taken for hung.
        silence_s: seconds without a word, after which it is too: it tells its counters four times a second.
    """

    model: str
    dtype: str | None = None
    device: str = "cpu"
    threads: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    draft: str | None = None
    tp: int = 1
    pp: int = 1
    hang_s: float = 120.0
    silence_s: float = 20.0

    def to_dict(self) -> dict[str, Any]:
        """The first frame."""
        return asdict(self)


@dataclass(slots=True, eq=False)
class _Pending:
    """A request in flight."""

    emit: Emit
    accepted: asyncio.Future[None]
    num_open: int


class RequestHandle:
    """A request that was accepted."""

    def __init__(self, cancel: Callable[[int | None], None]) -> None:
        self._cancel = cancel

    def cancel(self, index: int | None = None) -> None:
        """End it, or one of its continuations."""
        self._cancel(index)


class EngineProcess:
    """An `AsyncEngine` in another process. Every method is for the loop that called `start`."""

    def __init__(self, spec: EngineSpec, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec, self._clock = spec, clock
        self.state: State = "starting"
        self.info: dict[str, Any] = {}
        self.counters: dict[str, Any] = {}
        self.num_restarts = 0
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._heard = self._moved = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        return int(self.info["context"])

    @property
    def vocab_size(self) -> int:
        """Ids that the model has scores for."""
        return int(self.info["vocab_size"])

    @property
    def num_requests(self) -> int:
        """In flight."""
        return len(self._pending)

    async def start(self) -> None:
        """Start the process and wait until its model is loaded. Raises what it was refused with, EngineDownError if it died."""
        self._first = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name="herd-engine")
        await self._first

    async def stop(self, *, at_once: bool = False) -> None:
        """Let the process end, or end it; requests in flight fail."""
        loads, self.state = self.state == "starting", "stopped"
        if at_once or loads:
            self._kill()
        elif self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write(frame({"op": "stop"}))
        process = self._process
        if process is not None:
            try:
                await asyncio.wait_for(asyncio.to_thread(process.wait), STOP_S)
            except TimeoutError:
                self._kill()
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    async def submit(self, request: TokenRequest, emit: Emit) -> RequestHandle:
        """See `AsyncEngine.submit`. Raises EngineDownError while there is no engine."""
        number = await self._ask("submit", request, emit)
        return RequestHandle(lambda index: self._cancel(number, index))

    async def check(self, request: TokenRequest) -> None:
        """Raises what `submit` would raise, and begins nothing."""
        self._pending.pop(await self._ask("check", request, lambda _: None), None)

    async def _ask(self, op: str, request: TokenRequest, emit: Emit) -> int:
        """Put a request before the engine; its number, once the engine has taken it."""
        if self.state != "ready" or self._writer is None:
            raise EngineDownError("the engine is not ready", hint="it is being started: ask again in a few seconds")
        number = next(self._ids)
        pending = _Pending(emit, asyncio.get_running_loop().create_future(), request.n)
        pending.accepted.add_done_callback(lambda told: told.cancelled() or told.exception())  # who left does not ask
        self._pending[number] = pending
        writer = self._writer
        try:
            writer.write(frame({"op": op, "id": number, "request": request_to_dict(request)}))
            await writer.drain()
            await pending.accepted
        except ConnectionError as error:
            self._pending.pop(number, None)
            raise EngineDownError("the engine's process has gone", hint="it is being started again: ask in a few seconds") from error
        except asyncio.CancelledError:
            self._cancel(number, None)
            raise
        except BaseException:
            self._pending.pop(number, None)
            raise
        return number

    def _cancel(self, number: int, index: int | None) -> None:
        if number not in self._pending:
            return
        if index is None:
            del self._pending[number]
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame({"op": "cancel", "id": number, "index": index}))

    def kill(self) -> None:
        """End the process at once, as an operator or a test may; it is started again."""
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def _supervise(self) -> None:
        """Run one process after another."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                began = self._clock()
                error = await self._ended_by()
                if self.state == "stopped":
                    return
                self.state = "down"
                self._fail_all(error)
                if self._first is not None and not self._first.done():
                    self._first.set_exception(error)
                    return
                pause = FIRST_PAUSE_S if self._clock() - began > STEADY_S else min(2 * pause, LONGEST_PAUSE_S)
                log.error("%s; a new process starts in %.1f s", error.message, pause)
                await asyncio.sleep(pause)
                self.num_restarts += 1
        finally:
            self._kill()
            self._fail_all(EngineDownError("the server stops", hint="ask another one"))

    async def _ended_by(self) -> HerdError:
        """Run one process; returns why it ended, which may be that it could not be started, or that it said what no engine says."""
        try:
            return await self._run_one()
        except Exception as error:
            log.error("the engine's process could not be run", exc_info=error)
            self._kill()
            if self._process is not None:
                await asyncio.to_thread(self._process.wait)
            return EngineDownError("the engine's process could not be run", hint="the server's log tells why")

    async def _run_one(self) -> HerdError:
        """One process from start to end; returns why it ended."""
        self.state = "starting"
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            command = [sys.executable, "-m", "herd.stack.worker", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | environment(),
            )
        reader, writer = self._reader, self._writer = await asyncio.open_connection(sock=ours)
        watch = asyncio.create_task(self._watch(), name="herd-engine-watch")
        refused: HerdError | None = None
        try:
            writer.write(frame(self.spec.to_dict()))
            while True:
                self._heard = self._clock()
                message = json.loads(await reader.readexactly(frame_size(await reader.readexactly(LENGTH.size))))
                if "refused" in message:
                    refused = from_dict(message["refused"])
                else:
                    self._take(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            watch.cancel()
            self._writer = None
            writer.close()
            self._kill()
        return refused or self._obituary(await asyncio.to_thread(self._process.wait))

    def _obituary(self, code: int) -> EngineDownError:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return EngineDownError(f"the engine's process {how}", hint="it is being started again: ask in a few seconds")

    def _take(self, message: Mapping[str, Any]) -> None:
        if "events" in message:
            for number, *event in message["events"]:
                self._event(number, event)
        elif "stats" in message:
            counters = message["stats"]
            if counters["steps"] != self.counters.get("steps") or not counters["requests"]:
                self._moved = self._clock()
            self.counters = counters
            if counters["broken"]:
                self._kill()
        elif "ready" in message:
            self.info, self.counters = message["ready"], {}
            self.state = "ready"
            self._moved = self._clock()
            if self._first is not None and not self._first.done():
                self._first.set_result(None)

    def _event(self, number: int, data: list[Any]) -> None:
        pending = self._pending.get(number)
        if pending is None:
            return
        if data[0] == "ok":
            if not pending.accepted.done():
                pending.accepted.set_result(None)
            return
        event = event_from_list(data)
        if isinstance(event, Failed) and not pending.accepted.done():
            del self._pending[number]
            pending.accepted.set_exception(event.error)
            return
        if isinstance(event, Failed) or (isinstance(event, Tokens) and event.finish is not None):
            pending.num_open = 0 if isinstance(event, Failed) else pending.num_open - 1
            if not pending.num_open:
                del self._pending[number]
        pending.emit(event)

    def _fail_all(self, error: HerdError) -> None:
        pending, self._pending = self._pending, {}
        for one in pending.values():
            if not one.accepted.done():
                one.accepted.set_exception(error)
            else:
                one.emit(Failed(error=error))

    async def _watch(self) -> None:
        """End the process if it falls silent, or has work and makes no step."""
        while True:
            await asyncio.sleep(0.5)
            now = self._clock()
            if self.state != "ready":
                continue
            silent, stuck = now - self._heard > self.spec.silence_s, now - self._moved > self.spec.hang_s
            if silent or stuck:
                why = f"has been silent for {now - self._heard:.0f} s" if silent else f"has made no step for {now - self._moved:.0f} s"
                log.error("the engine's process %s", why)
                self._kill()
                return
