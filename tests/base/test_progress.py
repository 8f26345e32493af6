"""Progress: a bar for people at a terminal, a line a minute for files, nothing on stdout ever."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from herd.base import progress
from herd.base.progress import track_steps


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def clock_fixture(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_it_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with track_steps("training", total=3) as advance:
        for step in range(1, 4):
            advance(step, "loss 1.0")
    assert capsys.readouterr() == ("", "")


class Kept(logging.Handler):
    """Messages as they were logged, each once, whatever else listens."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(name="kept")
def kept_fixture(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setattr(progress.log, "handlers", [kept])
    monkeypatch.setattr(progress.log, "level", logging.INFO)
    monkeypatch.setattr(progress.log, "propagate", False)
    progress.log.manager._clear_cache()  # type: ignore[attr-defined]
    return kept


def test_a_file_gets_a_line_a_minute(clock: Clock, kept: Kept) -> None:
    with track_steps("training", total=1000) as advance:
        for step, seconds in enumerate((10, 59, 61, 70, 130), start=1):
            clock.now = seconds
            advance(step, "loss 1.0")
    assert kept.messages == ["training 3/1,000  loss 1.0", "training 5/1,000  loss 1.0"]


def test_work_of_unknown_length_is_logged_without_a_total(clock: Clock, kept: Kept) -> None:
    with track_steps("reading", total=None, unit="bytes") as advance:
        clock.now = 61
        advance(123456, "a.txt")
    assert kept.messages == ["reading 123,456  a.txt"]


def test_a_terminal_shows_nothing_for_work_under_two_seconds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with track_steps("training", total=3) as advance:
        clock.now = 1.9
        advance(1, "loss 1.0")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("total", [3, None])
def test_a_terminal_shows_a_bar_for_longer_work(total: int | None, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with track_steps("training", total=total) as advance:
        clock.now = 2.1
        advance(1, "loss 1.0")
        advance(2, "loss 0.9")
    assert "training" in terminal.getvalue()


def test_a_bar_is_taken_down_when_the_work_fails(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(RuntimeError, match="broken"), track_steps("training", total=3) as advance:
        clock.now = 2.1
        advance(1, "loss 1.0")
        raise RuntimeError("broken")
    assert sys.stderr is terminal
