"""Holes that other servers had, by their ids, and that this one must not have: who may come in, and what a request may ask for."""

from __future__ import annotations

import ast
import hmac
import json
import pickle
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import (  # noqa: F401  # pyright: ignore[reportMissingImports]
    KEYS,
    ThreadServer,
    bearer,
    keyed_server,
    keys,
    open_server,
    raw,
    thread_server,
    wait_for,
)

import herd
from herd.stack import keys as keys_module
from herd.stack.keys import find_key

SOURCES = sorted(Path(herd.__file__).parent.rglob("*.py"))
ASK = {"model": "tiny", "prompt": "The herd", "max_tokens": 4, "seed": 1}


# Code in data


def test_cve_2024_50050_nothing_that_comes_in_is_run() -> None:
    """No pickle, marshal, eval or exec in herd; torch.load in the one converter, with weights_only."""
    loads: list[str] = []
    for path in SOURCES:
        if path.parts[-3:] == ("tools", "code", "guest.py"):
            continue  # what runs code is this file's whole purpose: it is read as text, and runs in the jail alone
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            # The converter of Meta's checkpoints names the error of torch's weights-only reader.
            unsafe = {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
            assert not unsafe or path.name == "meta_shard.py", place
            assert not any(name.endswith("code.guest") for name in names), place
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ("pickle.load", "pickle.loads", "pickle.Unpickler")), place
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system"), place
            shell = called.startswith("subprocess.") and any(word.arg == "shell" for word in node.keywords)
            assert not shell, place
            if called == "torch.load":
                loads.append(path.name)
                assert any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords), place
    assert loads == ["meta_shard.py"]


class _Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/herd-canary-was-here", "w"))


@pytest.mark.parametrize("first", [True, False], ids=["as the first frame", "after it"])
def test_cve_2025_32444_a_pickle_to_the_engine_is_not_read(server: ThreadServer, first: bool) -> None:
    """The engine's socket is a pair of two processes; what is no JSON ends the process and is not run."""
    canary = Path("/tmp/herd-canary-was-here")
    canary.unlink(missing_ok=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "herd.stack.worker", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs.close()
        if not first:
            data = json.dumps(server.process.spec.to_dict()).encode()
            ours.sendall(struct.pack("<I", len(data)) + data)
            assert ours.recv(100)
        data = pickle.dumps(_Canary())
        ours.sendall(struct.pack("<I", len(data)) + data)
        assert process.wait(60) != 0
    assert not canary.exists()


# Who may come in

SPELLINGS = [
    "{}",
    "/{}",
    "{}/",
    "{}?a=b",
    "{}//",
    "/.{}",
    "/%2e{}",
    "/x/..{}",
    "/x/%2e%2e{}",
    "{}%00",
    "{}%2f",
    "{};a=b",
    "{}\\",
    "{}.json",
]
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND"]


def open_routes(keyed: ThreadServer) -> list[str]:
    with keyed.client(headers=bearer("anna")) as client:
        return sorted(client.get("/openapi.json").json()["paths"])


def test_vllm_docs_every_route_is_closed_without_a_key(keyed: ThreadServer) -> None:
    """The routes of the OpenAPI document, those that other servers have, and none at all; in every spelling, with every method."""
    others = [
        "/",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/score",
        "/pause",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/debug",
        "/a/b",
    ]
    routes = [*open_routes(keyed), *others]
    assert "/v1/chat/completions" in routes and "/metrics" in routes
    for route in routes:
        path = re.sub(r"\{\w+(:path)?\}", "x", route)
        for spelling in SPELLINGS:
            for method in METHODS:
                if path in ("/health", "/ready") and spelling in ("{}", "{}?a=b") and method in ("GET", "HEAD"):
                    continue
                said = raw(
                    keyed.port, f"{method} {spelling.format(path)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
                )
                status = int(said.split(b" ", 2)[1])
                if path == "/" and method in ("GET", "HEAD") and status == 200:
                    assert b"content-security-policy: default-s" in said.lower(), "the page alone, which holds nothing of anyone's"
                    continue
                assert status == 401 or (status == 400 and b"Invalid HTTP request" in said), (method, spelling, path, said[:200])


@pytest.mark.parametrize(
    "path",
    [
        *(b"/%68ealth", b"/HEALTH", b"/health/", b"//health", b"/health/..", b"/./health", b"/health%00", b"/health%2f", b"/health;x"),
        *(b"/%72eady", b"/READY", b"/ready/", b"//ready", b"/ready/..", b"/ready%00", b"/v1/ready"),
    ],
)
def test_health_and_readiness_have_one_spelling(keyed: ThreadServer, path: bytes) -> None:
    assert b" 401 " in raw(keyed.port, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").splitlines()[0]


def test_health_and_readiness_are_open_and_tell_nothing_else(keyed: ThreadServer) -> None:
    with keyed.client() as client:
        for path, status in (("/health", "ok"), ("/ready", "ready")):
            assert client.get(path).json() == {"status": status}
            assert client.head(path).status_code == 200
            assert client.post(path).status_code == 401


def test_an_upgrade_to_a_websocket_is_no_way_in(keyed: ThreadServer) -> None:
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for path in ("/v1/models", "/health", "/ws"):
        said = raw(keyed.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode(), timeout=0.5)
        assert said.split(b" ", 2)[1] == (b"200" if path == "/health" else b"401")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer wrong",
        "Basic " + KEYS["anna"],
        KEYS["anna"],
        "Bearer " + KEYS["anna"][:-1],
        "Bearer " + KEYS["anna"] + "x",
        "Bearer " + KEYS["anna"].upper(),
        f"Bearer {KEYS['anna']},{KEYS['bert']}",
        f"Bearer {KEYS['anna']} {KEYS['bert']}",
        "Bearer " + "a" * 20_000,
        "Bearer é",
    ],
)
def test_keys_that_are_none(keyed: ThreadServer, given: str) -> None:
    answer = httpx.get(keyed.url + "/v1/models", headers={"Authorization": given.encode("latin-1")})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_keys_that_are_some(keyed: ThreadServer) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert httpx.get(keyed.url + "/v1/models", headers={"Authorization": f"{scheme} {KEYS['bert']}"}).status_code == 200


def test_cve_2025_59425_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests, each with compare_digest, and all of them whichever fits; and by the clock, a near miss takes as long as a far one."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return original(left, right)

    original = hmac.compare_digest
    known = keys()
    with monkeypatch.context() as patch:
        patch.setattr(keys_module.hmac, "compare_digest", compare)
        for given in (KEYS["anna"], KEYS["bert"], "wrong"):
            compared.clear()
            find_key(known, given)
            assert len(compared) == len(known) and all(len(left) == len(right) == 32 for left, right in compared)
            assert not any(given.encode() in pair for pair in compared)
    near, far = KEYS["anna"][:-1] + "x", "x" * len(KEYS["anna"])
    times: dict[str, list[float]] = {near: [], far: []}
    for _ in range(2000):
        for given, taken in times.items():
            began = time.perf_counter()
            find_key(known, given)
            taken.append(time.perf_counter() - began)
    assert statistics.median(times[near]) == pytest.approx(statistics.median(times[far]), rel=0.5)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.1", "", "[::ffff:192.0.2.1]", "a b"]
)
def test_cve_2024_28224_a_name_that_was_bound_again_is_refused(server: ThreadServer, host: str) -> None:
    said = raw(server.port, f"GET /v1/models HTTP/1.1\r\nHost: {host}:{server.port}\r\nConnection: close\r\n\r\n".encode())
    assert said.split(b" ", 2)[1] in (b"403", b"400")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "127.0.0.1:1"])
def test_hosts_that_are_this_machine(server: ThreadServer, host: str) -> None:
    assert b" 200 " in raw(server.port, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()).splitlines()[0]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://localhost.evil.example", "file://", "evil", ""]
)
def test_cve_2025_66416_pages_of_other_sites_are_refused(server: ThreadServer, origin: str) -> None:
    """Also without a preflight, as a form sends it; and nothing ever allows another site to read."""
    for method, path in (("POST", "/v1/completions"), ("OPTIONS", "/v1/completions"), ("GET", "/health")):
        answer = httpx.request(method, server.url + path, headers={"Origin": origin, "Content-Type": "text/plain"}, content=json.dumps(ASK))
        assert answer.status_code == 403 and not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_of_this_server_are_not(server: ThreadServer) -> None:
    assert httpx.post(server.url + "/v1/completions", json=ASK, headers={"Origin": server.url}).status_code == 200


def test_a_page_that_is_allowed_by_name() -> None:
    page = "https://app.example"
    with thread_server(keys=keys(), allowed_origins=(page,)) as server, server.client() as client:
        asks = {"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
        told = client.options("/v1/completions", headers=asks)
        assert told.status_code == 204 and told.headers["access-control-allow-origin"] == page
        assert "authorization" in told.headers["access-control-allow-headers"].lower()
        answer = client.post("/v1/completions", json=ASK, headers={"Origin": page, **bearer("anna")})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page and "Origin" in answer.headers["vary"]
        assert client.post("/v1/completions", json=ASK, headers={"Origin": page}).status_code == 401
        assert client.options("/v1/completions", headers=asks | {"Origin": "https://other.example"}).status_code == 403


def test_a_body_that_is_not_json_by_its_type_is_not_read(server: ThreadServer) -> None:
    """What a form of another site can send without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = httpx.post(server.url + "/v1/completions", content=json.dumps(ASK), headers={"Content-Type": kind})
        assert answer.status_code == 400, kind


# What is shared


def cached(server: ThreadServer, name: str, text: str, **fields: Any) -> int:
    body = {**ASK, "prompt": text, **fields}
    answer = httpx.post(server.url + "/v1/completions", json=body, headers=bearer(name), timeout=60)
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_cve_2025_46570_two_keys_share_no_cached_prefix(keyed: ThreadServer) -> None:
    text = "A secret that is long enough for several blocks of the cache. " * 8
    assert cached(keyed, "anna", text) == 0
    assert cached(keyed, "anna", text) > 100
    assert cached(keyed, "bert", text) == 0
    assert cached(keyed, "anna", text, cache_salt="mine") == 0
    assert cached(keyed, "anna", text, cache_salt="mine") > 100
    assert cached(keyed, "bert", text, cache_salt="mine") == 0
