"""Logging: standard library loggers below `herd`, silent until a command or an application sets a handler up.

The command line calls `configure`; a library user configures `logging` as for any package.
"""

from __future__ import annotations

import logging
import os
import sys

from herd.base.errors import UsageError, did_you_mean

LEVELS = ("debug", "info", "warning", "error")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is at the time, so that a progress bar that captures it keeps its line."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(level: str | None = None) -> None:
    """Send herd's log to stderr at `level` (default: HERD_LOG_LEVEL, else info). Raises UsageError for an unknown level."""
    chosen = (level or os.environ.get("HERD_LOG_LEVEL") or "info").lower()
    if chosen not in LEVELS:
        raise UsageError(f"unknown log level {chosen!r}", hint=did_you_mean(chosen, LEVELS, otherwise="levels: " + ", ".join(LEVELS)))
    logger = logging.getLogger("herd")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(chosen.upper())
