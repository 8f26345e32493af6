"""herd's log: silent in a library, on stderr once a command has configured it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from herd.base.errors import UsageError
from herd.base.log import LEVELS, configure, get_logger


@pytest.fixture(autouse=True)
def restore_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HERD_LOG_LEVEL", raising=False)
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
    assert refusal.value.hint == "levels: debug, info, warning, error"
