"""A Python kernel in a jail, from outside: send code, read what it printed, showed, wrote and returned.

All that comes out of a jail is untrusted: a reply that is no reply, too long or too much ends the kernel, names of files are checked, and
no path of the jail is ever opened here. Blocking; `session` brings it to asyncio.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import selectors
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from herd.tools.code.outcome import CodeError, Outcome, Status
from herd.tools.errors import JailError
from herd.tools.jail.process import Jail, JailSpec
from herd.tools.tool import Attachment, is_plain_path

START_S = 60.0
_GRACE_S = 2.0
_FINISH_S = 15.0
_HEADROOM_BYTES = 4 * 1024 * 1024
"""Of replies beside attachments, in one run: texts of errors and results."""
_CHUNK = 1 << 16
_DRAIN_CHUNKS = 64
_MIME = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
    "txt": "text/plain",
    "md": "text/markdown",
    "pdf": "application/pdf",
    "zip": "application/zip",
}
"""What a browser never runs; svg and html are no pictures here."""


@cache
def _guest_source() -> bytes:
    return Path(__file__).with_name("guest.py").read_bytes()


@dataclass(kw_only=True, slots=True)
class _Run:
    """What was read of one run so far."""

    budget: int
    keep: int
    deadline: float = 0.0
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    lost: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    result: str | None = None
    error: CodeError | None = None
    attachments: list[Attachment] = field(default_factory=list[Attachment])
    left_out: list[str] = field(default_factory=list[str])
    ran: bool = False
    done: bool = False
    status: Status = "completed"
    cut: bool = False

    def take(self, name: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep the beginning of an output, count the rest."""
        kept = self.stdout if name == "stdout" else self.stderr
        room = max(0, self.keep - len(kept))
        kept += data[:room]
        self.lost[name] += max(0, len(data) - room)


class _HostileError(Exception):
    """The jail said something that a kernel does not say."""


class Kernel:
    """One interpreter with its names. It is used by one thread at a time; `kill` may be called from any."""

    def __init__(self, spec: JailSpec, *, preload: Sequence[str] = ()) -> None:
        self._jail = Jail(spec)
        self._limits = spec.limits
        self._buffer = bytearray()
        self.num_runs = 0
        self._is_ready = False
        for descriptor in (self._jail.commands, self._jail.replies, self._jail.stdout, self._jail.stderr):
            os.set_blocking(descriptor, False)
        try:
            header = json.dumps({"rlimits": self._jail.rlimits(), "preload": list(preload)}).encode("ascii")
            source = _guest_source()
            self._send(b"%d\n%s%s\n" % (len(source), source, header), time.monotonic() + START_S)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> JailSpec:
        """What its jail was made from."""
        return self._jail.spec

    @property
    def pid(self) -> int:
        """The jail's outermost process."""
        return self._jail.pid

    def alive(self) -> bool:
        """Whether it can still run code."""
        return self._jail.alive()

    def wait_ready(self) -> None:
        """Until it can run code. Raises JailError with the jail's own words if it never will."""
        if self._is_ready:
            return
        run = _Run(budget=_HEADROOM_BYTES, keep=4000, deadline=time.monotonic() + START_S)
        try:
            for message in self._messages(run):
                if message.get("type") == "ready":
                    self._is_ready = True
                    self._jail.watch()
                    return
        except _HostileError:
            pass
        self.close("did not start")
        self._raise_not_started(run)

    def _raise_not_started(self, run: _Run) -> None:
        said = bytes(run.stderr).decode("utf-8", "replace").strip().splitlines()
        raise JailError(
            f"the {self.spec.kind} jail did not start: {said[-1][:300] if said else 'it said nothing'}", hint="`herd tools doctor`"
        )

    def put(self, file: Attachment) -> None:
        """Write a file into the working folder. Raises JailError if the kernel is gone."""
        run = _Run(budget=_HEADROOM_BYTES, keep=0)
        if not self.alive():
            raise JailError("the interpreter of this session has ended", hint="run the code again: a new one begins")
        self._exchange({"op": "put", "name": file.name, "data": base64.b64encode(file.data).decode("ascii")}, run, 30.0)
        if not run.done or run.error is not None:
            why = run.error.message if run.error else "the interpreter ended"
            raise JailError(
                f"the file {file.name!r} could not be written in the jail: {why}", hint="free space there, or begin a new session"
            )

    def run(self, code: str, *, run_s: float | None = None, files: bool = True) -> Outcome:
        """Run a piece of code. Whatever it does, this returns within the time and a little more; check `alive` afterwards."""
        started = time.monotonic()
        seconds = min(run_s or self._limits.run_s, self._limits.run_s)
        budget = self._limits.attachment_bytes * 4 // 3 + _HEADROOM_BYTES
        run = _Run(budget=budget, keep=self._limits.output_bytes)
        command = {"op": "run", "code": code, "run_s": seconds, "files": files, "attachment_bytes": self._limits.attachment_bytes}
        self.num_runs += 1
        if self.alive():
            self._exchange(command, run, seconds)
        return self._outcome(run, time.monotonic() - started)

    def _exchange(self, command: dict[str, Any], run: _Run, seconds: float) -> None:
        """Send a command and read until its end; the kernel is dead after anything but that."""
        try:
            self.wait_ready()
            run.deadline = time.monotonic() + seconds + _GRACE_S
            self._send(json.dumps(command).encode("ascii") + b"\n", run.deadline)
            for message in self._messages(run):
                self._read(message, run)
                if run.done:
                    self._drain(run)
                    return
            self._jail.kill("timeout" if time.monotonic() >= run.deadline else "ended")
        except _HostileError:
            self._jail.kill("protocol")
        except BrokenPipeError:
            self._jail.kill("ended")
        except TimeoutError:
            self._jail.kill("timeout")
        self._drain(run)
        self.close()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._jail.commands, selectors.EVENT_WRITE)
            while view:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                try:
                    view = view[os.write(self._jail.commands, view[:_CHUNK]) :]
                except BlockingIOError:
                    continue

    def _messages(self, run: _Run) -> Iterator[dict[str, Any]]:
        """Replies as they come, outputs collected meanwhile, until the deadline or the jail's end."""
        outputs: dict[int, Literal["stdout", "stderr"]] = {self._jail.stdout: "stdout", self._jail.stderr: "stderr"}
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._jail.replies, *outputs):
                selector.register(descriptor, selectors.EVENT_READ)
            while (left := run.deadline - time.monotonic()) > 0:
                for key, _ in selector.select(min(left, 0.5)):
                    data = _read_some(key.fd)
                    if data == b"":
                        selector.unregister(key.fd)
                        if key.fd == self._jail.replies:
                            return
                    elif data is not None and key.fd in outputs:
                        run.take(outputs[key.fd], data)
                    elif data is not None:
                        yield from self._lines(data, run)

    def _lines(self, data: bytes, run: _Run) -> Iterator[dict[str, Any]]:
        run.budget -= len(data)
        if run.budget < 0:
            raise _HostileError
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            try:
                message = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _HostileError from error
            if not isinstance(message, dict):
                raise _HostileError
            yield message

    def _read(self, message: dict[str, Any], run: _Run) -> None:
        kind = message.get("type")
        if kind == "ran" and not run.ran:
            # The code itself is done; pictures and files have a time of their own, which can be had once.
            run.ran = True
            run.deadline = time.monotonic() + _FINISH_S
        elif kind == "done":
            status = message.get("status", "completed")
            run.status = status if status in ("completed", "failed", "timeout") else "failed"
            run.done = True
        elif kind == "result":
            run.result, run.cut = _text(message, "text"), run.cut or message.get("cut") is True
        elif kind == "error":
            run.error = CodeError(name=_text(message, "name"), message=_text(message, "message"), traceback=_text(message, "traceback"))
        elif kind == "left_out":
            run.left_out.append(f"{_shown(_text(message, 'name'))}: {_shown(_text(message, 'reason'))}")
        elif kind in ("file", "display"):
            self._attach(message, run, shown=kind == "display")

    def _attach(self, message: dict[str, Any], run: _Run, *, shown: bool) -> None:
        name = _text(message, "name")
        try:
            data = base64.b64decode(_text(message, "data"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _HostileError from error
        if shown:
            name = f"figure-{self.num_runs}-{1 + sum(file.name.startswith('figure-') for file in run.attachments)}.png"
        if not is_plain_path(name):
            run.left_out.append(f"{_shown(name)}: its name is no plain path")
        elif sum(len(file.data) for file in run.attachments) + len(data) > self._limits.attachment_bytes or len(run.attachments) >= 256:
            run.left_out.append(f"{name}: over the limit of {self._limits.attachment_bytes} bytes for pictures and files")
        else:
            mime_type = _MIME.get(name.rpartition(".")[2].lower(), "application/octet-stream")
            run.attachments.append(Attachment(name=name, mime_type=mime_type, data=data))

    def _drain(self, run: _Run) -> None:
        """What was printed before the end of the code is in the pipes by now; what comes later belongs to the next piece."""
        names: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
        for name in names:
            descriptor = self._jail.stdout if name == "stdout" else self._jail.stderr
            for _ in range(_DRAIN_CHUNKS):
                try:
                    data = _read_some(descriptor)
                except OSError:
                    break
                if not data:
                    break
                run.take(name, data)

    def _outcome(self, run: _Run, elapsed_s: float) -> Outcome:
        status: Status = run.status
        ended = None
        if not run.done:
            ended = self._jail.end_reason or "ended"
            status = "timeout" if ended == "timeout" else "failed"
        elif run.error is None and self._jail.out_of_memory():
            run.left_out.append("a process was ended for taking too much memory")
        return Outcome(
            status=status,
            stdout=bytes(run.stdout).decode("utf-8", "replace"),
            stderr=bytes(run.stderr).decode("utf-8", "replace"),
            stdout_lost_bytes=run.lost["stdout"],
            stderr_lost_bytes=run.lost["stderr"],
            result=run.result,
            result_cut=run.cut,
            error=run.error,
            ended=ended,
            attachments=tuple(run.attachments),
            left_out=tuple(run.left_out),
            elapsed_s=elapsed_s,
        )

    def kill(self, reason: str = "cancelled") -> None:
        """End it at once, from any thread; a run in progress returns."""
        self._jail.kill(reason)

    def close(self, reason: str = "closed") -> None:
        """End it and give back what it had."""
        self._jail.close(reason)


def _read_some(descriptor: int) -> bytes | None:
    """What is there; b"" at the end, None for nothing yet."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise _HostileError
    # JSON can spell halves of characters that no encoding takes.
    return value.encode("utf-8", "replace").decode("utf-8")


def _shown(text: str) -> str:
    """A short piece of the jail's words that can be printed anywhere."""
    return "".join(character if character.isprintable() else "?" for character in text[:120])
