"""Writes blocks to a folder on a thread of its own. What its queue has no room for is dropped and counted: no step waits for a disk."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import NamedTuple

from herd.base.log import get_logger
from herd.engine.disk.byte_queue import ByteQueue
from herd.engine.disk.folder import BlockFolder

log = get_logger(__name__)

_TOUCH_BYTES = 256
"""What a note without content counts in the queue."""
LAST_S = 2.0
"""What the thread gets at the end to write what is queued."""


class _Task(NamedTuple):
    digest: bytes
    used_ns: int
    content: memoryview | None


class Writer:
    """Blocks on their way to `folder`. `forget` is told, on the writer's thread, of digests that have no file after all.

    Attributes:
        is_open: whether blocks are taken; false after an error of the disk, for good.
        num_written, num_bytes: files that were made.
    """

    def __init__(self, folder: BlockFolder, *, max_bytes: int, forget: Callable[[bytes], None]) -> None:
        self._folder, self._forget = folder, forget
        self._queue: ByteQueue[_Task] = ByteQueue(max_bytes)
        self.is_open = True
        self.num_written = self.num_bytes = 0
        self._thread = threading.Thread(target=self._work, name="herd-prefix-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def has_room(self) -> bool:
        """Whether a block would be taken now."""
        return self._queue.has_room(self._folder.block_bytes)

    def write(self, digest: bytes, content: memoryview, used_ns: int) -> None:
        """Queue a block, which must not change any more. There has to be room."""
        self._queue.put(_Task(digest, used_ns, content), content.nbytes)

    def touch(self, digest: bytes, used_ns: int) -> None:
        """Queue a note that a block was used."""
        self._queue.put(_Task(digest, used_ns, None), _TOUCH_BYTES)

    def flush(self, timeout_s: float = LAST_S) -> bool:
        """Wait until all that is queued lies in files; False where that took too long."""
        return self._queue.join(timeout_s)

    def end(self) -> None:
        """Take nothing more; the thread ends when all that is queued is written. Waits for nothing."""
        self.is_open = False
        self._queue.close()

    def close(self) -> None:
        """Write what is queued, for a while, then stop."""
        self.end()
        self._thread.join(LAST_S)

    def _work(self) -> None:
        try:
            self._work_off()
        finally:
            atexit.unregister(self.close)

    def _work_off(self) -> None:
        while (task := self._queue.get(wait=True)) is not None:
            try:
                self._do(task)
            except OSError as error:
                self.is_open = False
                log.warning("the prefix cache on disk is not written any more: %s; what it holds is still read", error)
                self._queue.close()
                while self._queue.get() is not None:
                    self._queue.done()
            finally:
                self._queue.done()

    def _do(self, task: _Task) -> None:
        if task.content is None:
            if not self._folder.touch(task.digest, task.used_ns):
                self._forget(task.digest)
        elif self._folder.write(task.digest, task.content, task.used_ns):
            self.num_written += 1
            self.num_bytes += task.content.nbytes
