"""Rank 0's hold on the other ranks: it starts their processes, talks to them over pipes, and sees to it that none outlives the engine.

Down a worker's stdin go frames (`engine.wire`): its spec, then one a step. Up its stdout come a few words: `up`, `ready`, `failed`, and a
heartbeat. A closed pipe is a dead peer, told by the kernel at once and without a timeout; a worker that says nothing for `timeout_s` hangs.
Either way all workers are killed, which also frees rank 0 where it waits for one in the middle of a step, and `lost` names the rank.
Workers have a session of their own, so that Ctrl-C and Ctrl-Z in a terminal are rank 0's business alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from herd.base.errors import HerdError, from_dict
from herd.base.log import get_logger
from herd.engine.engine import EngineError
from herd.engine.wire import LENGTH, frame, frame_size

log = get_logger(__name__)

_LOOK_EVERY_S = 0.2
_START_S = 120.0
"""Silence that is forgiven while a worker imports torch and reads its weights."""
_LEAVE_S = 3.0
"""A worker gets so long to end by itself."""


class Workers:
    """Ranks 1 .. size-1. `on_loss` is called once, from a thread of its own, when one of them dies, fails or hangs.

    On that thread `on_disk` is called too, with what a rank says of its prefix cache. `shares` are the names of the ranks' shares, once
    they are ready.
    """

    def __init__(self, size: int, *, timeout_s: float) -> None:
        self.size, self.timeout_s = size, timeout_s
        self.lost: HerdError | None = None
        self.on_loss: Callable[[HerdError], None] | None = None
        self.on_disk: Callable[[int, Mapping[str, Any]], None] | None = None
        self.shares: dict[int, str] = {}
        self._changed = threading.Condition()
        self._said: dict[str, set[int]] = {"up": set(), "ready": set()}
        self._closing = False
        command = [sys.executable, "-m", "herd.engine.parallel.worker"]
        self._processes = {
            rank: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            for rank in range(1, size)
        }
        self._heard = dict.fromkeys(self._processes, time.monotonic())
        self._buffers = {rank: bytearray() for rank in self._processes}
        self._watch = threading.Thread(target=self._watch_all, name="herd-ranks", daemon=True)
        self._watch.start()

    @property
    def pids(self) -> dict[int, int]:
        """The process of each rank."""
        return {rank: process.pid for rank, process in self._processes.items()}

    def send(self, value: Mapping[str, Any]) -> None:
        """Send every worker a frame. Raises what became of one that cannot be reached."""
        self._write({rank: frame(value) for rank in self._processes})

    def send_each(self, values: Mapping[int, Mapping[str, Any]]) -> None:
        """Send each worker a frame of its own. Raises as `send`."""
        self._write({rank: frame(value) for rank, value in values.items()})

    def _write(self, frames: Mapping[int, bytes]) -> None:
        for rank, data in frames.items():
            stdin = self._processes[rank].stdin
            assert stdin is not None
            try:
                stdin.write(data)
                stdin.flush()
            except (OSError, ValueError) as error:
                raise self.verdict() or EngineError(f"rank {rank} of {self.size} is gone", hint="make a new engine") from error

    def wait(self, word: str) -> None:
        """Wait until every worker has said a word. Raises what one of them failed with instead."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None or len(self._said[word]) == len(self._processes))
        if self.lost is not None:
            raise self.lost

    def verdict(self, wait_s: float = 5.0) -> HerdError | None:
        """What became of the ranks, after a line to them broke; it may take a moment to show."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, timeout=wait_s)
        return self.lost

    def close(self) -> None:
        """End every process: by a word, then by force."""
        with self._changed:
            self._closing = True
        stop = frame({"stop": True})
        for process in self._processes.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(stop)
                process.stdin.close()
        until = time.monotonic() + _LEAVE_S
        for process in self._processes.values():
            self._end_of(process, max(0.0, until - time.monotonic()))
        if self._watch is not threading.current_thread():
            self._watch.join()

    def _watch_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, process in self._processes.items():
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, rank)
            while selector.get_map():
                ready = selector.select(_LOOK_EVERY_S)
                # All that was said is read before anyone is judged: rank 0 itself may have been stopped for a while.
                for key, _ in ready:
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                self._judge_silence()
        for process in self._processes.values():
            assert process.stdout is not None
            process.stdout.close()
            self._end_of(process)

    @staticmethod
    def _end_of(process: subprocess.Popen[bytes], within_s: float = _LEAVE_S) -> int:
        """The exit code of a process that is about to end; one that does not is killed."""
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _read(self, rank: int) -> bool:
        """Take what a worker said; False when its pipe is closed."""
        process, buffer = self._processes[rank], self._buffers[rank]
        assert process.stdout is not None
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            self._note_end(rank)
            return False
        self._heard[rank] = time.monotonic()
        buffer += data
        while len(buffer) >= LENGTH.size and len(buffer) >= (end := LENGTH.size + frame_size(bytes(buffer[: LENGTH.size]))):
            self._take(rank, json.loads(bytes(buffer[LENGTH.size : end])))
            del buffer[:end]
        return True

    def _take(self, rank: int, said: Mapping[str, Any]) -> None:
        if "failed" in said:
            error = from_dict(said["failed"])
            if not isinstance(error, EngineError):
                error.message = f"rank {rank} of {self.size}: {error.message}"
                error.args = (error.message,)
            self._lose(error)
        elif "disk" in said:
            assert self.on_disk is not None
            self.on_disk(rank, said["disk"])
        elif "word" in said:
            with self._changed:
                if "share" in said:
                    self.shares[rank] = said["share"]
                self._said[said["word"]].add(rank)
                self._changed.notify_all()

    def _note_end(self, rank: int) -> None:
        if self._closing or self.lost is not None:
            return
        code = self._end_of(self._processes[rank])
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._lose(EngineError(f"rank {rank} of {self.size} {how}", hint="make a new engine; if memory ran out, lower its sizes"))

    def _judge_silence(self) -> None:
        if self._closing or self.lost is not None:
            return
        now = time.monotonic()
        for rank, heard in self._heard.items():
            allowed = self.timeout_s if rank in self._said["ready"] else max(_START_S, self.timeout_s)
            if now - heard > allowed:
                self._lose(EngineError(f"rank {rank} of {self.size} hangs: it said nothing for {allowed:g} s", hint="make a new engine"))
                return

    def _lose(self, error: HerdError) -> None:
        """The first loss is the one that is told; without one rank the others are of no use."""
        with self._changed:
            if self.lost is not None or self._closing:
                return
            self.lost = error
            self._changed.notify_all()
        log.debug("lost: %s", error.message)
        for process in self._processes.values():
            process.kill()
        if self.on_loss is not None:
            self.on_loss(error)
