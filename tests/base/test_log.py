"""herd's log: silent in a library, on stderr once a command has configured it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from herd.base.errors import UsageError
from herd.base.log import LEVELS, configure, environment, get_logger


@pytest.fixture(autouse=True)
def restore_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HERD_LOG_LEVEL", raising=False)
    monkeypatch.delenv("HERD_LOG_FORMAT", raising=False)
    logger = logging.getLogger("herd")
    before = (list(logger.handlers), logger.level, logger.propagate)
    logger.handlers.clear()
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_the_log_goes_to_stderr_from_info_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    get_logger("herd.somewhere").info("seen")
    get_logger("herd.somewhere").debug("not seen")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "I herd.somewhere: seen\n"


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_comes_from_the_variable_and_an_argument_wins(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_LOG_LEVEL", level.upper())
    configure()
    assert logging.getLogger("herd").level == getattr(logging, level.upper())
    configure("error")
    assert logging.getLogger("herd").level == logging.ERROR


def test_configuring_twice_writes_a_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    configure()
    get_logger("herd").warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_an_unknown_level_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'wanring'") as refusal:
        configure("wanring")
    assert refusal.value.hint == "did you mean 'warning'?"
    monkeypatch.setenv("HERD_LOG_LEVEL", "zzz")
    with pytest.raises(UsageError) as refusal:
        configure()
    assert refusal.value.hint == "log levels: debug, info, warning, error"


def test_as_json_a_record_is_one_line_with_its_fields_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure(style="json")
    get_logger("herd.a").info("answered %d", 7, extra={"fields": {"route": "/v1/x", "ms": 1.5}})
    try:
        raise ValueError("line one\nline two")
    except ValueError as error:
        get_logger("herd.b").error("failed", exc_info=error)
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "logger": "herd.a", "message": "answered 7", "route": "/v1/x", "ms": 1.5}
    assert second["message"] == "failed" and "ValueError: line one\nline two" in second["trace"]


def test_another_process_can_be_made_to_log_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment() == {}
    configure("warning", "json")
    assert environment() == {"HERD_LOG_LEVEL": "warning", "HERD_LOG_FORMAT": "json"}
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    configure()
    assert environment() == {"HERD_LOG_LEVEL": "warning", "HERD_LOG_FORMAT": "json"}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown log format 'xml'") as refusal:
        configure(style="xml")
    assert refusal.value.hint == "log formats: text, json"
