"""Files that wait to be indexed, worked on in the background, one at a time and oldest first.

The rows are the queue: what a crash cut short is still `in_progress` and is begun again; what was done is done, since its passages and its
status were one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.store.tables.vector_stores import VectorStoreFileRow
from herd.tools.retrieval.extract import reason_of
from herd.tools.retrieval.service import Retrieval

log = get_logger(__name__)

LOOK_EVERY_S = 30.0
"""Also looks by itself, for what another process may have put there."""
EXPIRE_EVERY_S = 600.0
_AGAIN = frozenset({"engine_down", "draining", "storage"})
"""Errors of the server's own state: the file is tried again later."""


class Indexer:
    """Works on what waits. For one event loop."""

    def __init__(self, retrieval: Retrieval, *, retry_s: float = 2.0) -> None:
        self._retrieval, self._retry_s = retrieval, retry_s
        self._task: asyncio.Task[None] | None = None
        self._tidy: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._task = asyncio.create_task(self._run(), name="indexer")
        self._tidy = asyncio.create_task(self._expire(), name="expiry")

    async def stop(self) -> None:
        """Let go; a later process goes on."""
        tasks = [task for task in (self._task, self._tidy) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._retrieval.wake.clear()
            try:
                waiting = await asyncio.to_thread(self._retrieval.stores.pending, 100)
                for row in waiting:
                    await self.index(row)
            except HerdError:
                log.exception("the queue of files cannot be read; it is tried again")
                waiting = []
            if not waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._retrieval.wake.wait(), LOOK_EVERY_S)

    async def index(self, row: VectorStoreFileRow) -> None:
        """One file, to its end: completed, failed, or as it was where the server itself could not."""
        try:
            await self._retrieval.index(row)
        except Exception as error:
            if isinstance(error, HerdError) and error.code in _AGAIN:
                await asyncio.sleep(self._retry_s)
                return
            code, message = reason_of(error)
            if code == "server_error":
                log.exception("the file %s of %s could not be indexed", row.id, row.store_id)
            await asyncio.to_thread(self._retrieval.stores.fail, row, code, message)

    async def _expire(self) -> None:
        """Files whose time is over go."""
        while True:
            with contextlib.suppress(HerdError):
                await asyncio.to_thread(self._retrieval.files.expire)
            await asyncio.sleep(EXPIRE_EVERY_S)
