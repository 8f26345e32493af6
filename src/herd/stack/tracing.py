"""OpenTelemetry spans: one for each HTTP request, and inside it what the engine did: the wait for the first token and the writing.

Spans are made where the standard variables ask for them (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER=console), by the SDK of the
extra `otel`; an application that has set its own tracer provider up gets them too. Else nothing is imported and nothing is made. Names
follow OpenTelemetry's semantic conventions for HTTP and for generative AI; prompts and answers are never recorded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from herd.base.errors import ConfigError
from herd.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NANO = 1_000_000_000


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the standard variables ask for spans."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in (*_ENDPOINTS, "OTEL_TRACES_EXPORTER"))


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """Set the SDK up if it is asked for and no application has. Raises ConfigError where it is asked for and not installed."""
    if not wanted(environ) or _provider_is_set():
        return
    kind = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

        exporter: SpanExporter
        if kind == "console":
            exporter = ConsoleSpanExporter(out=sys.stderr)
        elif kind == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        else:
            raise ConfigError(f"OTEL_TRACES_EXPORTER={kind!r} is none that herd knows", hint="use otlp, console or none")
    except ImportError as error:
        raise ConfigError(
            f"spans are asked for by the environment, and {error.name} is not installed",
            hint="pip install 'llama-herd[otel]', or set OTEL_SDK_DISABLED=true",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME", "herd")}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _provider_is_set() -> bool:
    """Whether an application has set a tracer provider of its own up: then the API has been imported."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not type(trace.get_tracer_provider()).__name__.startswith("Proxy")


def flush() -> None:
    """Send what was recorded; called when a server stops."""
    trace = sys.modules.get("opentelemetry.trace")
    force = None if trace is None else getattr(trace.get_tracer_provider(), "force_flush", None)
    if force is not None:
        force(5000)


class Tracing:
    """Makes spans, or nothing where no one listens."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None
        if _provider_is_set():
            from opentelemetry import trace

            self._tracer = trace.get_tracer("herd", __version__)

    def request(self, method: str, headers: Mapping[str, str], request_id: str) -> Span | None:
        """The span of a request, a child of the caller's if it sent one (`traceparent`)."""
        if self._tracer is None:
            return None
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        attributes = {"http.request.method": method, "herd.request.id": request_id}
        return self._tracer.start_span(method, context=extract(headers), kind=SpanKind.SERVER, attributes=attributes)

    def answered(self, span: Span | None, *, method: str, route: str, status: int, key: str | None) -> None:
        """End a request's span."""
        if span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        span.update_name(f"{method} {route}")
        attributes: dict[str, Any] = {"http.route": route, "http.response.status_code": status}
        if key is not None:
            attributes["enduser.id"] = key
        span.set_attributes(attributes)
        if status >= 500 or status == 0:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def generated(
        self,
        span: Span | None,
        *,
        model: str,
        num_prompt: int,
        num_cached: int,
        num_answer: int,
        reason: str,
        started: float,
        first: float,
        ended: float,
    ) -> None:
        """Put what the engine did for one answer under its request's span. Times are of `time.monotonic`."""
        if span is None or self._tracer is None:
            return
        from opentelemetry.trace import set_span_in_context

        shift = time.time_ns() - int(time.monotonic() * _NANO)
        at = {name: int(seconds * _NANO) + shift for name, seconds in (("started", started), ("first", first), ("ended", ended))}
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.provider.name": "herd",
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": num_prompt,
            "gen_ai.usage.cached_input_tokens": num_cached,
            "gen_ai.usage.output_tokens": num_answer,
            "gen_ai.response.finish_reasons": [reason],
        }
        answer = self._tracer.start_span(
            "generate " + model, context=set_span_in_context(span), start_time=at["started"], attributes=attributes
        )
        inside = set_span_in_context(answer)
        for name, begin, end in (("first_token", "started", "first"), ("decode", "first", "ended")):
            self._tracer.start_span(name, context=inside, start_time=at[begin]).end(at[end])
        answer.end(at["ended"])
