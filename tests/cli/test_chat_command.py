"""`herd chat` from a pipe: a line is a message, triple quotes hold several lines, answers on stdout and remarks on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand, spawn  # pyright: ignore[reportMissingImports]

from herd.inference.llm import LLM


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[LLM], None]:
    """Lets `herd chat` find this model, whichever is named."""
    return lambda llm: monkeypatch.setattr("herd.cli.chat.load_llm", lambda *_, **__: llm)


def saved(tmp_path: Path) -> list[tuple[str, str]]:
    """The conversation that a test had written by `/save talk.json`."""
    return [(message["role"], message["content"]) for message in json.loads((tmp_path / "talk.json").read_text())["messages"]]


def test_every_line_is_a_message_and_stdout_has_the_answers_alone(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("Hi.", "A river is water."))
    result = herd("chat", stdin="Hello!\n\nWhat is a river?\n")
    assert (result.code, result.out) == (0, "Hi.\nA river is water.\n")
    assert result.err.count(" tokens/s, first after ") == 2, "each answer has its line of statistics"
    assert result.err.startswith("model: ") and "/help lists commands" in result.err and "\x1b" not in result.err + result.out


def test_a_last_line_without_its_end_and_lines_of_windows_are_messages_too(
    herd: HerdCommand, given: Any, says: Any, tmp_path: Path
) -> None:
    given(says("a", "b"))
    assert herd("chat", stdin="one\r\ntwo\r\n/save talk.json").code == 0
    assert saved(tmp_path) == [("user", "one"), ("assistant", "a"), ("user", "two"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ('"""\nfirst\n\nsecond\n"""\n', "first\n\nsecond"),
        ('"""first\nsecond"""\n', "first\nsecond"),
        ('"""one line"""\n', "one line"),
        ('"""\n  indented\n/exit\n"""\n', "  indented\n/exit"),
        ('"""\nnever closed\n', "never closed"),
    ],
)
def test_triple_quotes_hold_a_message_of_several_lines(
    herd: HerdCommand, given: Any, says: Any, tmp_path: Path, typed: str, message: str
) -> None:
    given(says("ok"))
    closing = "" if "never" in typed else "/save talk.json\n"
    result = herd("chat", stdin=typed + closing)
    assert (result.code, result.out) == (0, "ok\n")
    if closing:
        assert saved(tmp_path) == [("user", message.strip("\n")), ("assistant", "ok")]


def test_empty_quotes_are_no_message(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("ok"))
    assert herd("chat", stdin='"""\n"""\n""""""\n').out == ""


def test_commands_work_from_a_pipe_and_exit_ends_it(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("one", "two"))
    result = herd("chat", stdin="/system Be short.\na\n/show\n/nonsense\n/exit\nnever read\n")
    assert (result.code, result.out) == (0, "one\n")
    assert "system: Be short." in result.err and "error: unknown command /nonsense" in result.err


def test_flags_set_instructions_and_sampling(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("abcdef"))
    words = ("--system", "Be short.", "--temperature", "0", "--top-p", "0.5", "--max-tokens", "2", "--seed", "4")
    result = herd("chat", *words, stdin="x\n/show\n")
    assert result.out == "ab\n" and "system: Be short." in result.err
    assert all(text in result.err for text in ("temperature: 0.0\n", "top_p: 0.5\n", "max_tokens: 2\n", "seed: 4\n"))


def test_an_error_does_not_end_the_chat(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("ok", context=64))
    result = herd("chat", stdin="grazes " * 60 + "\nHi\n")
    assert (result.code, result.out) == (0, "ok\n")
    assert "error: the prompt has" in result.err and "Traceback" not in result.err


def test_ctrl_c_ends_a_piped_chat_with_130_and_keeps_what_was_said(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("xyz", "more", fails={2: KeyboardInterrupt()}))
    result = herd("chat", stdin="a\nb\n")
    assert (result.code, result.out) == (130, "xy\n")


def test_a_line_that_is_not_utf8_is_refused_by_its_number(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("ok"))
    result = herd("chat", stdin=b"fine\none\xe9\n")
    message, hint = result.refusal(1)
    assert message == "line 2 on stdin is not UTF-8" and "iconv" in hint and result.out == "ok\n"


def test_instructions_that_are_not_utf8_are_refused(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("ok"))
    broken = b"one\xe9".decode("utf-8", "surrogateescape")
    assert "--system is not UTF-8" in herd("chat", "--system", broken, stdin="x\n").refusal(1)[0]


def test_a_model_that_is_not_there_ends_with_3_before_anything_is_read(herd: HerdCommand) -> None:
    assert "fetch it" in herd("chat", "-m", "ORG/NAME", stdin="x\n").refusal(3)[1]


def test_another_model_is_loaded_with_the_same_flags(herd: HerdCommand, says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[Any, ...]] = []

    def load(name: str | None, **options: Any) -> LLM:
        loaded.append((name, options))
        return says("ok")

    monkeypatch.setattr("herd.cli.chat.load_llm", load)
    flags = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
    assert herd("chat", "-m", "first", *flags, stdin="/model second\n").code == 0
    options = {"device": "cpu", "dtype": "float32", "threads": 1, "tp": 1, "pp": 1}
    assert loaded == [("first", options), ("second", options)]


def test_a_piped_chat_writes_no_history(herd: HerdCommand, given: Any, says: Any, herd_home: Path) -> None:
    given(says("ok"))
    assert herd("chat", stdin="x\n").code == 0 and not herd_home.exists()


def test_in_a_process_of_its_own_a_pipe_is_answered(tiny_folder: Path) -> None:
    result = spawn("chat", "-m", tiny_folder, "--temperature", "0", "--max-tokens", "4", stdin=b"Hello!\n/exit\n")
    assert result.code == 0 and result.out and "[4 tokens, " in result.err and "Hello!" not in result.out
