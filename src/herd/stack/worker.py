"""The engine's process: one model, one engine, one socket to the server that started it. `python -m herd.stack.worker FD`.

Frames come in (the model to load, requests, cancellations) and go out (what was accepted, events, counters); `engine.wire` tells their
shape, and nothing in them is ever run. What the engine has to say is collected while a frame is being written, so that under load many
tokens travel together. The process ends when its server lets go of the socket. It knows token ids; of text only the tokenizer's bytes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from herd.base.errors import HerdError
from herd.base.log import configure, get_logger
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.stream import Failed, TokenEvent, TokenRequest, Tokens, TokenStream
from herd.engine.wire import LENGTH, event_to_list, frame, frame_size, request_from_dict

log = get_logger(__name__)

STATS_EVERY_S = 0.25
"""Counters go out so often; the server takes their absence for a process that hangs."""
HOLD_S, LONGEST_HOLD_S = 0.0006, 0.05
"""Tokens may wait so long for more of them for each other continuation, and at most. Telling a chunk costs the server about 0.15 ms."""
_IDS, _LOGPROBS = 3, 5
"""Places in an event of tokens with its request's number before it."""
MAX_COMPILING = 256
"""Requests with a grammar that may wait for the compiler at once."""


class Outbox:
    """Frames on their way to the server, written by a thread of their own so that no step waits for the socket.

    Under load a stream's tokens wait for each other, so that several travel and are told together: writing one costs the server more than
    the engine took to make it. How long depends on how many continuations there are; a lone one is never kept waiting.
    """

    def __init__(self, connection: socket.socket, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection, self._clock = connection, clock
        self._events: list[list[Any]] = []
        self._held: dict[int, dict[int, list[Any]]] = {}
        self._frames: list[Any] = []
        self._due = 0.0
        self._dozes = False
        self._wake = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._write, name="herd-outbox", daemon=True)
        self._thread.start()

    def event(self, number: int, event: list[Any]) -> None:
        """Send an event of a request at the next `flush`, behind those of it that are held."""
        with self._wake:
            self._events += self._held.pop(number, {}).values()
            self._events.append([number, *event])

    def tokens(self, number: int, event: Tokens) -> None:
        """Send tokens of a request that is being told already; they may be held for a moment.

        A continuation's tokens become one event, so that what waits for a slow server does not grow with every step.
        """
        told = [number, *event_to_list(event)]
        with self._wake:
            held = self._held.setdefault(number, {})
            earlier = held.setdefault(event.index, told)
            if earlier is not told:
                earlier[_IDS] += told[_IDS]
                earlier[_LOGPROBS] += told[_LOGPROBS]

    def send(self, value: Any) -> None:
        """Send a frame of its own."""
        with self._wake:
            self._frames.append(value)
            self._wake.notify()

    def flush(self) -> None:
        """Wake the thread for what was collected."""
        with self._wake:
            if self._events or (self._held and not self._dozes):
                self._wake.notify()

    def close(self) -> None:
        """Write what is left, then stop."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join(timeout=5)

    def _await(self) -> list[Any]:
        """Frames that are due; none once all is written and the box is closed."""
        with self._wake:
            while self._open and not self._events and not self._frames:
                left_s = self._due - self._clock()
                if self._held and left_s <= 0:
                    break
                self._dozes = bool(self._held)
                self._wake.wait(left_s if self._held else None)
                self._dozes = False
            now = self._clock()
            if self._held and (now >= self._due or not self._open):
                for held in self._held.values():
                    self._events += held.values()
                self._due = now + min(LONGEST_HOLD_S, HOLD_S * (sum(map(len, self._held.values())) - 1))
                self._held = {}
            events, self._events = self._events, []
            frames, self._frames = self._frames, []
        return [*frames, {"events": events}] if events else frames

    def _write(self) -> None:
        while frames := self._await():
            try:
                self._connection.sendall(b"".join(map(frame, frames)))
            except OSError:
                return


class Worker:
    """Requests from a socket into an engine."""

    def __init__(self, engine: Engine, outbox: Outbox) -> None:
        self._engine, self._outbox = engine, outbox
        self._streams: dict[int, tuple[TokenStream, int]] = {}
        self._compiling: set[int] = set()
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()
        self._compilers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="herd-compile")

    def take(self, message: Mapping[str, Any]) -> bool:
        """Do what a frame asks; False to stop."""
        kind = message["op"]
        if kind == "submit":
            self._take_request(message["id"], message["request"], self._submit)
        elif kind == "check":
            self._take_request(message["id"], message["request"], self._check)
        elif kind == "cancel":
            self._cancel(message["id"], message["index"])
        return kind != "stop"

    def _take_request(self, number: int, data: Mapping[str, Any], take: Callable[[int, Mapping[str, Any]], TokenStream | None]) -> None:
        if data.get("grammar") is None:
            take(number, data)
            return
        with self._lock:
            crowded = len(self._compiling) >= MAX_COMPILING
            if not crowded:
                self._compiling.add(number)
        if crowded:
            self._outbox.event(number, ["f", OverloadedError("too many grammars wait to be compiled", hint="try again later").to_dict()])
            self._outbox.flush()
        else:
            self._compilers.submit(self._take_compiled, number, data, take)

    def _take_compiled(self, number: int, data: Mapping[str, Any], take: Callable[[int, Mapping[str, Any]], TokenStream | None]) -> None:
        with self._lock:
            left = number in self._cancelled
        stream = None if left else take(number, data)
        with self._lock:
            self._compiling.discard(number)
            left = number in self._cancelled
            self._cancelled.discard(number)
        if left and stream is not None:
            stream.cancel()

    def _submit(self, number: int, data: Mapping[str, Any]) -> TokenStream | None:
        """Begin a request; whatever is wrong with it is its own end and not the process's."""
        try:
            return self._start(number, request_from_dict(data))
        except Exception as error:
            return self._refuse(number, error)

    def _check(self, number: int, data: Mapping[str, Any]) -> None:
        """Say whether a request would be begun."""
        try:
            self._engine.check(request_from_dict(data))
        except Exception as error:
            return self._refuse(number, error)
        self._outbox.event(number, ["ok"])
        self._outbox.flush()

    def _refuse(self, number: int, error: Exception) -> None:
        if not isinstance(error, HerdError):
            log.error("a request could not be begun", exc_info=error)
        self._outbox.event(number, event_to_list(Failed(error=error)))
        self._outbox.flush()

    def _start(self, number: int, request: TokenRequest) -> TokenStream:
        # The acceptance has to go out before the first event, which another thread may send at once.
        ready = threading.Event()
        began: set[int] = set()
        outbox = self._outbox

        def emit(event: TokenEvent) -> None:
            if isinstance(event, Tokens) and event.finish is None and event.index in began:
                outbox.tokens(number, event)
                return
            ready.wait()
            outbox.event(number, event_to_list(event))
            if isinstance(event, Tokens):
                began.add(event.index)
            if isinstance(event, Failed) or (isinstance(event, Tokens) and event.finish is not None):
                self._note_end(number, failed=isinstance(event, Failed))

        stream = self._engine.submit(request, emit)
        with self._lock:
            self._streams[number] = (stream, request.n)
        outbox.event(number, ["ok"])
        ready.set()
        outbox.flush()
        return stream

    def _note_end(self, number: int, *, failed: bool) -> None:
        """One continuation has ended, or the whole request; it is forgotten with its last."""
        with self._lock:
            stream, num_left = self._streams[number]
            if failed or num_left == 1:
                del self._streams[number]
            else:
                self._streams[number] = (stream, num_left - 1)

    def _cancel(self, number: int, index: int | None) -> None:
        with self._lock:
            known = self._streams.get(number)
            if index is None and number in self._compiling:
                self._cancelled.add(number)
        if known is not None:
            known[0].cancel(index)

    def counters(self) -> dict[str, Any]:
        """What the metrics show of the engine."""
        scheduler, stepper, disk = self._engine.scheduler, self._engine.stepper, self._engine.disk
        pool = scheduler.pool
        return {
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "preemptions": scheduler.num_preemptions,
            "steps": stepper.num_steps,
            "step_tokens": stepper.num_tokens,
            "step_s": stepper.busy_s,
            "guessed": stepper.results.num_guessed,
            "guesses_accepted": stepper.results.num_guesses_accepted,
            "blocks": pool.num_usable,
            "blocks_free": pool.num_free,
            "prefix_queries": pool.num_queried_tokens,
            "prefix_hits": pool.num_hit_tokens,
            "requests": len(self._streams),
            "broken": self._engine.broken is not None,
            **{f"prefix_disk_{name}": count for name, count in ({} if disk is None else disk.counters()).items()},
        }


class OverloadedError(HerdError):
    """More work than can wait."""

    code = "overloaded"


def load(spec: Mapping[str, Any]) -> tuple[Engine, dict[str, Any]]:
    """The engine of a spec, and what the server tells of it."""
    import torch

    from herd.checkpoint.resolve import resolve_model
    from herd.inference import loaded
    from herd.kernels.dispatch import set_num_threads

    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
        set_num_threads(spec["threads"])
    path, tp, pp = resolve_model(spec["model"]), spec["tp"], spec["pp"]
    names = {field.name for field in fields(EngineConfig)}
    config = EngineConfig(**{name: value for name, value in spec["engine"].items() if name in names})
    kind = {"dtype": spec["dtype"], "device": spec["device"]}
    parts = loaded.load(path, tokenizer=None, engine=config, draft=spec["draft"], threaded=True, tp=tp, pp=pp, **kind)
    engine = parts.engine
    plans = engine.plans
    info = {
        "context": engine.context,
        "vocab_size": engine.vocab_size,
        "hidden_size": parts.config.hidden_size,
        "num_parameters": parts.config.num_parameters,
        "dtype": parts.dtype,
        "device": parts.device,
        "tp": tp,
        "pp": pp,
        "block_size": config.block_size,
        "num_blocks": plans[0].num_blocks,
        "token_budget": config.token_budget,
        "max_sequences": config.max_sequences,
        "total_bytes": sum(plan.total_bytes for plan in plans),
        "weights_digest": weights_digest(path),
        "kernels": kernels_in_use(parts.device),
    }
    return engine, info


def weights_digest(path: Path) -> str:
    """SHA-256 over a checkpoint's weight files, in the order of their names: what a receipt calls the weights."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.pth"), *path.glob("*.gguf")])
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(file.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def kernels_in_use(device: str) -> dict[str, str]:
    """What runs each op on a device; what this machine could run elsewhere says nothing of an answer."""
    from herd.kernels.dispatch import table

    rows, kind = table(), device.partition(":")[0]
    own = [row for row in rows if row.device == kind] or [row for row in rows if row.device == "any other"]
    return {f"{row.op} {row.device}": row.runs for row in own}


def _receive(connection: socket.socket, buffer: bytearray) -> Any:
    """The next frame's value; None when the server has gone."""
    import json

    while True:
        if len(buffer) >= LENGTH.size:
            end = LENGTH.size + frame_size(bytes(buffer[: LENGTH.size]))
            if len(buffer) >= end:
                value = json.loads(bytes(buffer[LENGTH.size : end]))
                del buffer[:end]
                return value
        try:
            data = connection.recv(1 << 20)
        except OSError:
            return None
        if not data:
            return None
        buffer += data


def serve(connection: socket.socket, on_ready: Callable[[], None] | None = None) -> int:
    """Load what the first frame names, call `on_ready`, then take requests until the server goes. Returns the exit code."""
    buffer = bytearray()
    spec = _receive(connection, buffer)
    if spec is None:
        return 0
    configure()
    outbox = Outbox(connection)
    try:
        engine, info = load(spec)
    except HerdError as error:
        outbox.send({"refused": error.to_dict()})
        outbox.close()
        return error.exit_code
    worker = Worker(engine, outbox)
    engine.after_events = outbox.flush
    if on_ready is not None:
        on_ready()
    outbox.send({"ready": info})
    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(STATS_EVERY_S):
            outbox.send({"stats": worker.counters()})

    threading.Thread(target=tell, name="herd-stats", daemon=True).start()
    while (message := _receive(connection, buffer)) is not None and worker.take(message):
        pass
    stop.set()
    outbox.close()
    if engine.disk is not None:
        engine.disk.close()
    return 0


def main() -> None:
    """The process."""
    # Ctrl-C and SIGTERM are the server's business; it lets go of the socket when all is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    code = serve(connection, on_ready=gc.freeze)  # what is loaded stays: no later collection walks over it
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    # Threads in the middle of a step are not waited for: no one reads what they compute.
    os._exit(code)


if __name__ == "__main__":
    main()
