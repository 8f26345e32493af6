"""Errors as HTTP tells them, in OpenAI's shape: a status, a code, a message, and never what is inside.

Herd's own errors are meant for people and go out as they are; anything else is "an internal error" with the request's id, and the log has
the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.base.errors import HerdError
from herd.base.log import get_logger

log = get_logger(__name__)

_STATUS = {
    "usage": 400, "format": 400, "tokenizer": 400, "context_overflow": 400, "does_not_fit": 400, "config": 400,
    "not_found": 404, "engine_down": 503, "overloaded": 503, "engine": 503, "draining": 503, "storage": 503,
    "unauthorized": 401, "forbidden": 403, "too_large": 413, "headers_too_large": 431, "rate_limited": 429, "busy": 429, "method": 405,
    "slow": 408, "conflict": 409, "unsupported": 400, "remote": 502, "remote_down": 503, "remote_busy": 429,
    "session_busy": 409, "turn_state": 409,
    "tool": 400, "tool_arguments": 400, "denied_address": 403, "consent": 409,
}  # fmt: skip
_INTERNAL = frozenset({"engine", "storage"})
"""Codes whose message tells of the inside."""
_OPENAI_CODES = {"context_overflow": "context_length_exceeded", "unauthorized": "invalid_api_key", "rate_limited": "rate_limit_exceeded"}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
"""OpenAI's names of what else is an invalid request below 500, and a server error above."""


class RequestError(HerdError):
    """A request that is refused: `code` chooses the status, `param` names the field, `retry_after_s` goes into the header."""

    def __init__(
        self, code: str, message: str, *, hint: str | None = None, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code, self.param, self.retry_after_s = code, param, retry_after_s


def status_of(error: Exception) -> int:
    """The status of an error; 500 for what is none of herd's."""
    return _STATUS.get(error.code, 500) if isinstance(error, HerdError) else 500


def body_of(error: Exception, *, request_id: str) -> dict[str, Any]:
    """The JSON of an error."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if not isinstance(error, HerdError) or is_internal(error):
        message = f"an internal error; the server's log tells more under the request id {request_id}"
        return {"error": {"message": message, "type": "server_error", "param": None, "code": "internal_error", "request_id": request_id}}
    message = error.message if error.hint is None else f"{error.message} ({error.hint})"
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": getattr(error, "param", None),
            "code": _OPENAI_CODES.get(error.code, error.code),
            "request_id": request_id,
        }
    }


def is_internal(error: Exception) -> bool:
    """Whether only the log may tell what it says."""
    return status_of(error) == 500 or (isinstance(error, HerdError) and error.code in _INTERNAL)


def note_internal(error: Exception, request_id: str) -> None:
    """Write an error that the client is not told to the log."""
    if is_internal(error):
        log.error("request %s failed", request_id, exc_info=error, extra={"fields": {"id": request_id}})


def headers_of(error: Exception) -> Mapping[str, str]:
    """The headers of an error."""
    wait = getattr(error, "retry_after_s", None)
    headers: dict[str, str] = {}
    if wait is None and status_of(error) == 503:
        wait = 2.0
    if wait is not None:
        headers["Retry-After"] = str(max(1, int(wait + 0.999)))
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
