"""Progress bars on stderr: rich on a terminal, a plain line now and then elsewhere, nothing when told to be quiet.

Nothing is drawn for work that ends within two seconds. Knows counts and labels only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

from herd.base.log import get_logger

log = get_logger(__name__)

SHOW_AFTER_S = 2.0
PLAIN_EVERY_S = 60.0

Advance = Callable[[int, str], None]
"""Called with the count done so far and a short text (a loss, a file name)."""

Unit = Literal["steps", "bytes"]


@contextmanager
def track_steps(name: str, *, total: int | None, done: int = 0, unit: Unit = "steps") -> Generator[Advance, None, None]:
    """Yield `advance(done, text)`. `total` None: the end is not known. `unit` bytes shows sizes and rates."""
    if sys.stderr.isatty():
        with _bar(name, total, done, unit) as advance:
            yield advance
    else:
        yield _plain(name, total)


def _plain(name: str, total: int | None) -> Advance:
    """One log line a minute: a bar is of no use in a file."""
    last = time.monotonic()

    def advance(done: int, text: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S:
            last = now
            log.info("%s %s%s  %s", name, f"{done:,}", f"/{total:,}" if total else "", text)

    return advance


@contextmanager
def _bar(name: str, total: int | None, done: int, unit: Unit) -> Generator[Advance, None, None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    count: ProgressColumn = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(name, total=total, completed=done, text="")
    started = time.monotonic()
    shown = False

    def advance(now: int, text: str = "") -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > SHOW_AFTER_S:
            progress.start()
            shown = True
        progress.update(task, completed=now, text=text)

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
