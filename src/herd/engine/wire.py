"""Requests and events of the engine as JSON, for a process beside this one and for receipts. Never code: unknown fields are refused.

A frame is four bytes of length, little endian, and that much UTF-8 JSON. Floats are written so that they read back as the same float64.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from herd.base.errors import FormatError, HerdError, from_dict
from herd.engine.grammar.spec import Grammar
from herd.engine.params import TokenParams
from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import Admitted, Embedded, Failed, PromptLogprobs, TokenEvent, TokenRequest, Tokens

MAX_FRAME = 2**28
"""Bytes of a frame at most; a prompt of 128K ids takes about one MB."""
LENGTH = struct.Struct("<I")


def frame(value: Any) -> bytes:
    """A value as a frame. Raises FormatError if it is over the limit."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=True).encode()
    if len(data) > MAX_FRAME:
        raise FormatError(f"a message of {len(data):,} bytes is over the limit of {MAX_FRAME:,}", hint="send a shorter prompt")
    return LENGTH.pack(len(data)) + data


def frame_size(head: bytes) -> int:
    """The length that a frame's first four bytes tell. Raises FormatError over the limit: the peer is not one of ours."""
    (size,) = LENGTH.unpack(head)
    if size > MAX_FRAME:
        raise FormatError(
            f"a message says that it has {size:,} bytes, the limit is {MAX_FRAME:,}", hint="the two sides are of two versions"
        )
    return size


def params_to_dict(params: TokenParams) -> dict[str, Any]:
    """Parameters as JSON; sets as sorted lists."""
    data = {field.name: getattr(params, field.name) for field in fields(params)}
    return data | {"stop_ids": sorted(params.stop_ids), "logit_bias": [list(pair) for pair in params.logit_bias]}


def params_from_dict(data: Mapping[str, Any]) -> TokenParams:
    """Raises FormatError for a field that is unknown, UsageError for a value out of range."""
    allowed = data.get("allowed_ids")
    values: dict[str, Any] = _known(TokenParams, data) | {
        "stop_ids": frozenset(data["stop_ids"]),
        "logit_bias": tuple((int(token_id), float(bias)) for token_id, bias in data["logit_bias"]),
        "allowed_ids": None if allowed is None else tuple(allowed),
        "banned_ids": tuple(data["banned_ids"]),
    }
    return TokenParams(**values)


def grammar_to_dict(grammar: Grammar) -> dict[str, Any]:
    """A grammar as JSON."""
    return {field.name: getattr(grammar, field.name) for field in fields(grammar)}


def grammar_from_dict(data: Mapping[str, Any]) -> Grammar:
    """Raises FormatError for what is no grammar."""
    values: dict[str, Any] = _known(Grammar, data) | {"builtin": tuple(data["builtin"])}
    return Grammar(**values)


def request_to_dict(request: TokenRequest) -> dict[str, Any]:
    """A request as JSON."""
    data = {field.name: getattr(request, field.name) for field in fields(request)}
    return data | {
        "params": params_to_dict(request.params),
        "salt": request.salt.hex(),
        "grammar": None if request.grammar is None else grammar_to_dict(request.grammar),
    }


def request_from_dict(data: Mapping[str, Any]) -> TokenRequest:
    """Raises FormatError for a field that is unknown, UsageError for a value out of range."""
    grammar = data.get("grammar")
    values: dict[str, Any] = _known(TokenRequest, data) | {
        "prompt": tuple(data["prompt"]),
        "params": params_from_dict(data["params"]),
        "salt": bytes.fromhex(data["salt"]),
        "grammar": None if grammar is None else grammar_from_dict(grammar),
    }
    return TokenRequest(**values)


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    unknown = [name for name in data if name not in names]
    if unknown:
        raise FormatError(f"{kind.__name__} has no field {unknown[0]!r}", hint="the two sides are of two versions")
    return dict(data)


def event_to_list(event: TokenEvent) -> list[Any]:
    """An event as JSON: a letter and its fields."""
    if isinstance(event, Tokens):
        return ["t", event.index, list(event.ids), event.finish, _logprobs(event.logprobs)]
    if isinstance(event, PromptLogprobs):
        return ["p", event.first, _logprobs(event.logprobs)]
    if isinstance(event, Embedded):
        return ["e", event.vector]
    if isinstance(event, Admitted):
        return ["a", event.num_cached]
    error = event.error
    told = error if isinstance(error, HerdError) else HerdError(f"{type(error).__name__}: {error}", hint="this is a bug: please report it")
    return ["f", told.to_dict()]


def event_from_list(data: Sequence[Any]) -> TokenEvent:
    """The event of `event_to_list`."""
    kind = data[0]
    if kind == "t":
        return Tokens(index=data[1], ids=tuple(data[2]), finish=data[3], logprobs=_logprobs_from(data[4]))
    if kind == "p":
        return PromptLogprobs(first=data[1], logprobs=_logprobs_from(data[2]))
    if kind == "e":
        return Embedded(vector=tuple(data[1]))
    if kind == "a":
        return Admitted(num_cached=data[1])
    return Failed(error=from_dict(cast("Mapping[str, Any]", data[1])))


def _logprobs(found: Sequence[TokenLogprobs]) -> list[Any]:
    return [[one.token_id, one.logprob, one.top] for one in found]


def _logprobs_from(data: Sequence[Any]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(token_id=token_id, logprob=logprob, top=tuple((other, value) for other, value in top))
        for token_id, logprob, top in data
    )
