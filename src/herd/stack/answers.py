"""Parts of answers in OpenAI's JSON: what both kinds of completion share."""

from __future__ import annotations

import asyncio
import codecs
import json
import math
import secrets
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from herd.inference.port import Finished, TokenLogprob, Usage
from herd.stack.errors import RequestError

_Result = TypeVar("_Result")
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"})


def dumps(value: Any) -> bytes:
    """Compact JSON in one line, also for readers to whom more than a newline ends a line, as it does to httpx and to `str.splitlines`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (text if text.isascii() else text.translate(_LINE_ENDS)).encode("utf-8", "replace")


def json_response(value: Any) -> Response:
    """A value as a response."""
    return Response(dumps(value), media_type="application/json")


def new_id(prefix: str) -> str:
    """An id that no one can guess."""
    return prefix + secrets.token_hex(12)


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def token_text(data: bytes) -> str:
    """A token as text; bytes that are no text by themselves are spelled out, as OpenAI does."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprob(found: TokenLogprob) -> dict[str, Any]:
    """A token of a chat answer."""
    return {
        "token": token_text(found.data),
        "logprob": finite(found.logprob),
        "bytes": list(found.data),
        "top_logprobs": [{"token": token_text(data), "logprob": finite(value), "bytes": list(data)} for _, data, value in found.top],
    }


@dataclass(frozen=True, slots=True)
class CompletionToken:
    """A token of a completion or of its prompt; special ones are no part of the text."""

    data: bytes
    special: bool
    found: TokenLogprob | None


class TextOffsets:
    """Where in a text each token begins, the text coming token by token. Half a character has the place of the whole one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._place = 0

    def next(self, token: CompletionToken) -> int:
        """The place of the next token."""
        place = self._place
        if not token.special:
            self._place += len(self._decoder.decode(token.data))
        return place


def completion_logprobs(tokens: Sequence[CompletionToken], offsets: TextOffsets) -> dict[str, Any]:
    """Tokens in the older shape."""
    return {
        "tokens": [token_text(token.data) for token in tokens],
        "token_logprobs": [None if token.found is None else finite(token.found.logprob) for token in tokens],
        "top_logprobs": [None if token.found is None else _top(token.found) for token in tokens],
        "text_offset": [offsets.next(token) for token in tokens],
    }


def _top(found: TokenLogprob) -> dict[str, float]:
    return {token_text(data): finite(value) for _, data, value in found.top} | {token_text(found.data): finite(found.logprob)}


def usage(usages: Iterable[Iterable[Usage]]) -> dict[str, Any]:
    """The usage of several prompts, each with several answers: a prompt is counted once."""
    groups = [list(group) for group in usages]
    prompt = sum(group[0].prompt_tokens for group in groups if group)
    answer = sum(one.completion_tokens for group in groups for one in group)
    cached = sum(group[0].cached_tokens for group in groups if group)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def reason_fields(finished: Finished) -> dict[str, Any]:
    """Why an answer ended."""
    return {"finish_reason": finished.reason, "stop_reason": finished.stop_reason}


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do the work, and drop it when the client leaves. Raises RequestError then, which no one reads."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestError("slow", "the client left")
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
