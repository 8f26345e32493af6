"""Characters that end a line for some readers and not for others: answers that hold them come whole, to every kind of reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import ThreadServer, events, open_server  # noqa: F401  # pyright: ignore[reportMissingImports]
from openai import OpenAI

from herd.stack.answers import dumps

TEXT = "one\u2028two\u0085three\u2029four\x0bfive\x1csix\r\nseven"
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "structured_outputs": {"choice": [TEXT]}}
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_whole_however_its_lines_are_told_apart(server: ThreadServer, route: str) -> None:
    body = ASKED | ({"prompt": "Go"} if route == "/v1/completions" else {"messages": HELLO}) | {"stream": True}
    with server.client() as client, client.stream("POST", route, json=body) as answer:
        lines = list(answer.iter_lines())  # ends lines at all of them
        assert answer.status_code == 200
    with server.client() as client:
        found = client.post(route, json=body).content
    assert found.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in found and all(line.startswith(b"data: ") or not line for line in found.split(b"\n")), "valid server-sent events"
    for chunks in (events(found.decode()), events("\n".join(lines))):
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices) == TEXT


def test_openais_client_gets_it_whole(server: ThreadServer) -> None:
    fields: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 200,
        "extra_body": {"structured_outputs": {"choice": [TEXT]}},
    }
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        chunks = [chunk for chunk in client.chat.completions.create(stream=True, **fields) if chunk.choices]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
        assert client.chat.completions.create(**fields).choices[0].message.content == TEXT


def test_the_helper_ends_lines_at_newlines_alone() -> None:
    text = json.dumps({"text": TEXT}, ensure_ascii=False)
    assert "\u2028" in text and events(f"data: {text}\n\ndata: [DONE]\n\n") == [{"text": TEXT}]


def test_json_of_the_server_is_one_line_by_any_count() -> None:
    written = dumps({"a": TEXT, "ünï": "\u2028"})
    assert len(written.decode().splitlines()) == 1 and json.loads(written) == {"a": TEXT, "ünï": "\u2028"}
