"""Older and newer spellings of the same routes, and routes of the Llama Stack that this version does not have.

    /v1/openai/v1/...                 0.2 and 0.3: OpenAI's routes          -> /v1/...
    /alpha/...                        0.0.5x                                -> /v1/...
    /v1alpha/..., /v1beta/...         0.3 and later                         -> /v1/...
    /v1alpha/admin/{providers,...}    0.7 and later                         -> /v1/...

Only the path that routes are found by is rewritten; who may come in is decided by the path as it was sent.
"""

from __future__ import annotations

PROBES = frozenset({"/health", "/ready"})
"""Where an orchestrator asks whether the server lives and takes requests: yes or no, without a key."""
_PREFIXES = (
    ("/v1/openai/v1/", "/v1/"),
    ("/v1alpha/admin/", "/v1/"),
    ("/v1alpha/", "/v1/"),
    ("/v1beta/", "/v1/"),
    ("/alpha/", "/v1/"),
)
LATER = (
    "/v1/datasets",
    "/v1/datasetio",
    "/v1/eval",
    "/v1/scoring",
    "/v1/scoring-functions",
    "/v1/post-training",
    "/v1/fine_tuning",
    "/v1/synthetic-data-generation",
    "/v1/telemetry",
    "/v1/messages",
    "/v1/interactions",
    "/v1/skills",
    "/v1/containers",
    "/v1/connectors",
    "/v1/file-processors",
    "/v1/inference/rerank",
    "/v1/rerank",
)
"""Groups of the Llama Stack, or of OGX after it, that are not there yet."""


def plain_path(path: str) -> str:
    """The path that a route has here.

    >>> plain_path("/v1/openai/v1/chat/completions"), plain_path("/v1alpha/admin/providers"), plain_path("/v1/models")
    ('/v1/chat/completions', '/v1/providers', '/v1/models')
    """
    for old, new in _PREFIXES:
        if path.startswith(old):
            return new + path[len(old) :]
    return path


def comes_later(path: str) -> bool:
    """Whether a path is of a group that this version does not have."""
    return any(path == group or path.startswith(group + "/") for group in LATER)
