"""What goes wrong with a remote server, in herd's own words: its status and its message, never its address or key.

    RemoteError             code "remote"        it answered what it should not have, or broke off; 502 over HTTP
    |- RemoteDownError      code "remote_down"   it cannot be reached, or was too slow; 503
    `- RemoteBusyError      code "remote_busy"   it refuses for now; 429, with the time to wait if it told one

A request that the server finds wrong is a UsageError, a prompt that is too long a ContextOverflowError, a model that it has not a
NotFoundError: the same kinds that the local engine raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from herd.base.errors import ContextOverflowError, HerdError, NotFoundError, UsageError

_SHOWN = 500


class RemoteError(HerdError):
    """A remote server that does not do what it should."""

    code = "remote"


class RemoteDownError(RemoteError):
    """A remote server that cannot be reached or does not answer."""

    code = "remote_down"


class RemoteBusyError(RemoteError):
    """A remote server that takes no more for now. `retry_after_s` is what it asked to wait."""

    code = "remote_busy"

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


def _told(body: Any) -> tuple[str, str]:
    """The message and code of an error body, whichever of the usual shapes it has."""
    data: Mapping[str, Any] = cast("Mapping[str, Any]", body) if isinstance(body, Mapping) else {}
    error: Any = data.get("error", data)
    if isinstance(error, Mapping):
        inner = cast("Mapping[str, Any]", error)
        message: Any = inner.get("message") or inner.get("detail") or inner.get("type") or ""
        code: Any = inner.get("code") or inner.get("type") or ""
    else:
        message, code = error, ""
    text = " ".join(str(message).split())
    return text[:_SHOWN], str(code)[:100]


def error_of(provider: str, status: int, body: Any, *, retry_after: str | None = None) -> HerdError:
    """The error for an answer with a status that is not 2xx."""
    message, code = _told(body)
    said = f": {message}" if message else ""
    if code == "context_length_exceeded":
        return ContextOverflowError(f"the prompt does not fit the model of {provider!r}{said}", hint="shorten the prompt; nothing was cut")
    if status in (401, 403):
        # What it says may hold a piece of the key.
        return RemoteError(
            f"the provider {provider!r} refused the key ({status})",
            hint="see that its key is valid: api_key_env in herd.toml, or HERD_API_KEY",
        )
    if status == 404:
        return NotFoundError(f"the provider {provider!r} does not know the model{said}", hint="correct the models of herd.toml")
    if status in (408, 409, 425, 429):
        return RemoteBusyError(
            f"the provider {provider!r} refuses for now ({status}){said}", hint="ask later", retry_after_s=_seconds(retry_after)
        )
    if 300 <= status < 400:
        return RemoteError(
            f"the provider {provider!r} leads elsewhere ({status}), which is not followed: the key would go along", hint="correct base_url"
        )
    if 400 <= status < 500:
        return UsageError(f"the provider {provider!r} refused the request ({status}){said}", hint="change what it names")
    if status == 503:
        return RemoteDownError(f"the provider {provider!r} is not ready (503){said}", hint="ask again in a few seconds")
    return RemoteError(f"the provider {provider!r} failed ({status}){said}", hint="ask again, or see its log")


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return min(max(value, 0.0), 3600.0) if value == value else None
