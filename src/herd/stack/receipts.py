"""Receipts: all that an answer depends on, so that it can be made again, bit for bit, and shown to be what this model says.

A request's tokens are a function of weights, kernels, prompt, parameters and seed; a receipt names each, and the tokens that came. It holds
the prompt and the answer in token ids: who may not see those may not have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from herd.base.errors import FormatError
from herd.engine.stream import TokenRequest
from herd.engine.wire import request_from_dict, request_to_dict
from herd.inference.port import Finished
from herd.version import __version__

VERSION = 1
_MACHINE = ("dtype", "device", "kernels")


def make_receipt(model: str, info: Mapping[str, Any], request: TokenRequest, answers: Iterable[tuple[int, Finished]]) -> dict[str, Any]:
    """The receipt of a request's answers, by continuation."""
    told = {
        str(index): {
            "token_ids": list(answer.token_ids),
            "finish_reason": answer.reason,
            "logprobs": [found.logprob for found in answer.logprobs] or None,
        }
        for index, answer in answers
    }
    return {
        "receipt": VERSION,
        "herd": __version__,
        "model": model,
        "weights_sha256": info["weights_digest"],
        **{name: info[name] for name in _MACHINE},
        "tp": info.get("tp", 1),
        # Neither changes a token; both are the server's own business.
        "request": request_to_dict(replace(request, tenant="", salt=b"", priority=0)),
        "answers": told,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """A receipt that was read."""

    model: str
    weights_sha256: str
    machine: Mapping[str, Any]
    herd: str
    request: TokenRequest
    answers: Mapping[int, tuple[tuple[int, ...], tuple[float, ...] | None]]


def read_receipt(data: Any) -> Receipt:
    """Read a receipt, or an answer of the server that holds one. Raises FormatError."""
    if isinstance(data, dict) and isinstance(data.get("receipt"), dict):
        data = data["receipt"]
    if not isinstance(data, dict) or data.get("receipt") != VERSION:
        raise FormatError("this is no receipt", hint='ask for one with "receipt": true, and keep the answer\'s field `receipt`')
    try:
        answers = {
            int(index): (tuple(answer["token_ids"]), None if answer["logprobs"] is None else tuple(answer["logprobs"]))
            for index, answer in data["answers"].items()
        }
        return Receipt(
            model=str(data["model"]),
            weights_sha256=str(data["weights_sha256"]),
            machine={name: data[name] for name in _MACHINE} | {"tp": int(data.get("tp", 1))},
            herd=str(data["herd"]),
            request=request_from_dict(data["request"]),
            answers=answers,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"the receipt is damaged: {type(error).__name__}: {error}", hint="it has to be kept as the server sent it"
        ) from error
