"""The last chunk of a stream tells how fast the model wrote, with llama.cpp's names, also where a shield holds the text to its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from scripted_app import Script, scripted  # pyright: ignore[reportMissingImports]

from herd.inference.port import Finished, Timings, Usage
from herd.stack.chat import timings_fields
from herd.text.messages import Message


def finished(rate: float, count: int = 3) -> Finished:
    return Finished(
        reason="stop",
        text="x",
        message=Message.assistant("x"),
        token_ids=(),
        usage=Usage(prompt_tokens=4, completion_tokens=count),
        timings=Timings(prefill_s=0.5, decode_s=0.25, tokens_per_s=rate),
    )


def test_timings_are_those_of_one_answer() -> None:
    assert timings_fields([finished(8.0)]) == {
        "timings": {"prompt_ms": 500.0, "predicted_n": 3, "predicted_ms": 250.0, "predicted_per_second": 8.0}
    }
    assert timings_fields([finished(8.0), finished(9.0)]) == {}, "several answers share the time"
    assert timings_fields([finished(0.0, count=1)]) == {} == timings_fields([]), "one token has no speed"


async def chunks(folder: Path, body: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    """The events of a stream."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Rivers?"}], "stream": True, **body}
    async with scripted(Script("The river is long and it runs to the sea."), folder, **settings) as app:
        answer = await app.http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("shields", [(), ("secrets",)])
def test_a_stream_with_usage_ends_with_timings(tmp_path: Path, shields: tuple[str, ...]) -> None:
    found = asyncio.run(chunks(tmp_path, {"stream_options": {"include_usage": True}}, shields=shields))
    assert all("timings" not in chunk for chunk in found[:-1])
    timings, usage = found[-1]["timings"], found[-1]["usage"]
    assert timings["predicted_n"] == usage["completion_tokens"] > 3
    assert timings["predicted_per_second"] > 0 and timings["predicted_ms"] >= 0 and timings["prompt_ms"] >= 0


def test_a_stream_without_usage_tells_none(tmp_path: Path) -> None:
    assert all("timings" not in chunk for chunk in asyncio.run(chunks(tmp_path, {})))
