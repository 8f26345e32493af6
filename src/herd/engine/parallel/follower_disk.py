"""The prefix cache on disk on a rank other than 0: does to its blocks what rank 0 does to its own. No torch.

What it reads waits until rank 0 says `insert`, which it does when every rank has read as much; `lead_disk` tells the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from herd.engine.batch import BlockCopier
from herd.engine.blocks import BlockPool
from herd.engine.disk.cache import READ_BYTES, WRITE_BYTES, fill
from herd.engine.disk.folder import BlockFolder
from herd.engine.disk.reader import Job, Part, Reader
from herd.engine.disk.writer import Writer

Say = Callable[[Mapping[str, Any]], None]
"""Tells rank 0 something; from any thread."""


@dataclass(slots=True)
class _Reading:
    """A job, how much of it was told, and blocks that came and were not inserted yet."""

    job: Job
    num_read: int = 0
    blocks: dict[bytes, memoryview] = field(default_factory=dict[bytes, memoryview])


class FollowerDisk:
    """Calls come from the thread that follows the schedule, between two steps."""

    def __init__(self, folder: BlockFolder, pool: BlockPool, copier: BlockCopier, *, say: Say) -> None:
        self._pool, self._copier, self._say = pool, copier, say
        self._writer = Writer(folder, max_bytes=WRITE_BYTES, forget=self._forget)
        self._reader = Reader(folder, max_bytes=READ_BYTES)
        self._reader.on_part = self._tell
        self._open: dict[int, _Reading] = {}
        self._has_said_closed = False

    def read(self, number: int, digests: list[str], wanted: list[int]) -> None:
        """Begin to read a job's wanted blocks."""
        job = Job([bytes.fromhex(digest) for digest in digests], wanted, _nothing, 0.0, number=number)
        self._open[number] = _Reading(job)
        self._reader.start(job)

    def _tell(self, part: Part) -> None:
        """On the reader's thread: `num_read` is its own."""
        reading = self._open.get(part.job.number)
        if reading is not None:
            reading.num_read += len(part.blocks)
            self._say({"read": [part.job.number, reading.num_read, part.is_last]})

    def call(self, name: str, arguments: list[Any]) -> bool:
        """See `replica.DiskCalls`."""
        if name == "insert":
            self._insert(*arguments)
        elif name == "drop":
            self._close(*arguments)
        elif name == "save":
            self._save(*arguments)
        else:
            return False
        return True

    def _insert(self, number: int, chain: list[str], new: list[int], count: int, is_last: bool) -> None:
        """Put the `new` ones of a chain into the cache, and let go of the `count` blocks that rank 0 has looked at."""
        reading = self._open[number]
        self._collect(reading, count)
        digests = [bytes.fromhex(digest) for digest in chain]
        fill(self._pool, self._copier, digests, {digests[place]: reading.blocks[digests[place]] for place in new})
        for digest in list(reading.blocks)[:count]:
            del reading.blocks[digest]
        if is_last:
            self._close(number)

    def _collect(self, reading: _Reading, count: int) -> None:
        """Take parts until so many blocks of a job are here; it was told that they can be taken."""
        while len(reading.blocks) < count:
            part = self._reader.take()
            assert part is not None, f"job {reading.job.number} has no {count} blocks to insert"
            self._keep(part)

    def _keep(self, part: Part) -> bool:
        """Keep a part for its job; False where that is closed."""
        reading = self._open.get(part.job.number)
        if reading is None:
            return False
        reading.blocks.update(part.blocks)
        return True

    def _close(self, number: int) -> None:
        """Let go of a job, and of parts of closed ones, for which the reader may be waiting."""
        self._open.pop(number).job.is_late = True
        while (part := self._reader.take()) is not None and not self._keep(part):
            pass

    def _save(self, blocks: list[list[Any]]) -> None:
        lost = list[str]()
        for name, block, used_ns in blocks:
            if block is None:
                self._writer.touch(bytes.fromhex(name), used_ns)
            elif self._writer.has_room():
                self._writer.write(bytes.fromhex(name), self._copier.copy_out(block), used_ns)
            else:
                lost.append(name)
        if lost:
            self._say({"forget": lost})
        if not self._writer.is_open and not self._has_said_closed:
            self._has_said_closed = True
            self._say({"closed": True})

    def _forget(self, digest: bytes) -> None:
        self._say({"forget": [digest.hex()]})

    def close(self) -> None:
        """Stop reading; write what is queued, for a while."""
        self._reader.end()
        self._writer.close()


def _nothing() -> None:
    pass
