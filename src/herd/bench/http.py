"""Measuring a server of OpenAI's API under load, over HTTP: requests by a Poisson process, or a fixed number at once.

Answers stream; a token's time is when its chunk came, and a chunk of several tokens counts as that many: the server's own
`usage` counts. Any server with /v1/chat/completions can be measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from herd.base.errors import HerdError
from herd.base.progress import track_steps
from herd.bench.report import Load, Spread
from herd.bench.workload import Item, Mix, prompt_text
from herd.inference.remote_errors import RemoteError
from herd.inference.remote_reader import Lines

MAX_ERRORS = 5
"""Different error messages that are told."""


class ServerUnreachableError(HerdError):
    """The server that is to be measured does not answer."""

    code = "unreachable"


@dataclass(slots=True)
class _Record:
    """One request as it went."""

    sent: float
    first: float = 0.0
    last: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A server: its address (http://HOST:PORT/v1), key and model, and seconds that a request may take."""

    url: str
    model: str
    key: str | None = None
    timeout_s: float = 600.0
    ignore_eos: bool = True

    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}


def first_model(url: str, key: str | None) -> str:
    """The model that a server lists first. Raises ServerUnreachableError."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(url.rstrip("/") + "/models", headers=headers, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ServerUnreachableError(
            f"{url} does not list its models: {type(error).__name__}: {error}",
            hint="start one with `herd serve`, or give --url and --api-key",
        ) from error


def measure_server(target: Target, items: Sequence[Item], *, mix: Mix, concurrency: int | None) -> Load:
    """Send requests when their time has come, at most `concurrency` at once, and wait for all."""
    return asyncio.run(_measure(target, items, mix, concurrency))


async def _measure(target: Target, items: Sequence[Item], mix: Mix, concurrency: int | None) -> Load:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    gate = asyncio.Semaphore(concurrency or len(items))
    with track_steps("requests", total=len(items)) as advance:
        async with httpx.AsyncClient(
            base_url=target.url.rstrip("/"), headers=target.headers(), timeout=target.timeout_s, limits=limits
        ) as client:
            started = time.perf_counter()
            num_done = 0

            async def one(item: Item) -> _Record:
                nonlocal num_done
                await asyncio.sleep(max(0.0, started + item.at_s - time.perf_counter()))
                async with gate:
                    record = await _ask(client, target, item, mix)
                num_done += 1
                advance(num_done, "")
                return record

            records = await asyncio.gather(*map(one, items))
            seconds = time.perf_counter() - started
    return _load(records, seconds)


async def _ask(client: httpx.AsyncClient, target: Target, item: Item, mix: Mix) -> _Record:
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt_text(item, mix=mix)}],
        "max_tokens": item.num_answer,
        "temperature": 1.0,
        "seed": item.seed % 2**31,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.ignore_eos:
        body["ignore_eos"] = True
    record = _Record(sent=time.perf_counter())
    try:
        async with client.stream("POST", "/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                record.error = f"{answer.status_code}: {_message(answer.text)}"
                return record
            done, lines = False, Lines(target.url)
            async for data in answer.aiter_bytes():
                for line in lines.push(data):
                    done = done or _take(record, line.rstrip(b"\r"))
            if not done and record.error is None:
                record.error = "the stream broke off"
    except (httpx.HTTPError, RemoteError) as error:
        record.error = f"{type(error).__name__}: {error}"
    return record


def _take(record: _Record, line: bytes) -> bool:
    """Book a line of the stream; says whether it was the last."""
    if not line.startswith(b"data: "):
        return False
    if line == b"data: [DONE]":
        return True
    chunk = json.loads(line[6:])
    if "error" in chunk:
        record.error = str(chunk["error"].get("message"))[:200]
    if chunk.get("usage"):
        record.usage = chunk["usage"]
    if any(
        choice["delta"].get("content") or choice["delta"].get("tool_calls") or choice.get("finish_reason")
        for choice in chunk.get("choices", ())
    ):
        record.last = time.perf_counter()
        record.first = record.first or record.last
    return False


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return text[:200]


def _load(records: Sequence[_Record], seconds: float) -> Load:
    good = [record for record in records if record.error is None and record.first]
    errors = dict.fromkeys(record.error for record in records if record.error is not None)
    between = [
        (record.last - record.first) / (record.usage["completion_tokens"] - 1)
        for record in good
        if record.usage.get("completion_tokens", 0) > 1
    ]
    return Load(
        num_requests=len(records),
        num_failed=len(records) - len(good),
        seconds=seconds,
        prompt_tokens=sum(record.usage.get("prompt_tokens", 0) for record in good),
        cached_tokens=sum((record.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for record in good),
        answer_tokens=sum(record.usage.get("completion_tokens", 0) for record in good),
        first_token=Spread.of([record.first - record.sent for record in good]) if good else None,
        between_tokens=Spread.of(between) if between else None,
        whole=Spread.of([record.last - record.sent for record in good]) if good else None,
        errors=tuple(list(errors)[:MAX_ERRORS]),
    )
