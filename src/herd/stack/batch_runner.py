"""Batches at work: lines are answered in the background, behind all other requests, a bounded number at a time.

Each finished line is appended to the batch's output or error file in one write. After a crash the lines that stand there whole are done, a
torn last one is dropped, and the rest is asked again: nothing is lost, nothing stands there twice. A batch uses its key's limits, and
waits where they are reached.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.stack.answers import new_id
from herd.stack.batch_lines import BatchLine, LineWriter, check_lines, read_line
from herd.stack.errors import RequestError, body_of, status_of
from herd.stack.files import FILE_ID
from herd.stack.guard import Context
from herd.stack.lines import LineAnswerer
from herd.stack.service import Service
from herd.stack.storage import BatchRow, FileRow, Storage

log = get_logger(__name__)

MAX_IN_FLIGHT = 16
"""Lines of all batches that are answered at once; and no more than a quarter of what the engine runs."""
MAX_TRIES = 4
"""Of a line whose answer the engine did not live to give."""
PRIORITY = 1000
"""Behind every request that a client waits for."""
_AGAIN = frozenset({"busy", "rate_limited", "overloaded"})
_DIED = frozenset({"engine_down", "engine"})


@dataclass(slots=True, eq=False)
class Progress:
    """How far a batch is. Kept by its runner, which alone changes it."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    done: set[str] = field(default_factory=set[str])
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class BatchRunner:
    """Works on the open batches of a storage. For one event loop."""

    def __init__(self, service: Service, storage: Storage) -> None:
        self._service, self._storage = service, storage
        self._answerer = LineAnswerer(service)
        most = int(service.engine.info.get("max_sequences", 4))
        self._num_slots = max(1, min(MAX_IN_FLIGHT, most // 4))
        self._slots = asyncio.Semaphore(self._num_slots)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Progress] = {}

    async def start(self) -> None:
        """Go on with what an earlier process left."""
        for batch in await asyncio.to_thread(self._storage.batches.open):
            self.take(batch)

    def take(self, batch: BatchRow) -> None:
        """Begin a batch, or go on with it."""
        self._progress[batch.id] = Progress(batch.total, batch.completed, batch.failed)
        task = asyncio.create_task(self._run(batch), name=batch.id)
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._forget(batch.id))

    def _forget(self, batch_id: str) -> None:
        self._tasks.pop(batch_id, None)
        self._progress.pop(batch_id, None)

    def progress(self, batch: BatchRow) -> Progress:
        """How far it is now."""
        return self._progress.get(batch.id) or Progress(batch.total, batch.completed, batch.failed)

    def cancel(self, batch_id: str) -> None:
        """End a batch, whose row says so, with what it has; what is in flight is dropped."""
        if batch_id in self._progress:
            self._progress[batch_id].cancelled.set()

    async def stop(self) -> None:
        """Let go of all; a later process goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, batch: BatchRow) -> None:
        problems: list[dict[str, Any]] | None = None
        try:
            outcome, problems = await self._through(batch)
        except (HerdError, OSError, ValueError) as error:
            log.exception("batch %s failed", batch.id)
            told = error.message if isinstance(error, HerdError) else "an error of the server; its log tells more"
            outcome, problems = "failed", [{"code": "server_error", "message": told, "line": None, "param": None}]
        try:
            await asyncio.to_thread(self._conclude, batch.id, outcome, self._progress[batch.id], problems)
        except (HerdError, OSError):
            log.exception("batch %s could not be ended; the next start will", batch.id)

    async def _through(self, batch: BatchRow) -> tuple[str, list[dict[str, Any]] | None]:
        """Answer all of it, from wherever it is; how it ended."""
        if batch.state == "validating":
            total, problems = await asyncio.to_thread(self._check, batch)
            if problems:
                return "failed", problems
            batch = await asyncio.to_thread(
                partial(
                    self._storage.batches.change, batch.id, only_from=["validating"], state="in_progress", begun=time.time(), total=total
                )
            )
        self._progress[batch.id].total = batch.total
        if batch.state == "in_progress":
            return await self._answer_all(batch), None
        if batch.state == "cancelling":
            await asyncio.to_thread(lambda: self._open(batch).close())
            return "cancelled", None
        return batch.outcome, batch.problems

    def _check(self, batch: BatchRow) -> tuple[int, list[dict[str, Any]]]:
        limit = self._service.config.caps.body_bytes
        with self._storage.open_file(batch.input_file_id) as file:
            return check_lines(file, batch.endpoint, limit)

    def _open(self, batch: BatchRow) -> _Writers:
        """The files of a batch, and how far it was."""
        writers = _Writers(*(LineWriter(self._storage.lines_path(batch.id, kind)) for kind in ("output", "error")))
        progress = self._progress[batch.id]
        progress.done = {*writers.output.ids, *writers.error.ids}
        progress.completed, progress.failed = len(writers.output.ids), len(writers.error.ids)
        return writers

    async def _answer_all(self, batch: BatchRow) -> str:
        """Answer every line that has no answer, until done, cancelled or out of time; which it was."""
        writers = await asyncio.to_thread(self._open, batch)
        progress = self._progress[batch.id]
        work = asyncio.create_task(self._answer_lines(batch, writers))
        cancelled = asyncio.create_task(progress.cancelled.wait())
        try:
            await asyncio.wait({work, cancelled}, timeout=max(0.0, batch.expires - time.time()), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                return "completed"
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if progress.cancelled.is_set():
                return "cancelled"
            await asyncio.to_thread(self._expire, batch, writers)
            return "expired"
        finally:
            for task in (work, cancelled):
                task.cancel()
            await asyncio.gather(work, cancelled, return_exceptions=True)
            writers.close()

    async def _answer_lines(self, batch: BatchRow, writers: _Writers) -> None:
        with self._storage.open_file(batch.input_file_id) as file:
            source = _Source(file, self._service.config.caps.body_bytes, self._progress[batch.id].done)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._num_slots):
                        group.create_task(self._work(batch, source, writers))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from failed

    def _expire(self, batch: BatchRow, writers: _Writers) -> None:
        """What no one will answer any more is told in the error file."""
        progress = self._progress[batch.id]
        with self._storage.open_file(batch.input_file_id) as file:
            for raw in file:
                line = read_line(raw) if raw.strip() else None
                if line is not None and line.custom_id not in progress.done:
                    error = {"code": "batch_expired", "message": f"the batch had {batch.window}, and was not done"}
                    writers.error.write({"id": new_id("batch_req_"), "custom_id": line.custom_id, "response": None, "error": error})
                    progress.failed += 1
                    progress.done.add(line.custom_id)

    async def _work(self, batch: BatchRow, source: _Source, writers: _Writers) -> None:
        """Answer one line after another."""
        progress = self._progress[batch.id]
        while (line := await source.next()) is not None:
            request_id = new_id("req-")
            try:
                status, body = 200, await self._answer(batch, line, request_id)
            except Exception as error:
                if status_of(error) == 500:
                    log.error("line %r of batch %s failed", line.custom_id, batch.id, exc_info=error)
                status, body = status_of(error), body_of(error, request_id=request_id)
            response = {"status_code": status, "request_id": request_id, "body": body}
            writer = writers.output if status == 200 else writers.error
            writer.write({"id": new_id("batch_req_"), "custom_id": line.custom_id, "response": response, "error": None})
            progress.done.add(line.custom_id)
            progress.completed += status == 200
            progress.failed += status != 200

    async def _answer(self, batch: BatchRow, line: BatchLine, request_id: str) -> dict[str, Any]:
        """One answer, however often it has to be asked for."""
        num_tries = 0
        while True:
            while self._service.engine.state != "ready":
                await asyncio.sleep(0.25)
            num_tries += 1
            async with self._slots:
                try:
                    return await self._answerer.answer(batch.endpoint, line.body, self._context(batch, request_id), PRIORITY)
                except HerdError as error:
                    if error.code not in _AGAIN and (error.code not in _DIED or num_tries >= MAX_TRIES):
                        raise
                    num_tries -= error.code in _AGAIN
                    wait_s = getattr(error, "retry_after_s", None) or 1.0
            await asyncio.sleep(min(wait_s, 30.0))

    def _context(self, batch: BatchRow, request_id: str) -> Context:
        keys = self._service.config.keys
        key = next((key for key in keys if key.name == batch.owner), None)
        if keys and key is None:
            raise RequestError(
                "unauthorized", f"the key {batch.owner!r} of this batch is no longer valid", hint="make a batch with another"
            )
        return Context(request_id=request_id, key=key)

    def _conclude(self, batch_id: str, outcome: str, progress: Progress, problems: list[dict[str, Any]] | None) -> None:
        """Make the lines files of the owner's. Which files is written down first, so that after a crash between two steps all is found."""
        batch = self._storage.batches.change(batch_id)
        if batch.state != "finalizing":
            names = {
                f"{kind}_file_id": new_id(FILE_ID)
                for kind in ("output", "error")
                if (path := self._storage.lines_path(batch_id, kind)).is_file() and path.stat().st_size
            }
            batch = self._storage.batches.change(
                batch_id, state="finalizing", outcome=outcome, finalizing=time.time(), total=progress.total, problems=problems, **names
            )
        rows: list[FileRow] = []
        counts = {"completed": 0, "failed": 0}
        for kind, file_id, count in (("output", batch.output_file_id, "completed"), ("error", batch.error_file_id, "failed")):
            lines = self._storage.lines_path(batch_id, kind)
            if file_id is None:
                lines.unlink(missing_ok=True)
                continue
            if lines.is_file():  # else an earlier process came so far
                self._storage.state.blobs.adopt(lines, file_id)
            counts[count], size_bytes = self._count_lines(file_id)
            rows.append(_row_of(batch, kind, file_id, size_bytes))
        self._storage.batches.finish(batch_id, rows, state=batch.outcome, **counts)

    def _count_lines(self, file_id: str) -> tuple[int, int]:
        """Lines and bytes of a file."""
        with self._storage.open_file(file_id) as file:
            sizes = [len(line) for line in file]
        return len(sizes), sum(sizes)


def _row_of(batch: BatchRow, kind: str, file_id: str, size_bytes: int) -> FileRow:
    name = f"{batch.id}_{kind}.jsonl"
    return FileRow(id=file_id, owner=batch.owner, filename=name, purpose="batch_output", size_bytes=size_bytes, created=time.time())


@dataclass(frozen=True, slots=True)
class _Writers:
    """The two files that a batch writes."""

    output: LineWriter
    error: LineWriter

    def close(self) -> None:
        self.output.close()
        self.error.close()


class _Source:
    """The lines of a batch that have no answer yet, one after another, for several takers."""

    def __init__(self, file: BinaryIO, max_bytes: int, done: set[str]) -> None:
        self._file, self._max_bytes, self._done = file, max_bytes, frozenset(done)
        self._lock = asyncio.Lock()

    async def next(self) -> BatchLine | None:
        """The next one; None after the last."""
        async with self._lock:
            return await asyncio.to_thread(self._next)

    def _next(self) -> BatchLine | None:
        while raw := self._file.readline(self._max_bytes):
            line = read_line(raw) if raw.strip() else None
            if line is not None and line.custom_id not in self._done:
                return line
        return None
