"""OpenTelemetry spans of turns, by the API alone: `invoke_agent`, `chat`, `execute_tool`, `retrieval`.

Names follow the semantic conventions for generative AI. Spans are made where an application, or the server, has set a tracer provider up;
else nothing is imported. Texts are never recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from herd.version import __version__


class Span:
    """A span that may be none."""

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner

    def set(self, **attributes: Any) -> None:
        """Attributes, with `__` for the dots of their names; None is left out."""
        if self._inner is not None:
            found = {name.replace("__", "."): value for name, value in attributes.items() if value is not None}
            self._inner.set_attributes(found)

    def fail(self, code: str) -> None:
        """Mark it as an error of this type."""
        if self._inner is not None:
            from opentelemetry.trace import Status, StatusCode

            self._inner.set_status(Status(StatusCode.ERROR))
            self._inner.set_attribute("error.type", code)


def listened_to() -> bool:
    """Whether somebody has set a tracer provider up."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not type(trace.get_tracer_provider()).__name__.startswith("Proxy")


@contextmanager
def span(operation: str, subject: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
    """A span named `operation subject` around what runs inside; its children are those made there."""
    if not listened_to():
        yield Span()
        return
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind

    kind = SpanKind.CLIENT if operation == "chat" else SpanKind.INTERNAL
    found = {"gen_ai.operation.name": operation, **{name: value for name, value in attributes.items() if value is not None}}
    tracer = trace.get_tracer("herd", __version__)
    with tracer.start_as_current_span(f"{operation} {subject}".strip(), kind=kind, attributes=found) as inner:
        yield Span(inner)
