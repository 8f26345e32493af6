"""What pydantic finds wrong with a request, as one sentence that names the field."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from herd.base.errors import did_you_mean
from herd.stack.errors import RequestError
from herd.stack.responses.types import BODIES
from herd.stack.types import BatchBody, ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from herd.stack.vector_types import VectorDbBody, VectorInsertBody, VectorQueryBody, VectorStoreBody

_FIELDS = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/batches": BatchBody,
    "/v1/vector_stores": VectorStoreBody,
    "/v1/vector-io/insert": VectorInsertBody,
    "/v1/vector-io/query": VectorQueryBody,
    "/v1/vector-dbs": VectorDbBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
    **BODIES,
}
_WHERE = ("body", "query", "path")


def readable(path: str, problems: Sequence[Mapping[str, Any]]) -> RequestError:
    """The first thing that is wrong, by the field's name; where a field may be of several kinds, all that it may be."""
    first = problems[0]
    place = [str(step) for number, step in enumerate(first["loc"]) if number or step not in _WHERE]
    kind = str(first["type"])
    if kind == "json_invalid":
        return RequestError("format", "the body is not JSON", hint="check its quotes and commas")
    if not place:
        return RequestError("format", "the body is no JSON object", hint="send JSON with Content-Type: application/json")
    name = place[0]
    if kind == "extra_forbidden":
        known = _FIELDS[path].model_fields if len(place) == 1 and path in _FIELDS else ()
        hint = did_you_mean(place[-1], list(known), otherwise="leave it out")
        return RequestError("usage", f"there is no field {'.'.join(place)!r:.200}", hint=hint, param=name)
    same = [problem for problem in problems if problem["loc"][: 1 + len(place[:1])] == first["loc"][: 1 + len(place[:1])]]
    wants = list(dict.fromkeys(str(problem["msg"]) for problem in same))
    deepest = max(same, key=lambda problem: len(problem["loc"]))
    told = ".".join(str(step) for number, step in enumerate(deepest["loc"]) if number or step not in _WHERE) if len(same) == 1 else name
    value = reprlib.repr(deepest.get("input"))[:80] if len(same) == 1 and kind != "missing" else ""
    message = f"{told[:200]}: {'; or '.join(wants[:4])[:500]}" + (f"; it is {value}" if value else "")
    return RequestError("usage", message, param=name)
