"""What operators watch: Prometheus series under `herd_`, with the meanings that vLLM's have. docs/guides/serving.md has the map of names.

Intervals are of this process's monotonic clock; the time to the first token counts from when the request was whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from herd.safety.shields import Report
from herd.version import __version__

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 131_072)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_PREFIX_DISK = {
    "blocks_written": "Cache blocks written to --prefix-dir.",
    "blocks_read": "Cache blocks read from there.",
    "blocks_dropped": "Cache blocks that were not written because too many waited to be.",
    "blocks_damaged": "Files there that were not what they should be, and were deleted.",
    "blocks_evicted": "Files there that were deleted to make room.",
    "written_bytes": "Bytes of keys and values written there.",
    "read_bytes": "Bytes of keys and values read from there.",
}

Source = Any
"""An `EngineProcess`: its state, info and counters."""


class EngineCollector(Collector):
    """The engine's own counters, as they were told last."""

    def __init__(self, engine: Source, model_name: str) -> None:
        self._engine, self._model = engine, model_name

    def collect(self) -> Iterator[Metric]:
        """Called at every scrape."""
        counters: Mapping[str, Any] = self._engine.counters
        value = counters.get
        yield self._gauge("num_requests_running", "Sequences that hold cache blocks.", value("running", 0))
        yield self._gauge("num_requests_waiting", "Sequences that wait for blocks.", value("waiting", 0))
        blocks = value("blocks", 0)
        used = 1 - value("blocks_free", 0) / blocks if blocks else 0.0
        yield self._gauge("kv_cache_usage_perc", "Share of the cache's blocks in use, 0 to 1.", used)
        yield self._gauge("engine_healthy", "1 while the engine takes requests.", float(self._engine.state == "ready"))
        yield self._counter("engine_restarts", "Processes started after the first.", self._engine.num_restarts)
        yield self._counter("num_preemptions", "Sequences whose blocks were taken.", value("preemptions", 0))
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", value("prefix_queries", 0))
        yield self._counter("prefix_cache_hits", "Prompt tokens found there.", value("prefix_hits", 0))
        yield self._counter("iteration_tokens", "Tokens computed.", value("step_tokens", 0))
        yield self._counter("iterations", "Steps of the engine.", value("steps", 0))
        yield self._counter("iteration_seconds", "Seconds in steps.", value("step_s", 0.0))
        yield self._counter("spec_decode_num_draft_tokens", "Tokens guessed.", value("guessed", 0))
        yield self._counter("spec_decode_num_accepted_tokens", "Guesses that came true.", value("guesses_accepted", 0))
        for name, text in _PREFIX_DISK.items():
            if "prefix_disk_" + name in counters:
                yield self._counter("prefix_disk_" + name, text, counters["prefix_disk_" + name])
        told = InfoMetricFamily("herd_cache_config", "The engine's sizes.")
        names = ("block_size", "num_blocks", "context", "token_budget", "max_sequences", "dtype", "device")
        told.add_metric([], {name: str(self._engine.info.get(name, "")) for name in names} | {"version": __version__, "model": self._model})
        yield told

    def _gauge(self, name: str, text: str, value: int | float) -> Metric:
        family = GaugeMetricFamily("herd_" + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: int | float) -> Metric:
        family = CounterMetricFamily("herd_" + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


class Metrics:
    """Every series of one server."""

    def __init__(self, engine: Source, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        self.registry.register(EngineCollector(engine, model_name))
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "From the whole request to its first token.", _SECONDS)
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens of an answer.", _SECONDS)
        self.per_token = self._histogram("request_time_per_output_token_seconds", "A request's mean between tokens.", _SECONDS)
        self.e2e = self._histogram("e2e_request_latency_seconds", "From the whole request to its end.", _SECONDS)
        self.prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_sizes = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.params_n = self._histogram("request_params_n", "Answers asked for.", _COUNTS)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that began.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens written.")
        self.rejections = self._counter("admission_rejections", "Requests refused because they would have waited too long.", "reason")
        self.success = self._counter("request_success", "Answers that ended, by how.", "finished_reason")
        self.shield_checks = self._counter("shield_checks", "Texts that a shield judged, by what it said.", "shield", "point", "verdict")
        self.remote_requests = self._counter("remote_requests", "Requests to remote providers, by how they ended.", "provider", "outcome")
        self.http = self._counter("http_requests", "HTTP requests, by how they ended.", "method", "route", "status")
        self.http_seconds = Histogram(
            "herd_http_request_seconds", "Of an HTTP request.", ["route"], buckets=_SECONDS, registry=self.registry
        )

    def _histogram(self, name: str, text: str, buckets: tuple[int | float, ...]) -> Histogram:
        family = Histogram("herd_" + name, text, ["model_name"], buckets=buckets, registry=self.registry)
        return family.labels(self._model)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        family = Counter("herd_" + name, text, ["model_name", *labels], registry=self.registry)
        return family if labels else family.labels(self._model)

    def finished(self, reason: str) -> None:
        """Count an answer."""
        self.success.labels(self._model, reason).inc()

    def rejected(self, reason: str) -> None:
        """Count a refusal."""
        self.rejections.labels(self._model, reason).inc()

    def judged(self, report: Report) -> None:
        """Count what the shields said of a text."""
        for verdict in report.verdicts:
            said = "failed" if verdict.failed else "blocked" if verdict.blocks else "warned" if verdict.unsafe else "passed"
            self.shield_checks.labels(self._model, verdict.shield, report.point.value, said).inc()

    def asked(self, provider: str, outcome: str) -> None:
        """Count a request to a remote provider."""
        self.remote_requests.labels(self._model, provider, outcome).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        self.http.labels(self._model, method if method in _METHODS else "other", route, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
