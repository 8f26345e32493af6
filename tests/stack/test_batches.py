"""Files and batches through OpenAI's client, and what becomes of a batch whose server dies."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from client_server import LiveServer, needs_cria  # pyright: ignore[reportMissingImports]
from openai import OpenAI

from herd.base.errors import ConfigError
from herd.stack.storage import Storage

KEYS = {"ann": "ann-key-0123456789", "bob": "bob-key-0123456789", "cem": "cem-key-0123456789"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys; cem may ask twice a minute."""
    needs_cria()
    home = tmp_path_factory.mktemp("keyed")
    (home / "keys").write_text("".join(f"{name} {key}{' rpm=2' if name == 'cem' else ''}\n" for name, key in KEYS.items()))
    server = LiveServer("--api-key-file", str(home / "keys"), home=home)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def clients(keyed_server: LiveServer) -> Iterator[dict[str, OpenAI]]:
    made = {name: OpenAI(base_url=keyed_server.url + "/v1", api_key=key, max_retries=0) for name, key in KEYS.items()}
    yield made
    for client in made.values():
        client.close()


def chat_line(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": "cria", "messages": [{"role": "user", "content": f"Tell me of {number} llamas."}], "max_tokens": 8, "seed": number}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": {**body, **fields}}


def lines_of(*lines: Any) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


def upload(client: OpenAI, *lines: Any) -> str:
    return client.files.create(file=("../../etc/in put.jsonl", lines_of(*lines)), purpose="batch").id


def create(client: OpenAI, *lines: Any, endpoint: Any = CHAT, **fields: Any) -> str:
    return client.batches.create(input_file_id=upload(client, *lines), endpoint=endpoint, completion_window="24h", **fields).id


def until(check: Callable[[], Any], *, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    return found


def ended(client: OpenAI, batch_id: str) -> Any:
    def check() -> Any:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    return until(check)


def answers(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    rows = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


# Files


def test_a_file_is_kept_told_listed_given_back_and_deleted(clients: dict[str, OpenAI]) -> None:
    client, data = clients["ann"], lines_of(chat_line(1))
    made = client.files.create(file=("../../etc/passwd", data), purpose="batch")
    assert (made.bytes, made.purpose, made.filename, made.status) == (len(data), "batch", "../../etc/passwd", "processed")
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == data
    assert made.id in [file.id for file in client.files.list(purpose="batch")]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_lists_go_page_by_page(clients: dict[str, OpenAI]) -> None:
    client = clients["bob"]
    ids = [upload(client, chat_line(number)) for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=3, order="asc")] == ids
    page = client.files.list(limit=2)
    assert page.has_more and len(page.data) == 2


def test_another_keys_file_does_not_exist(clients: dict[str, OpenAI]) -> None:
    mine = upload(clients["ann"], chat_line(1))
    other = clients["bob"]
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(mine)
        assert caught.value.message == str(caught.value) and mine in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        other.batches.create(input_file_id=mine, endpoint=CHAT, completion_window="24h")
    assert mine not in [file.id for file in other.files.list()]
    assert clients["ann"].files.retrieve(mine).id == mine


@pytest.mark.parametrize(
    "file_id", ["..", "../server.db", "%2e%2e%2fserver.db", "..%2F..%2Fkeys", "file-x\x00", "server.db", "file-" + "0" * 24]
)
def test_an_id_that_is_a_path_leads_nowhere(keyed_server: LiveServer, file_id: str) -> None:
    headers = {"Authorization": f"Bearer {KEYS['ann']}"}
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
        url = httpx.URL(keyed_server.url).copy_with(raw_path=path.replace("\x00", "%00").encode())
        told = httpx.get(url, headers=headers)
        assert told.status_code in (200, 404) and (told.status_code == 404 or path.startswith("/v1/files/..")), told.text


def form(server: LiveServer, key: str = KEYS["ann"], **request: Any) -> httpx.Response:
    return httpx.post(server.url + "/v1/files", headers={"Authorization": f"Bearer {key}", **request.pop("headers", {})}, **request)


def test_what_is_no_upload_is_refused_by_name(keyed_server: LiveServer) -> None:
    file = ("a.jsonl", b"{}\n")
    assert form(keyed_server, files={"file": file}).json()["error"]["param"] == "purpose"
    assert form(keyed_server, files={"file": file}, data={"purpose": "colouring"}).json()["error"]["param"] == "purpose"
    assert form(keyed_server, files={"other": file}, data={"purpose": "batch"}).json()["error"]["param"] == "file"
    assert form(keyed_server, files=[("file", file), ("file", file)], data={"purpose": "batch"}).status_code == 400
    assert form(keyed_server, files={"file": file}, data={"purpose": "batch", "colour": "red"}).json()["error"]["param"] == "colour"
    assert form(keyed_server, data={"purpose": "batch"}).status_code == 400
    assert form(keyed_server, files={"file": file}, data={"purpose": "x" * 5000}).status_code == 400
    damaged = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x",
        b"--x\r\nno header\r\n\r\n",
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nabc",
        b"garbage" * 99,
    ):
        assert form(keyed_server, content=body, headers=damaged).status_code == 400, body
    assert form(keyed_server, content=b"{}", headers={"content-type": "application/json"}).status_code == 400


# Batches


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions", "/v1/embeddings"])
def test_a_batch_gives_the_answers_that_its_routes_give(clients: dict[str, OpenAI], endpoint: str) -> None:
    client = clients["ann"]
    bodies: dict[str, Any] = {
        CHAT: chat_line(3)["body"],
        "/v1/completions": {"model": "cria", "prompt": "Once", "max_tokens": 6, "seed": 1},
        "/v1/embeddings": {"model": "cria", "input": ["a", "b"]},
    }
    body = bodies[endpoint]
    lines = [{"custom_id": f"line-{number}", "method": "POST", "url": endpoint, "body": body} for number in range(3)]
    batch = ended(client, create(client, *lines, endpoint=endpoint, metadata={"for": "test"}))
    assert batch.status == "completed" and batch.error_file_id is None and batch.metadata == {"for": "test"}
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 3, 0)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    found = answers(client, batch.output_file_id)
    assert set(found) == {"line-0", "line-1", "line-2"}
    direct = client.post(endpoint.removeprefix("/v1"), body=body, cast_to=object)
    for row in found.values():
        assert row["error"] is None and row["response"]["status_code"] == 200 and row["id"].startswith("batch_req_")
        told = row["response"]["body"]
        for kept in ("choices", "data", "usage"):
            if kept in direct:  # type: ignore[operator]
                assert told[kept] == direct[kept] or kept == "usage"  # type: ignore[index]
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_lines_that_fail_are_told_in_the_error_file(clients: dict[str, OpenAI]) -> None:
    client = clients["ann"]
    lines = [chat_line(1), chat_line(2, temperature=-1), chat_line(3, model="gpt-4o"), chat_line(4, stream=True), chat_line(5, tempratur=1)]
    batch = ended(client, create(client, *lines))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 4)
    assert set(answers(client, batch.output_file_id)) == {"line-1"}
    failed = answers(client, batch.error_file_id)
    codes = {name: row["response"]["status_code"] for name, row in failed.items()}
    assert codes == {"line-2": 400, "line-3": 404, "line-4": 400, "line-5": 400}
    assert failed["line-2"]["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{not json\n", "invalid_json"),
        (b"[]\n", "invalid_json"),
        (b"[" * 100_000 + b"\n", "invalid_json"),
        (chat_line(0), "duplicate_custom_id"),
        ({**chat_line(1), "custom_id": ""}, "invalid_custom_id"),
        ({**chat_line(1), "method": "GET"}, "invalid_method"),
        ({**chat_line(1), "url": "/v1/embeddings"}, "mismatched_endpoint"),
        ({**chat_line(1), "body": "x"}, "invalid_body"),
    ],
)
def test_a_file_that_is_no_batch_fails_with_the_line(clients: dict[str, OpenAI], line: Any, code: str) -> None:
    batch = ended(clients["ann"], create(clients["ann"], chat_line(0), b"\n", line))
    assert batch.status == "failed" and batch.output_file_id is None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 3)]


def test_an_empty_file_fails(clients: dict[str, OpenAI]) -> None:
    assert ended(clients["ann"], create(clients["ann"], b"\n")).errors.data[0].code == "empty_file"


def test_batches_are_listed_to_their_owner_alone(clients: dict[str, OpenAI]) -> None:
    mine = create(clients["ann"], chat_line(1))
    assert mine in [batch.id for batch in clients["ann"].batches.list(limit=1)]
    assert mine not in [batch.id for batch in clients["bob"].batches.list()]
    for ask in (clients["bob"].batches.retrieve, clients["bob"].batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(mine)
    assert ended(clients["ann"], mine).status == "completed"
    with pytest.raises(openai.ConflictError):
        clients["ann"].batches.cancel(mine)


def test_a_cancelled_batch_keeps_what_it_has_and_its_file_is_in_use_until_then(clients: dict[str, OpenAI]) -> None:
    client = clients["ann"]
    batch_id = create(client, *(chat_line(number, max_tokens=300, ignore_eos=True) for number in range(200)))
    until(lambda: client.batches.retrieve(batch_id).request_counts.completed > 1)
    with pytest.raises(openai.ConflictError):
        client.files.delete(client.batches.retrieve(batch_id).input_file_id)
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = ended(client, batch_id)
    assert batch.status == "cancelled" and batch.cancelled_at >= batch.cancelling_at
    assert 1 < batch.request_counts.completed == len(answers(client, batch.output_file_id)) < 200
    assert client.files.delete(batch.input_file_id).deleted


def test_a_key_at_its_limit_is_told_when_to_come_again_and_its_batches_wait(clients: dict[str, OpenAI]) -> None:
    client = clients["cem"]
    for _ in range(2):
        client.completions.create(model="cria", prompt="a", max_tokens=1)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="cria", prompt="a", max_tokens=1)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    batch_id = create(client, chat_line(1))
    until(lambda: client.batches.retrieve(batch_id).status == "in_progress")
    time.sleep(0.3)
    assert client.batches.retrieve(batch_id).request_counts.failed == 0
    assert client.batches.cancel(batch_id).status == "cancelling"
    assert ended(client, batch_id).status == "cancelled"


def test_who_has_no_key_is_not_let_in(keyed_server: LiveServer) -> None:
    with OpenAI(base_url=keyed_server.url + "/v1", api_key="wrong-key-0123456789", max_retries=0) as client:
        for ask in (client.models.list, client.files.list, client.batches.list, lambda: upload(client, chat_line(1))):
            with pytest.raises(openai.AuthenticationError):
                ask()


# The server dies


NUM_LINES = 60


def begin(client: OpenAI) -> str:
    return create(client, *(chat_line(number, max_tokens=40, ignore_eos=True) for number in range(NUM_LINES)))


def live_until(home: Path, act: Callable[[OpenAI], str], count: int) -> str:
    """Run a server until the batch has so many answers, then kill it, and tear a line as the loss of the machine would."""
    server = LiveServer(home=home)
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        batch_id = act(client)
        until(lambda: client.batches.retrieve(batch_id).request_counts.completed >= count)
        assert client.batches.retrieve(batch_id).request_counts.completed < NUM_LINES
        server.kill()
    (lines,) = (home / "server" / "batches").glob("*.output.jsonl")
    with lines.open("ab") as file:
        file.write(b'{"id": "batch_req_1", "custom_id": "line-59", "respo')
    return batch_id


def test_a_batch_outlives_kill_and_restart_with_every_line_once(tmp_path: Path) -> None:
    needs_cria()
    batch_id = live_until(tmp_path, begin, 8)
    server = LiveServer(home=tmp_path)
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(ConfigError, match="another server"):
            Storage(tmp_path / "server")
        batch = ended(client, batch_id)
        found = answers(client, batch.output_file_id)
        alone = client.chat.completions.create(**chat_line(59, max_tokens=40)["body"], extra_body={"ignore_eos": True})
    assert server.stop() == 0
    counts = batch.request_counts
    assert (batch.status, counts.completed, counts.failed, counts.total) == ("completed", NUM_LINES, 0, NUM_LINES)
    assert set(found) == {f"line-{number}" for number in range(NUM_LINES)}
    assert found["line-59"]["response"]["body"]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    assert not list((tmp_path / "server" / "batches").iterdir())
