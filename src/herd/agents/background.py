"""An event loop on a thread of its own, so that one agent serves plain code and async code, from any thread and any loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

_Item = TypeVar("_Item")
_END = object()


class Background:
    """A loop that runs until `close`."""

    def __init__(self, name: str = "herd-agent") -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def submit(self, work: Coroutine[Any, Any, _Item]) -> Future[_Item]:
        """Start work there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, _Item]) -> _Item:
        """Do work there and wait for it. Interrupted, the work is cancelled."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Coroutine[Any, Any, _Item]) -> _Item:
        """Do work there, from another loop."""
        return await asyncio.wrap_future(self.submit(work))

    def iterate(self, start: Callable[[], Awaitable[AsyncGenerator[_Item, None]]]) -> Generator[_Item, None, None]:
        """What an async generator gives, for plain code. Left early, the generator is closed there."""
        queue: SimpleQueue[Any] = SimpleQueue()
        pump = self.submit(_pump(start, queue.put))
        try:
            while (item := queue.get()) is not _END:
                yield cast("_Item", item)
            pump.result()
        finally:
            self._stop(pump)

    def _stop(self, pump: Future[None]) -> None:
        """Cancel what runs and wait until it has ended there, so that its turn is written as cancelled."""
        if not pump.done():
            pump.cancel()
            if self.alive:
                self.run(self._settled())

    async def _settled(self) -> None:
        """A few rounds of the loop, in which what was cancelled ends."""
        pumps = [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_pump" and task.cancelling()]  # type: ignore[union-attr]
        if pumps:
            await asyncio.wait(pumps, timeout=5.0)

    def aiterate(self, start: Callable[[], Awaitable[AsyncGenerator[_Item, None]]]) -> AsyncItems[_Item]:
        """The same for code in another loop."""
        return AsyncItems(self, start)

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the loop and its thread; what still runs there is cancelled."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()


class AsyncItems(AsyncIterator[_Item], Generic[_Item]):
    """Items of another loop's generator. `aclose` ends it there."""

    def __init__(self, background: Background, start: Callable[[], Awaitable[AsyncGenerator[_Item, None]]]) -> None:
        self._background, self._start = background, start
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._pump: Future[None] | None = None

    async def __anext__(self) -> _Item:
        if self._pump is None:
            loop = asyncio.get_running_loop()
            self._pump = self._background.submit(_pump(self._start, lambda item: loop.call_soon_threadsafe(self._queue.put_nowait, item)))
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:
            self._pump.cancel()
            raise
        if item is _END:
            await asyncio.wrap_future(self._pump)
            raise StopAsyncIteration
        return cast("_Item", item)

    async def aclose(self) -> None:
        """End it now."""
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await asyncio.wrap_future(self._pump)


async def _pump(start: Callable[[], Awaitable[AsyncGenerator[Any, None]]], put: Callable[[Any], Any]) -> None:
    try:
        async with aclosing(await start()) as items:
            async for item in items:
                put(item)
    finally:
        put(_END)
