"""Clients that leave, read slowly, send by drops or lie about what they send: their work ends, and nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import ThreadServer, open_server, post, raw, thread_server, wait_for  # noqa: F401  # pyright: ignore[reportMissingImports]

LONG = {"model": "tiny", "prompt": "The herd", "max_tokens": 12_000, "seed": 1, "ignore_eos": True}


@contextlib.contextmanager
def connected(server: ThreadServer, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        yield connection


def runs(server: ThreadServer) -> bool:
    return bool(server.process.counters.get("running"))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_work(server: ThreadServer, path: str, stream: bool) -> None:
    body: dict[str, Any] = {**LONG, "stream": stream, "n": 3}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    before = wait_for(lambda: server.process.counters, what="the first counters")["step_tokens"]
    with connected(server, post(path, body)) as connection:
        if stream:
            assert connection.recv(100)
        wait_for(lambda: runs(server), what="the request's start")
    wait_for(server.idle, what="the end of the work")
    assert server.process.counters["step_tokens"] - before < 3 * LONG["max_tokens"]


def test_a_reset_in_the_middle_of_a_stream(server: ThreadServer) -> None:
    with connected(server, post("/v1/completions", {**LONG, "stream": True})) as connection:
        assert connection.recv(100)
        wait_for(lambda: runs(server), what="the request's start")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(server.idle, what="the end of the work")


def test_a_client_that_closes_its_half_has_left(server: ThreadServer) -> None:
    with connected(server, post("/v1/completions", {**LONG, "stream": True})) as connection:
        assert connection.recv(100)
        connection.shutdown(socket.SHUT_WR)
        wait_for(server.idle, what="the end of the work")


def test_a_client_that_leaves_while_its_grammar_is_compiled(server: ThreadServer) -> None:
    properties = {f"field{number}": {"type": "string", "pattern": f"^[a-z]{{1,{number % 50 + 1}}}$"} for number in range(300)}
    body = {**LONG, "structured_outputs": {"json": {"type": "object", "properties": properties, "required": list(properties)}}}
    for _ in range(5):
        with connected(server, post("/v1/completions", body)):
            pass
    wait_for(server.idle, what="the end of the work")


def test_a_client_that_leaves_many_at_once(server: ThreadServer) -> None:
    body = {**LONG, "prompt": [f"herd {number}" for number in range(40)], "stream": True}
    with connected(server, post("/v1/completions", body)) as connection:
        assert connection.recv(100)
    wait_for(server.idle, what="the end of the work")


@pytest.fixture(scope="module")
def impatient() -> Iterator[ThreadServer]:
    with thread_server(header_timeout_s=0.6, body_timeout_s=0.6, write_timeout_s=1.0, keep_alive_s=0.1) as server:
        yield server


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_never_reads_is_let_go(impatient: ThreadServer, stream: bool) -> None:
    # Log-probabilities make the answer larger than what the two kernels hold between them.
    body = {**LONG, "stream": stream, "logprobs": 20, "max_tokens": 15_000 if stream else 6_000, "return_token_ids": True}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.port))
        connection.sendall(post("/v1/completions", body))
        wait_for(lambda: runs(impatient), what="the request's start")
        wait_for(impatient.idle, within=60, what="the end of the work")
        uvicorn = impatient.server._uvicorn
        assert uvicorn is not None
        wait_for(lambda: not uvicorn.server_state.connections, within=20, what="the end of the connection")


def drip(port: int, head: bytes, *, every_s: float, give_up_s: float) -> bytes:
    """Send head, then a byte at a time for so long as the server goes along with it; what it said."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(head)
        connection.setblocking(False)
        while time.monotonic() - began < give_up_s:
            time.sleep(every_s)
            try:
                connection.send(b"a")
                data = connection.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            return data
    return b"still open"


def test_headers_that_come_by_drops(impatient: ThreadServer) -> None:
    said = drip(impatient.port, b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", every_s=0.1, give_up_s=15)
    assert said != b"still open"


def test_a_connection_that_says_nothing(impatient: ThreadServer) -> None:
    began = time.monotonic()
    assert raw(impatient.port, b"") == b""
    assert time.monotonic() - began < 15  # the server closed it: `raw` waits for 20 s


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_body_that_comes_by_drops(impatient: ThreadServer) -> None:
    """Each drop is in time; all together are not."""
    said = drip(impatient.port, HEAD + b"Content-Length: 1000\r\n\r\n", every_s=0.1, give_up_s=15)
    assert b" 408 " in said.splitlines()[0]


def test_a_body_that_does_not_come(impatient: ThreadServer) -> None:
    said = raw(impatient.port, HEAD + b"Content-Length: 1000\r\n\r\n{")
    assert b" 408 " in said.splitlines()[0]


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65_536):
            pass


def test_keep_alive_comments_on_a_silent_stream(impatient: ThreadServer) -> None:
    """While 16 sequences are written at once, a 17th request waits and its stream says so."""
    with connected(impatient, post("/v1/completions", {**LONG, "stream": True, "n": 16, "max_tokens": 8000})) as first:
        assert first.recv(100)
        # Read to its end: a client that does not is let go after a second, and then nothing is waited for.
        threading.Thread(target=_drain, args=(first,), daemon=True).start()
        wait_for(lambda: impatient.process.counters.get("running") == 16, what="a full engine")
        with connected(impatient, post("/v1/completions", {**LONG, "stream": True, "priority": 5})) as second:
            second.settimeout(100)  # on a slow machine the loop is busy with the sixteen for longer than `connected` waits
            said = b""
            while b": keep-alive" not in said:
                data = second.recv(4096)
                assert data
                said += data
    wait_for(impatient.idle, what="the end of the work")


@pytest.fixture(scope="module")
def narrow() -> Iterator[ThreadServer]:
    from herd.stack.config import Caps

    with thread_server(caps=Caps(body_bytes=20_000)) as server:
        yield server


def status(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def test_a_huge_body_is_refused_by_its_announced_length(narrow: ThreadServer) -> None:
    said = raw(narrow.port, HEAD + b"Content-Length: 999999999999\r\n\r\n", timeout=5)
    assert status(said) == 413 and json.loads(said.split(b"\r\n\r\n")[1])["error"]["code"] == "too_large"


def test_a_chunked_body_over_the_limit(narrow: ThreadServer) -> None:
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    said = raw(narrow.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 6, timeout=5)
    assert status(said) == 413


def test_a_body_longer_than_its_announced_length(narrow: ThreadServer) -> None:
    """What is over is no part of the request, and no request."""
    body = b'{"model":"tiny","prompt":"a","max_tokens":1}'
    said = raw(narrow.port, HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body + b"GARBAGE\r\n\r\n", timeout=5)
    assert status(said) == 200 and b"400 Bad Request" in said


@pytest.mark.parametrize("length", [b"-1", b"abc", b"1e9", b"99999999999999999999999", b"5\r\nContent-Length: 6"])
def test_content_lengths_that_are_none(narrow: ThreadServer, length: bytes) -> None:
    assert status(raw(narrow.port, HEAD + b"Content-Length: " + length + b"\r\n\r\n{}", timeout=5)) in (400, 413)


@pytest.mark.parametrize("header", [b"X-Big: " + b"a" * 100_000, b"\r\n".join(b"X-%d: a" % number for number in range(20_000))])
def test_cve_2025_48956_giant_headers(narrow: ThreadServer, header: bytes) -> None:
    began = time.monotonic()
    said = raw(narrow.port, b"GET /version HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
    assert said == b"" or status(said) in (400, 431)
    assert time.monotonic() - began < 15  # the server closed it: `raw` waits for 20 s


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\r\n\r\n"]
)
def test_what_is_no_http(narrow: ThreadServer, data: bytes) -> None:
    said = raw(narrow.port, data, timeout=12)
    assert said == b"" or status(said) in (400, 403)


def test_an_empty_body(narrow: ThreadServer) -> None:
    assert status(raw(narrow.port, HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")) == 400


def test_the_server_is_as_before(narrow: ThreadServer) -> None:
    """After all of the above."""
    with narrow.client() as client:
        assert client.get("/health").status_code == 200
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 2}).status_code == 200
    wait_for(narrow.idle)
