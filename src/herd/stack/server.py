"""Running the server: the engine first, then the port; SIGTERM lets requests end, a second one does not wait.

uvicorn speaks HTTP through h11; connections that send their headers by drops are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.stack import tracing
from herd.stack.app import create_app
from herd.stack.batch_runner import BatchRunner
from herd.stack.config import ServerConfig
from herd.stack.embedder import ServiceEmbedder
from herd.stack.engine_process import EngineProcess, EngineSpec
from herd.stack.guard import MAX_HEADER_BYTES, Guard
from herd.stack.responses.desk import Desk
from herd.stack.responses.equipment import Equipment
from herd.stack.responses.stored_vectors import StoredVectors
from herd.stack.service import Service
from herd.stack.storage import Storage
from herd.stack.takeover import take_over
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from herd.tools.retrieval.indexer import Indexer

log = get_logger(__name__)

LEARN_EVERY_S = 0.25
TELL_S = 1.0
"""What requests that are cut at the deadline get to be told."""


class CannotListenError(HerdError):
    """The address is taken, or is none of this machine's."""

    code = "cannot_listen"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises CannotListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off only where it is: with it on, the second small write of a stream
    # waits for the reader's delayed acknowledgement, 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
    except OSError as error:
        sock.close()
        raise CannotListenError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="choose another --port, or stop what listens there"
        ) from error
    return sock


def _storage(config: ServerConfig, folder: str) -> Storage:
    return Storage(Path(folder), database_url=config.database_url, files_url=config.files_url)


class _Protocol(H11Protocol):
    """Closes a connection whose next request's headers do not come in time, or whose client does not take what it is sent."""

    header_timeout_s = 10.0
    write_timeout_s = 60.0
    _abort_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due.cancel()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taken()
        self._abort_due = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._abort_due is not None:
            self._abort_due.cancel()
            self._abort_due = None

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_due.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._headers_due.cancel()
            self._headers_due = self.loop.call_later(max(self.header_timeout_s, self.timeout_keep_alive), self._too_slow)

    def _too_slow(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Server:
    """One service over one socket, in one event loop."""

    def __init__(self, config: ServerConfig, spec: EngineSpec, tokenizer: Tokenizer, *, prompt_format: PromptFormat | None = None) -> None:
        self.config, self.spec, self._tokenizer, self._prompt_format = config, spec, tokenizer, prompt_format
        self.port = config.port
        self._signals = 0
        self._uvicorn: uvicorn.Server | None = None
        self._guard: Guard | None = None
        self.service: Service | None = None
        self._batches: BatchRunner | None = None

    async def run(self, on_ready: Callable[[Server, EngineProcess], None] | None = None) -> None:
        """Serve until a signal, or `stop`. Raises what the engine or the port was refused with, before anything is served."""
        tracing.configure()
        sock = listen(self.config.host, self.config.port)
        self.port = sock.getsockname()[1]
        engine = EngineProcess(self.spec)
        storage = None
        try:
            storage = None if self.config.state_dir is None else _storage(self.config, self.config.state_dir)
            with self._handled():
                await engine.start()
                await self._serve(engine, storage, sock, on_ready)
        finally:
            await engine.stop(at_once=self._signals > 1)
            sock.close()
            tracing.flush()
            if storage is not None:
                storage.close()

    async def _serve(
        self, engine: EngineProcess, storage: Storage | None, sock: socket.socket, on_ready: Callable[[Server, EngineProcess], None] | None
    ) -> None:
        database = None if storage is None else storage.database
        if database is not None and storage is not None:
            take_over(database, storage.folder, ["", *(key.name for key in self.config.keys)])
        service = self.service = Service(self.config, engine, self._tokenizer, self._prompt_format, database=database)
        batches = self._batches = None if storage is None else BatchRunner(service, storage)
        retrieval = None if storage is None else storage.retrieval(ServiceEmbedder(service))
        indexer = None if retrieval is None else Indexer(retrieval)
        vectors = None if retrieval is None else StoredVectors(retrieval)
        equipment = Equipment(service.tools.box, vectors=vectors, policy=service.tools.policy, shielding=service.shielding)
        desk = None if storage is None else Desk(service, storage.database, equipment)
        self._guard = create_app(service, storage, batches, retrieval, desk)
        limits = {name: getattr(self.config, name) for name in ("header_timeout_s", "write_timeout_s")}
        protocol = type("Protocol", (_Protocol,), limits)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self._guard,
                http=protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=True,
                backlog=4096,
                timeout_keep_alive=30,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=1,
            )
        )
        learner = asyncio.create_task(self._learn(service, engine))
        serving = asyncio.create_task(self._uvicorn.serve([sock]))
        try:
            while not self._uvicorn.started and not serving.done():
                await asyncio.sleep(0.01)
            if on_ready is not None and not serving.done():
                on_ready(self, engine)
            if batches is not None:
                await batches.start()
            if desk is not None:
                await desk.start()
            if indexer is not None:
                indexer.start()
            await serving
        finally:
            learner.cancel()
            if desk is not None:
                await desk.stop()
            if batches is not None:
                await batches.stop()
            await service.close()
            if indexer is not None:
                await indexer.stop()

    async def _learn(self, service: Service, engine: EngineProcess) -> None:
        while True:
            await asyncio.sleep(LEARN_EVERY_S)
            service.admission.learn(engine.info, engine.counters)

    @contextlib.contextmanager
    def _handled(self) -> Generator[None, None, None]:
        """SIGTERM and SIGINT stop the server."""
        loop = asyncio.get_running_loop()
        taken: list[signal.Signals] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, self.stop)
                taken.append(number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Stop admitting, let what runs end until the deadline, then leave; called again, leave at once."""
        self._signals += 1
        if self._guard is None or self._uvicorn is None:
            raise SystemExit(0)
        if self._signals > 1:
            self._leave()
            return
        self._guard.draining = True
        log.info("shutting down: %d requests have %g s to end; a second signal does not wait", self._guard.num_open, self.config.drain_s)
        self._draining = asyncio.ensure_future(self._drain(self._guard))

    async def _drain(self, guard: Guard) -> None:
        await self._all_ended(guard, self.config.drain_s)
        if guard.num_open and self.service is not None:
            if self._batches is not None:
                await self._batches.stop()
            # Those that are left are told that they end, as far as they listen.
            await self.service.engine.stop(at_once=True)
            await self._all_ended(guard, TELL_S)
        self._leave()

    async def _all_ended(self, guard: Guard, within: float) -> None:
        deadline = time.monotonic() + within
        while guard.num_open and time.monotonic() < deadline and self._signals < 2:
            await asyncio.sleep(0.02)

    def _leave(self) -> None:
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
            if self._signals > 1:
                self._uvicorn.force_exit = True
