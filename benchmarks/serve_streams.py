"""Many streams at once over `herd serve`: none lost, none mixed up, nothing left of those that are left; and memory over many requests.

    python -m benchmarks.serve_streams --model cria --streams 1000 --requests 20000

Every stream has a seed of its own; its text must be what the same seed gives alone. Half of a second wave is left midway. The server's and
the engine's resident memory are read before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PROMPTS = ("The herd", "A cria is", "In the morning", "Once upon a time")


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Resident memory in MiB."""

    server: float
    engine: float


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Herd:
    """`herd serve` as a process."""

    def __init__(self, model: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "herd", "serve", model, "--port", "0", "--name", "model", "--no-access-log", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            found = re.search(r"listening on (http://\S+)/v1", line)
            if found:
                self.url = found[1]
                return
        raise SystemExit(said)

    def memory(self) -> Memory:
        """Of the server and of its engine."""
        pid = self.process.pid
        child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return Memory(server=rss_mib(pid), engine=rss_mib(child))

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def body(number: int, max_tokens: int, *, stream: bool) -> dict[str, Any]:
    """A request by its number, which is its seed."""
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": number,
        "temperature": 1.0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": stream,
        "return_token_ids": True,
    }


def _text_of(events: Sequence[str]) -> str:
    return "".join(choice["text"] for event in events if event != "[DONE]" for choice in json.loads(event).get("choices", ()))


async def _stream(client: httpx.AsyncClient, number: int, max_tokens: int, leave_after: int | None) -> str | None:
    """The whole text of a stream; None where it was left."""
    events: list[str] = []
    async with client.stream("POST", "/v1/completions", json=body(number, max_tokens, stream=True)) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                events.append(line[6:])
                if leave_after is not None and len(events) >= leave_after:
                    return None
    if not events or events[-1] != "[DONE]":
        raise SystemExit(f"stream {number} ended early: {events[-1:]}")
    return _text_of(events)


async def _wave(client: httpx.AsyncClient, count: int, max_tokens: int, *, leave: bool) -> tuple[list[str | None], float]:
    rng = random.Random(7)
    began = time.monotonic()
    cuts = [rng.randint(1, 4) if leave and number % 2 else None for number in range(count)]
    texts = await asyncio.gather(*(_stream(client, number, max_tokens, cut) for number, cut in enumerate(cuts)))
    return list(texts), time.monotonic() - began


async def _alone(client: httpx.AsyncClient, number: int, max_tokens: int) -> str:
    answer = await client.post("/v1/completions", json=body(number, max_tokens, stream=False))
    answer.raise_for_status()
    return answer.json()["choices"][0]["text"]


async def _is_idle(client: httpx.AsyncClient, within: float = 10.0) -> float:
    """Seconds until no sequence and no block is in use."""
    began = time.monotonic()
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    while time.monotonic() - began < within:
        text = (await client.get("/metrics")).text
        values = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(tuple(f"herd_{name}{{" for name in names))]
        if len(values) == 3 and not any(values):
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    raise SystemExit(f"blocks or sequences are still in use after {within:g} s: {values}")


async def _many(client: httpx.AsyncClient, count: int, at_once: int) -> float:
    """Short requests, whole and streamed, in turn; the seconds they took."""
    began = time.monotonic()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            if number % 2:
                await _stream(client, number, 2, None)
            else:
                await _alone(client, number, 2)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.monotonic() - began


async def measure(herd: Herd, *, streams: int, max_tokens: int, checks: int, requests: int) -> dict[str, Any]:
    """Run everything; raises SystemExit for a stream that is lost or mixed up and for what is left over."""
    limits = httpx.Limits(max_connections=streams + 10, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=herd.url, timeout=600, limits=limits) as client:
        numbers = random.Random(3).sample(range(streams), min(checks, streams))
        alone = {number: await _alone(client, number, max_tokens) for number in numbers}
        await _many(client, max(20, requests // 20), 16)
        start = herd.memory()
        texts, whole_s = await _wave(client, streams, max_tokens, leave=False)
        wrong = [number for number, text in alone.items() if texts[number] != text]
        if wrong or None in texts:
            raise SystemExit(f"streams {wrong[:5]} differ from what their seeds give alone")
        left, left_s = await _wave(client, streams, max_tokens, leave=True)
        mixed = [number for number, text in enumerate(left) if text is not None and text != texts[number]]
        if mixed:
            raise SystemExit(f"streams {mixed[:5]} changed as others were left")
        idle_s = await _is_idle(client)
        peak = herd.memory()
        requests_s = await _many(client, requests, 16) if requests else 0.0
        await _is_idle(client)
        end = herd.memory()
    return {
        "streams": streams,
        "tokens_per_stream": max_tokens,
        "checked_alone": len(alone),
        "seconds": round(whole_s, 2),
        "tokens_per_s": round(streams * max_tokens / whole_s),
        "half_left_seconds": round(left_s, 2),
        "left": sum(text is None for text in left),
        "idle_after_s": round(idle_s, 2),
        "requests": requests,
        "requests_per_s": round(requests / requests_s) if requests_s else None,
        "server_mib": [round(one.server, 1) for one in (start, peak, end)],
        "engine_mib": [round(one.engine, 1) for one in (start, peak, end)],
        "server_growth": round(end.server / peak.server - 1, 4),
        "engine_growth": round(end.engine / peak.engine - 1, 4),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="cria")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--checks", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--max-sequences", type=int, default=128)
    chosen = parser.parse_args()
    arguments = ["--max-sequences", str(chosen.max_sequences), "--context", "256", "--ttft-target", "3600", "--threads", "1"]
    herd = Herd(chosen.model, *arguments)
    try:
        found = asyncio.run(
            measure(herd, streams=chosen.streams, max_tokens=chosen.max_tokens, checks=chosen.checks, requests=chosen.requests)
        )
    finally:
        code = herd.stop()
    print(json.dumps(found | {"exit_code": code}, indent=1))


if __name__ == "__main__":
    main()
