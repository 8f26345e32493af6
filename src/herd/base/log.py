"""Logging: standard library loggers below `herd`, silent until a command or an application sets a handler up.

The command line calls `configure`; a library user configures `logging` as for any package. As `json`, a record is one line with `time`,
`level`, `logger`, `message`, the fields that came with it (`extra={"fields": {...}}`) and `trace` for an exception.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from herd.base.errors import UsageError, did_you_mean

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is at the time, so that a progress bar that captures it keeps its line."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields: dict[str, object] = getattr(record, "fields", {})
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str | None = None, style: str | None = None) -> None:
    """Send herd's log to stderr at `level` (default: HERD_LOG_LEVEL, else info) as `style` (default: HERD_LOG_FORMAT, else text).

    Raises UsageError for a level or a style that is none.
    """
    chosen = _one_of("log level", level or os.environ.get("HERD_LOG_LEVEL") or "info", LEVELS)
    form = _one_of("log format", style or os.environ.get("HERD_LOG_FORMAT") or "text", FORMATS)
    logger = logging.getLogger("herd")
    handler = next((one for one in logger.handlers if isinstance(one, _StderrHandler)), None)
    if handler is None:
        handler = _StderrHandler(sys.stderr)
        logger.addHandler(handler)
        logger.propagate = False
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    logger.setLevel(chosen.upper())


def environment() -> dict[str, str]:
    """The variables that make another process log as this one does; empty where `configure` was not called."""
    logger = logging.getLogger("herd")
    handler = next((one for one in logger.handlers if isinstance(one, _StderrHandler)), None)
    if handler is None:
        return {}
    style = "json" if isinstance(handler.formatter, JsonFormatter) else "text"
    return {"HERD_LOG_LEVEL": logging.getLevelName(logger.level).lower(), "HERD_LOG_FORMAT": style}


def _one_of(what: str, given: str, known: tuple[str, ...]) -> str:
    chosen = given.lower()
    if chosen not in known:
        raise UsageError(f"unknown {what} {chosen!r}", hint=did_you_mean(chosen, known, otherwise=f"{what}s: " + ", ".join(known)))
    return chosen
