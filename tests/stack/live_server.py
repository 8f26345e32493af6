"""Servers for tests: `herd serve` in a process of its own, and a `Server` on a thread of this one whose insides can be looked at.

Both run a random model of a few thousand weights that talks until it is cut, over a real engine process and a real port.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from herd.checkpoint.load import save_model
from herd.engine.memory import EngineConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineProcess, EngineSpec
from herd.stack.keys import ApiKey, digest_of
from herd.stack.server import Server
from herd.text.bpe_train import train_bpe
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from tiny_model import TEXT, tiny_config  # pyright: ignore[reportMissingImports]

FULL = os.environ.get("HERD_TEST_FULL") == "1"
"""Run the large sets whole."""
CONTEXT = 16_384
KEYS = {"anna": "key-of-anna-0123456789", "bert": "key-of-bert-0123456789"}
START_S = 120.0


@cache
def folder() -> Path:
    """A scratch folder that goes with the session."""
    path = Path(tempfile.mkdtemp(prefix="herd-stack-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def tokenizer() -> Tokenizer:
    """256 bytes, some merges and the special tokens."""
    return train_bpe([TEXT] * 4, 320)


@cache
def model_folder() -> Path:
    """The model on disk. Special tokens have no weight, so that greedy answers never end."""
    with torch.device("meta"):
        model = Transformer(replace(tiny_config(tokenizer().vocab_size), max_position_embeddings=CONTEXT))
    initialise(model, seed=5)
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[tokenizer().num_base :] = 0.0
    save_model(model, folder() / "tiny", tokenizer=tokenizer())
    return folder() / "tiny"


def keys(**limits: Any) -> tuple[ApiKey, ...]:
    """Anna's key and Bert's; Anna's has the limits."""
    return tuple(ApiKey(name=name, digest=digest_of(key), **(limits if name == "anna" else {})) for name, key in KEYS.items())


def bearer(name: str) -> dict[str, str]:
    """The header that a key comes in."""
    return {"Authorization": f"Bearer {KEYS[name]}"}


def wait_for(condition: Callable[[], Any], *, within: float = 30.0, what: str = "it") -> Any:
    """The first value that counts as true."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {within:g} s")


def raw(port: int, data: bytes, *, timeout: float = 20.0) -> bytes:
    """What comes back for these bytes until the server closes, or falls silent for `timeout`."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError, TimeoutError):
        while data := connection.recv(65536):
            parts.append(data)
    return b"".join(parts)


def post(path: str, body: dict[str, Any], *, headers: str = "", host: str = "localhost") -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def events(text: str) -> list[Any]:
    """The JSON of a stream's events, without [DONE]. Lines end at newlines alone, where `splitlines` would end them at U+2028 too."""
    found = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in found if line != "[DONE]"]


def engine_counters(client: httpx.Client) -> dict[str, float]:
    """The series of /metrics without their labels, as far as they are the engine's."""
    text = client.get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^herd_(\w+)\{model_name=\"[^\"]*\"\} (\S+)$", text, re.MULTILINE)}


def is_idle(client: httpx.Client) -> bool:
    """Whether no sequence runs or waits and every block is free."""
    found = engine_counters(client)
    return found["num_requests_running"] == found["num_requests_waiting"] == found["kv_cache_usage_perc"] == 0


class CommandServer:
    """`herd serve` in a process of its own; its log is a file."""

    def __init__(self, *arguments: str | Path, model: Path | None = None, **variables: str) -> None:
        self.log_path = Path(tempfile.mkstemp(dir=folder(), suffix=".log")[1])
        command = [sys.executable, "-m", "herd", "serve", str(model or model_folder()), "--port", "0", "--name", "tiny", "--threads", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HERD_HOME": str(folder() / "home"), **variables}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.port = 0

    @property
    def log(self) -> str:
        """What it said so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> CommandServer:
        """Wait until it listens."""

        def listening() -> bool:
            assert self.process.poll() is None, self.log
            found = re.search(r"listening on http://[^:]+:(\d+)/", self.log)
            self.port = int(found[1]) if found else 0
            return bool(found)

        wait_for(listening, within=START_S, what="the server's start")
        return self

    def client(self, **options: Any) -> httpx.Client:
        """A client; close it."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, **options)

    @property
    def engine_pid(self) -> int:
        """Of its one child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


class ThreadServer:
    """A `Server` on a thread of this process: its service and its guard can be looked at, its settings are any."""

    def __init__(
        self,
        *,
        engine: EngineConfig | None = None,
        spec: dict[str, Any] | None = None,
        prompt_format: PromptFormat | None = None,
        model: Path | None = None,
        **settings: Any,
    ) -> None:
        state = tempfile.mkdtemp(dir=folder())
        config = ServerConfig(**({"model_name": "tiny", "port": 0, "state_dir": state} | settings))
        sizes = engine or EngineConfig(context=CONTEXT, max_sequences=16, token_budget=256)
        options: dict[str, Any] = {"model": str(model or model_folder()), "threads": 1, "engine": sizes} | (spec or {})
        self.server = Server(config, EngineSpec(**options), tokenizer(), prompt_format=prompt_format)
        self.engine: EngineProcess | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test-server", daemon=True)
        self._thread.start()
        assert self._ready.wait(START_S), "the server did not start"
        if self._error is not None:
            raise self._error
        self.port = self.server.port
        self.url = f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        self._ready.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()

        def ready(_: Server, engine: EngineProcess) -> None:
            self.engine = engine
            self._ready.set()

        await self.server.run(ready)

    @property
    def process(self) -> EngineProcess:
        """The engine as the server sees it."""
        assert self.engine is not None
        return self.engine

    @property
    def service(self) -> Any:
        """The server's service."""
        assert self.server.service is not None
        return self.server.service

    def client(self, **options: Any) -> httpx.Client:
        """A client; close it."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def idle(self) -> bool:
        """Whether nothing is left of any request, in the server and in the engine."""
        admission, counters = self.service.admission, self.process.counters
        counted = (admission.num_requests, admission.num_sequences, admission.num_unread, self.process.num_requests)
        if any(counted) or any(quota.num_open for quota in self.service.quotas.values()):
            return False
        return (
            counters.get("requests") == 0
            and counters["blocks_free"] == counters["blocks"]
            and not counters["running"] + counters["waiting"]
        )

    def stop(self) -> None:
        """Stop it as SIGTERM does."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.stop)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server did not stop"
        if self._error is not None:
            raise self._error


_shared: dict[str, ThreadServer] = {}


def _once(request: pytest.FixtureRequest, name: str, **settings: Any) -> ThreadServer:
    if name not in _shared:
        _shared[name] = ThreadServer(**settings)
        request.config.add_cleanup(_shared[name].stop)
    return _shared[name]


@pytest.fixture(name="server")
def open_server(request: pytest.FixtureRequest) -> ThreadServer:
    """One without keys for all tests of the session that leave it as it was."""
    return _once(request, "open")


@pytest.fixture(name="keyed")
def keyed_server(request: pytest.FixtureRequest) -> ThreadServer:
    """One with keys for all tests of the session that leave it as it was."""
    return _once(request, "keyed", keys=keys())


@contextlib.contextmanager
def thread_server(**settings: Any) -> Iterator[ThreadServer]:
    """A server of its own settings for one test."""
    server = ThreadServer(**settings)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def command_server(*arguments: str | Path, **variables: str) -> Iterator[CommandServer]:
    """`herd serve` for one test."""
    server = CommandServer(*arguments, **variables)
    try:
        yield server.wait_ready()
    finally:
        server.stop()
