"""The application over an engine that says what it is told, without any process: for tests of what routes make of answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
from live_server import keys, tokenizer  # pyright: ignore[reportMissingImports]
from openai import AsyncOpenAI

from herd.engine.stream import Admitted, Emit, TokenRequest, Tokens
from herd.stack.app import create_app
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineProcess, EngineSpec, RequestHandle
from herd.stack.responses.desk import Desk
from herd.stack.responses.equipment import Equipment
from herd.stack.service import Service
from herd.store.database import Database, sqlite_url
from herd.store.migrate import upgrade


class Script(EngineProcess):
    """Says one text after another; the last one again and again. `hold` keeps every answer back before its last token until it is set."""

    def __init__(self, *texts: str, context: int = 100_000) -> None:
        super().__init__(EngineSpec(model="none"))
        self.state = "ready"
        self.info = {"context": context, "vocab_size": tokenizer().vocab_size, "max_sequences": 1, "weights_digest": "0" * 64}
        self.info["dtype"] = "float32"
        self.texts: Sequence[str] = texts
        self.asked: list[TokenRequest] = []
        self.finish: Any = "stop"
        self.hold: asyncio.Event | None = None
        self.step = 3

    @property
    def prompts(self) -> list[str]:
        """What was asked, as text."""
        return [tokenizer().decode(list(request.prompt)) for request in self.asked]

    async def check(self, request: TokenRequest) -> None:
        """Everything can be asked."""

    async def submit(self, request: TokenRequest, emit: Emit) -> RequestHandle:
        """Answer in the loop's next rounds."""
        text = self.texts[min(len(self.asked), len(self.texts) - 1)]
        self.asked.append(request)
        end = tokenizer().special_tokens["<|eom_id|>" if "<|python_tag|>" in text else "<|eot_id|>"]
        ids = [*tokenizer().encode(text, allowed_special="all"), end]
        cut = request.params.max_tokens < len(ids)
        ids = ids[: request.params.max_tokens]

        async def say() -> None:
            emit(Admitted(num_cached=0))
            for place in range(0, len(ids), self.step):
                await asyncio.sleep(0)
                last = place + self.step >= len(ids)
                if last and self.hold is not None:
                    await self.hold.wait()
                piece, finish = tuple(ids[place : place + self.step]), ("length" if cut else self.finish) if last else None
                for index in range(request.n):
                    emit(Tokens(index=index, ids=piece, finish=finish))

        task = asyncio.ensure_future(say())
        return RequestHandle(lambda index: task.cancel())


class App:
    """An application with its desk and OpenAI's client of it."""

    def __init__(self, engine: Script, folder: Path, equipment: Equipment | None = None, **settings: Any) -> None:
        self.engine = engine
        self.database = Database(sqlite_url(folder / "test.db"))
        upgrade(self.database)
        config = ServerConfig(**{"model_name": "tiny", "access_log": False, **settings})
        self.service = Service(config, engine, tokenizer(), database=self.database)
        self.desk = Desk(self.service, self.database, equipment)
        transport = httpx.ASGITransport(create_app(self.service, responses=self.desk))  # pyright: ignore[reportArgumentType]
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)

    def openai(self, key: str = "none") -> AsyncOpenAI:
        """OpenAI's client."""
        return AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=self.http, max_retries=0)


@contextlib.asynccontextmanager
async def scripted(
    engine: Script, folder: Path, *, keyed: bool = False, equipment: Equipment | None = None, **settings: Any
) -> AsyncGenerator[App, None]:
    """An application that runs; with `keyed`, for Anna and Bert."""
    app = App(engine, folder, equipment, **(settings | ({"keys": keys()} if keyed else {})))
    await app.desk.start()
    try:
        yield app
    finally:
        await app.desk.stop()
        await app.http.aclose()
        app.database.close()


def kinds(events: Sequence[Any]) -> list[str]:
    """Types of events, those of one kind that follow each other once."""
    found = [event["type"] if isinstance(event, dict) else event.type for event in events]
    return [kind for place, kind in enumerate(found) if place == 0 or kind != found[place - 1]]
