"""An engine process that is killed, hangs or says what no engine says: clients are told at once, and the next process serves again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from live_server import ThreadServer, events, thread_server, wait_for  # pyright: ignore[reportMissingImports]

from herd.engine.engine import EngineError
from herd.engine.stream import Failed
from herd.stack import engine_process

LONG = {"model": "tiny", "prompt": "The herd", "max_tokens": 12_000, "seed": 1, "ignore_eos": True}
SHORT = {"model": "tiny", "prompt": "The herd", "max_tokens": 4, "seed": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadServer]:
    with pytest.MonkeyPatch.context() as patch, thread_server(spec={"silence_s": 1.5, "hang_s": 60.0}) as server:
        patch.setattr(engine_process, "LONGEST_PAUSE_S", 0.5)  # it ends often here
        yield server


def health(server: ThreadServer) -> int:
    return httpx.get(server.url + "/health", timeout=5).status_code


def serves_again(server: ThreadServer) -> bool:
    return health(server) == 200 and httpx.post(server.url + "/v1/completions", json=SHORT, timeout=60).status_code == 200


@pytest.mark.parametrize(("number", "within"), [(signal.SIGKILL, 4.0), (signal.SIGSTOP, 7.0)], ids=["killed", "hung"])
def test_an_engine_that_goes_in_the_middle_of_answers(server: ThreadServer, number: signal.Signals, within: float) -> None:
    told: list[tuple[bool, float, int, Any]] = []
    begun = threading.Semaphore(0)

    def ask(stream: bool) -> None:
        with server.client() as client, client.stream("POST", "/v1/completions", json={**LONG, "stream": stream}) as answer:
            pieces = []
            for piece in answer.iter_raw():
                if stream and not pieces:
                    begun.release()
                pieces.append(piece)
            ended, text = time.monotonic(), b"".join(pieces).decode()
            last = events(text[-2000:].partition("\n\n")[2])[-1] if stream else json.loads(text)
            told.append((stream, ended, answer.status_code, last))

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(ask, True) for _ in range(4)] + [pool.submit(ask, False) for _ in range(4)]
        for _ in range(4):
            assert begun.acquire(timeout=30)
        wait_for(lambda: server.process.num_requests == 8, what="all eight requests")
        pid, restarts = server.process.pid, server.process.num_restarts
        assert pid is not None
        at = time.monotonic()
        os.kill(pid, number)
        wait_for(lambda: server.process.state != "ready" or server.process.num_restarts > restarts, within=within, what="red health")
        for future in streams:
            future.result(30)
    assert len(told) == 8
    for stream, when, status, last in told:
        assert when - at < within
        assert status == (200 if stream else 503)
        assert last["error"]["code"] == "engine_down" and last["error"]["request_id"]
    wait_for(lambda: serves_again(server), within=60, what="the next process")
    assert server.process.pid != pid
    wait_for(server.idle, within=5, what="nothing left")


def test_while_there_is_no_engine(server: ThreadServer) -> None:
    wait_for(lambda: serves_again(server), within=60)
    server.loop.call_soon_threadsafe(server.process.kill)
    wait_for(lambda: health(server) == 503, within=5, what="red health")
    answer = httpx.post(server.url + "/v1/completions", json=SHORT)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_down" and int(answer.headers["Retry-After"]) >= 1
    with server.client() as client:
        assert client.get("/ready").status_code == 503
        assert client.get("/v1/models").status_code == 200
        assert 'herd_engine_healthy{model_name="tiny"} 0.0' in client.get("/metrics").text
    wait_for(lambda: serves_again(server), within=60, what="the next process")


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00{}x", b"\x04\x00\x00\x00null", b'\x0c\x00\x00\x00{"events":1}'])
def test_an_engine_that_says_what_no_engine_says(server: ThreadServer, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    wait_for(lambda: serves_again(server), within=60)
    restarts = server.process.num_restarts
    # Into the server's reader, as if the process had written it.
    server.loop.call_soon_threadsafe(lambda: server.process._reader.feed_data(data))
    wait_for(lambda: server.process.num_restarts > restarts, within=40, what="another process")
    wait_for(lambda: serves_again(server), within=60, what="the next process")


def test_cve_2026_22778_errors_tell_nothing_of_the_inside(server: ThreadServer, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the engine, one of the tokenizer and one of a route: the answer has a code and an id, the log has the rest."""
    wait_for(lambda: serves_again(server), within=60)
    secret = "RuntimeError at 0x7f00deadbeef in /opt/secret/path.py"
    process, service = server.process, server.service
    submit = process.submit

    async def failing(request: Any, emit: Any) -> Any:
        handle = await submit(request, emit)
        handle.cancel()
        emit(Failed(error=EngineError(secret)))
        return handle

    async def crashing(request: Any, emit: Any) -> Any:
        raise RuntimeError(secret)

    for broken, status in ((failing, 503), (crashing, 500)):
        process.submit = broken
        try:
            for stream in (False, True):
                caplog.clear()
                answer = httpx.post(server.url + "/v1/completions", json={**LONG, "stream": stream}, timeout=30)
                error = (events(answer.text)[-1] if answer.status_code == 200 else answer.json())["error"]
                assert answer.status_code in ((200, status) if broken is failing and stream else (status,))
                assert error["code"] == "internal_error" and error["request_id"] == answer.headers["x-request-id"]
                assert "0x7f" not in answer.text and "secret" not in answer.text and "Traceback" not in answer.text
                request_id = error["request_id"]
                wait_for(lambda: secret in caplog.text and request_id in caplog.text, within=5, what="the log")  # noqa: B023
        finally:
            process.submit = submit
    caplog.clear()
    encode, service.tokenizer.encode = service.tokenizer.encode, None
    try:
        answer = httpx.post(server.url + "/tokenize", json={"prompt": "a"}, timeout=30)
    finally:
        service.tokenizer.encode = encode
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error" and "NoneType" not in answer.text
    wait_for(lambda: "NoneType" in caplog.text, within=5, what="the log")
    wait_for(server.idle, within=10, what="nothing left")
