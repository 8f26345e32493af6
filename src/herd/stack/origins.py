"""Which web pages may ask: those of this very server, and those that its operator allowed by name. To these a browser lets it answer.

Source: the Fetch standard, "CORS protocol". Cookies are never used, so credentials are never allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
HEADERS = b"authorization, content-type, x-request-id"
MAX_AGE_S = b"600"


def is_own(origin: str, host: str) -> bool:
    """Whether a page comes from this very host and port."""
    scheme, _, place = origin.partition("://")
    usual = {"http": ":80", "https": ":443"}.get(scheme.lower(), "")
    own = host.lower()
    return bool(own) and place.lower().removesuffix(usual) == own.removesuffix(usual)


def is_preflight(method: str, headers: Mapping[str, str], allowed: Collection[str]) -> bool:
    """Whether a browser asks, for a page that is allowed, if it may ask. It does so without a key."""
    return method == "OPTIONS" and "access-control-request-method" in headers and headers.get("origin") in allowed


def preflight_headers() -> list[tuple[bytes, bytes]]:
    """What a browser is told then, besides `answer_headers`."""
    return [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", HEADERS),
        (b"access-control-max-age", MAX_AGE_S),
    ]


def answer_headers(origin: str | None, allowed: Collection[str]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer to a page that is allowed; none to any other."""
    if origin is None or origin not in allowed:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"x-request-id"),
        (b"vary", b"Origin"),
    ]
