"""Server-sent events: chunks as they come, a comment where nothing is said for a while, and an end to all work once the reader has gone.

The stream's own loop is one task; another waits for the client to leave, and a timer speaks up. Format: WHATWG HTML, server-sent events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from herd.stack.answers import dumps
from herd.stack.config import ServerConfig
from herd.stack.errors import body_of, note_internal

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: bytes) -> bytes:
    """JSON as an event."""
    return b"data: " + data + b"\n\n"


def error_event(error: Exception, request_id: str) -> bytes:
    """What a stream ends with when it fails."""
    note_internal(error, request_id)
    return event(dumps(body_of(error, request_id=request_id)))


class EventStream(Response):
    """Sends the chunks of an iterator. `close` ends the work behind it, and the iterator with it; it is called once, however this ends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], close: Callable[[], object], config: ServerConfig) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._close = chunks, close
        self._keep_alive_s, self._write_timeout_s = config.keep_alive_s, config.write_timeout_s
        self._spoke = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        watcher = asyncio.create_task(self._watch(receive))
        ticker = asyncio.create_task(self._tick(send))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await self._write(send, chunk)
            ticker.cancel()  # nothing may be said after the end
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            pass  # the reader takes nothing, or is gone: there is no one to tell
        finally:
            ticker.cancel()
            watcher.cancel()
            self._close()

    async def _write(self, send: Send, chunk: bytes) -> None:
        self._spoke = True
        async with asyncio.timeout(self._write_timeout_s):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._close()

    async def _tick(self, send: Send) -> None:
        while True:
            self._spoke = False
            await asyncio.sleep(self._keep_alive_s)
            if not self._spoke:
                with contextlib.suppress(TimeoutError, OSError):
                    await self._write(send, KEEP_ALIVE)
