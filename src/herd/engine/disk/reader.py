"""Reads leading blocks of prompts from a folder on a thread of its own, one prompt after another, and hands them over in parts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from herd.engine.disk.byte_queue import ByteQueue
from herd.engine.disk.folder import BlockFolder, minute_now, stamp_ns

PART_BYTES = 16 * 2**20
"""A part's size at most, unless one block is larger: what is copied into the cache between two steps."""


@dataclass(slots=True, eq=False)
class Job:
    """A prompt's blocks.

    Attributes:
        digests: of all its leading blocks that may come from the cache.
        wanted: places of those that are to be read, ascending.
        then: to be called once the prompt need not wait any more.
        deadline: when it stops waiting; later with every part that comes.
        is_late: set by whoever waits no more: the rest is not read.
        number: its name among several processes.
    """

    digests: list[bytes]
    wanted: list[int]
    then: Callable[[], None]
    deadline: float
    is_late: bool = False
    number: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a job's blocks by digest; `is_last` with the last of them."""

    job: Job
    blocks: dict[bytes, memoryview] = field(default_factory=dict[bytes, memoryview])
    is_last: bool = False


class Reader:
    """Jobs in, parts out.

    Attributes:
        wake: called, on the reader's thread, whenever there is a part to `take`.
        on_part: called before it, on that thread too, with a part that can be taken now, or has been.
        num_read, num_bytes: blocks that were read and found whole.
    """

    def __init__(self, folder: BlockFolder, *, max_bytes: int) -> None:
        self._folder = folder
        self.wake: Callable[[], None] = _nothing
        self.on_part: Callable[[Part], None] = _nothing
        self._jobs: ByteQueue[Job] = ByteQueue(2**62)
        self._parts: ByteQueue[Part] = ByteQueue(max_bytes)
        self.num_read = self.num_bytes = 0
        self._thread = threading.Thread(target=self._work, name="herd-prefix-reader", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.put(job, 1)

    def take(self) -> Part | None:
        """The next part that has come, if any."""
        return self._parts.get()

    def end(self) -> None:
        """Stop after the block in work. Waits for nothing."""
        self._jobs.close()
        self._parts.close()

    def _work(self) -> None:
        while (job := self._jobs.get(wait=True)) is not None:
            if not self._read(job):
                return

    def _read(self, job: Job) -> bool:
        """Read a job up to the first block that is not there; False once the reader is closed."""
        blocks: dict[bytes, memoryview] = {}
        size, minute = 0, minute_now()
        for index in job.wanted:
            content = None if job.is_late else self._folder.read(job.digests[index], stamp_ns(minute, index))
            if content is None:
                break
            if blocks and size + content.nbytes > PART_BYTES:
                if not self._hand_over(Part(job, blocks), size):
                    return False
                blocks, size = {}, 0
            blocks[job.digests[index]] = content
            size += content.nbytes
            self.num_read += 1
            self.num_bytes += content.nbytes
        return self._hand_over(Part(job, blocks, is_last=True), size)

    def _hand_over(self, part: Part, size: int) -> bool:
        taken = self._parts.put(part, size, wait=True)
        if taken:
            self.on_part(part)
        self.wake()
        return taken


def _nothing(*_: object) -> None:
    pass
