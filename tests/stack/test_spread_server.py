"""`herd serve` over two processes: a real server answers as one process does, and its receipt can be made again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import httpx
import pytest
from client_server import LiveServer, needs_cria  # pyright: ignore[reportMissingImports]

from herd.stack.receipts import read_receipt
from herd.stack.replay import replay_receipt


@pytest.mark.parametrize("flag", ["--pp", "--tp"])
def test_a_server_of_two_processes_answers_and_its_receipt_holds(flag: str, tiny_folder: Path) -> None:
    if flag == "--pp":
        needs_cria()
    asked = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12, "seed": 5, "logprobs": True, "receipt": True}
    with tempfile.TemporaryDirectory(prefix="herd-spread-") as home:
        # cria has one KV head, which no two processes can share.
        server = LiveServer(flag, "2", "--name", "spread", model="cria" if flag == "--pp" else str(tiny_folder), home=Path(home))
        try:
            answer = httpx.post(server.url + "/v1/chat/completions", json={"model": "spread", **asked}, timeout=60)
        finally:
            code = server.stop()
    assert answer.status_code == 200, answer.text
    assert code == 0 and answer.json()["usage"]["completion_tokens"]
    receipt = read_receipt(json.loads(answer.text))
    assert receipt.machine["tp"] == (2 if flag == "--tp" else 1)
    again = replay_receipt(receipt, "cria" if flag == "--pp" else str(tiny_folder))
    assert again.same and again.logprobs, again.difference
