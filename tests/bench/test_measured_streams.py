"""What `herd bench serve` reads from a server: events whose texts hold what ends a line for some readers, cut anywhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest

from herd.bench import http
from herd.bench.workload import make_items


class _Cut(httpx.AsyncByteStream):
    """A body in pieces of a few bytes."""

    def __init__(self, body: bytes, size: int) -> None:
        self.body, self.size = body, size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), self.size):
            yield self.body[start : start + self.size]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_texts_with_line_separators_are_read(monkeypatch: pytest.MonkeyPatch, end: str, size: int) -> None:
    chunks = [
        {"choices": [{"delta": {"content": "one\u2028two\u0085three"}}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}},
    ]
    texts = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    body = "".join(f"data: {text}{end}{end}" for text in [*texts, "[DONE]"]).encode()

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=_Cut(body, size)))
    monkeypatch.setattr(http.httpx, "AsyncClient", partial(httpx.AsyncClient, transport=transport))
    target = http.Target(url="http://peer/v1", model="m")
    load = http.measure_server(target, make_items(2, num_prompt=3, num_answer=5), mix="fixed", concurrency=1)
    assert not load.errors and load.num_failed == 0
    assert load.prompt_tokens == 6 and load.answer_tokens == 10 and load.first_token is not None
