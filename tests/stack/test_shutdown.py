"""`herd serve` as a process: how it starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live_server import (  # pyright: ignore[reportMissingImports]
    KEYS,
    CommandServer,
    command_server,
    events,
    model_folder,
    wait_for,
)

LONG = {"model": "tiny", "prompt": "The herd", "seed": 1, "ignore_eos": True}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sigterm_loses_no_accepted_request() -> None:
    with command_server("--drain", "60") as server:
        url, engine = f"http://127.0.0.1:{server.port}", server.engine_pid
        begun = threading.Semaphore(0)

        def ask(number: int) -> int:
            body = {**LONG, "max_tokens": 2000, "stream": number % 2 == 0}
            with httpx.Client(timeout=60) as client, client.stream("POST", url + "/v1/completions", json=body) as answer:
                if number % 2 == 0:
                    begun.release()
                answer.read()
                assert answer.status_code == 200
                if number % 2:
                    return answer.json()["usage"]["completion_tokens"]
                assert answer.text.endswith("data: [DONE]\n\n")
                return sum(1 for event in events(answer.text) if event["choices"])

        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, number) for number in range(12)]
            for _ in range(6):
                begun.acquire(timeout=30)
            wait_for(lambda: _running(url) == 12, what="all twelve requests")
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(url + "/ready").status_code == 503, within=5, what="draining")
            refused = httpx.post(url + "/v1/completions", json=LONG)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining" and refused.headers["Retry-After"]
            assert httpx.get(url + "/health").status_code == 200
            counts = [future.result(60) for future in asked]
        assert all(counts) and counts[1] == 2000
        assert server.process.wait(20) == 0
        assert not alive(engine)


def _running(url: str) -> float:
    line = next(line for line in httpx.get(url + "/metrics").text.splitlines() if line.startswith("herd_num_requests_running{"))
    return float(line.split()[-1])


@pytest.mark.parametrize(("drain", "twice"), [("0.5", False), ("60", True)], ids=["deadline", "second signal"])
def test_requests_that_are_cut(drain: str, twice: bool) -> None:
    """A request that does not end within the deadline is told so; a second signal does not wait even for that."""
    body = {**LONG, "max_tokens": 15_000, "n": 8, "stream": True}
    with command_server("--drain", drain) as server:
        with server.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            pieces = answer.iter_text()
            assert next(pieces)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            if twice:
                time.sleep(0.3)
                server.process.send_signal(signal.SIGTERM)
            try:
                assert "engine_down" in "".join(pieces)
            except httpx.HTTPError:
                assert twice
        assert server.process.wait(20) == 0, server.log
        assert time.monotonic() - began < (4 if twice else 7)
        assert "Traceback" not in server.log and "never retrieved" not in server.log, server.log


def test_a_server_that_is_killed_leaves_no_engine_behind() -> None:
    with command_server() as server:
        engine = server.engine_pid
        server.process.kill()
        server.process.wait(10)
        wait_for(lambda: not alive(engine), within=5, what="the engine's end")


def test_sigterm_while_the_model_is_loaded() -> None:
    server = CommandServer()
    try:
        wait_for(lambda: Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text(), within=60, what="the engine")
        engine = server.engine_pid
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0, server.log
        assert "Traceback" not in server.log
        wait_for(lambda: not alive(engine), within=5, what="the engine's end")
    finally:
        server.stop()


def ends(server: CommandServer) -> int:
    try:
        return server.process.wait(60)
    finally:
        server.stop()


@pytest.mark.parametrize("files", [(), ("tokenizer",)], ids=["no model", "no weights"])
def test_a_missing_model(tmp_path: Path, files: tuple[str, ...]) -> None:
    """What the engine's process refuses is told by the server, with its hint and its exit code."""
    folder = tmp_path / "model"
    if files:
        shutil.copytree(model_folder(), folder)
        for weights in folder.glob("*.safetensors*"):
            weights.unlink()
    server = CommandServer(model=folder)
    assert ends(server) == 3, server.log
    assert "error: " in server.log and "hint: " in server.log and "Traceback" not in server.log


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_everyone_without_a_key_is_refused(host: str) -> None:
    server = CommandServer("--host", host)
    assert ends(server) == 1
    assert "without keys" in server.log and "--api-key-file" in server.log


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = CommandServer("--port", str(taken.getsockname()[1]))
        assert ends(server) == 1
    assert "cannot listen" in server.log and "hint: " in server.log


def test_logs_hold_neither_keys_nor_content(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
    canary, wrong = "canary-content-7f3a", "wrong-key-canary-998877665544"
    with command_server("--api-key-file", file, HERD_LOG_LEVEL="debug") as server, server.client() as client:
        body = {**LONG, "prompt": canary, "max_tokens": 3}
        chat = {"messages": [{"role": "user", "content": canary}], "max_tokens": 3}
        for headers in ({"Authorization": f"Bearer {KEYS['anna']}"}, {"Authorization": f"Bearer {wrong}"}, {"Authorization": wrong}):
            client.post("/v1/completions", json=body, headers=headers)
            client.post("/v1/completions", json=body | {"stream": True}, headers=headers)
            client.post("/v1/chat/completions", json=chat, headers=headers)
            client.post("/v1/chat/completions", json=chat | {"temperature": canary}, headers=headers)
            client.post("/v1/completions", json=body | {"structured_outputs": {"regex": f"({canary}"}}, headers=headers)
            client.post(f"/{canary}?key={wrong}", content=canary, headers=headers)
            client.post("/tokenize", json={"prompt": canary}, headers=headers)
    assert server.process.returncode == 0
    assert "POST /v1/completions 200" in server.log and "key=anna" in server.log
    for secret in (canary, wrong, *KEYS.values()):
        assert secret not in server.log
