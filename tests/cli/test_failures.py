"""Whatever goes wrong: `error:`, a blank line, `hint:`, the right exit code, the nearest name, and a trace only when asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand, environment, spawn  # pyright: ignore[reportMissingImports]

from herd.base.errors import GateError, HerdError, NotFoundError
from herd.cli.failures import exit_code, known_error


def breaks(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `herd models` fail with an error."""

    def fail() -> None:
        raise error

    monkeypatch.setattr("herd.checkpoint.resolve.installed_models", fail)


@pytest.mark.parametrize(
    ("words", "code", "nearest"),
    [
        (("rnu",), 2, "did you mean 'run'?"),
        (("modelz",), 2, "did you mean 'models'"),
        (("tokenizer", "encod"), 2, "'encode'"),
        (("run", "--temprature", "1", "x"), 2, "did you mean --temperature?"),
        (("run", "--modell", "x"), 2, "did you mean --model?"),
        (("chat", "--max-token", "3"), 2, "did you mean --max-tokens?"),
        (("show", "llama-3.1-9b"), 3, "did you mean 'llama-3.1-8b'?"),
        (("run", "-m", "llama31:8b", "x"), 3, "did you mean 'llama3.1:8b'?"),
        (("run", "-m", "crai", "x"), 3, "did you mean 'cria'?"),
        (("train", "tinny"), 3, "did you mean 'tiny'?"),
        (("train", "tiny", "pretrain.num_step=3", "--dry-run"), 2, "did you mean 'num_steps'?"),
        (("convert", "cria", "out", "--to", "guff"), 2, "did you mean 'gguf'?"),
        (("run", "--device", "cud", "x"), 2, "did you mean 'cuda'?"),
        (("completion", "zhs"), 2, "did you mean 'zsh'?"),
        (("--log-level", "warnung", "models"), 2, "did you mean 'warning'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(herd: HerdCommand, words: tuple[str, ...], code: int, nearest: str) -> None:
    message, hint = herd(*words).refusal(code)
    assert nearest in hint and message


@pytest.mark.parametrize(
    "words", [("convert", "a"), ("pull",), ("verify",), ("completion",), ("tokenizer", "train"), ("convert", "a", "b")]
)
def test_what_is_missing_is_named_with_where_to_look(herd: HerdCommand, words: tuple[str, ...]) -> None:
    message, hint = herd(*words).refusal(2)
    assert message.startswith("missing ") and "--help` lists what it takes" in hint


def test_an_error_is_a_message_a_blank_line_and_a_hint_on_stderr(herd: HerdCommand) -> None:
    result = herd("show", "nothing-like-this")
    assert (result.code, result.out) == (3, "")
    first, blank, hint = result.err.splitlines()
    assert first == "error: there is no model 'nothing-like-this' on this machine"
    assert blank == "" and hint.startswith("hint: ")


@pytest.mark.parametrize("words", [("--debug", "show", "nothing"), ("show", "nothing", "--debug"), ("show", "--debug", "nothing")])
def test_debug_shows_the_trace_wherever_it_stands(herd: HerdCommand, words: tuple[str, ...]) -> None:
    result = herd(*words)
    assert result.code == 3 and "Traceback (most recent call last)" in result.err and "NotFoundError" in result.err
    assert result.err.splitlines()[-1].startswith("hint: "), "the message comes last, where it is seen"


def test_debug_may_be_a_variable(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_DEBUG", "1")
    assert "Traceback" in herd("show", "nothing").err


def test_behind_two_dashes_debug_is_an_argument(herd: HerdCommand) -> None:
    message, _ = herd("show", "--", "--debug").refusal(3)
    assert "'--debug'" in message


def test_a_bug_of_herd_is_told_in_a_line_and_its_trace_is_kept(herd: HerdCommand, herd_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, ZeroDivisionError("division by zero\nsecond line"))
    message, hint = herd("models").refusal(1)
    assert message == "herd failed: ZeroDivisionError: division by zero"
    assert str(herd_home / "last-error.log") in hint and "--debug" in hint
    trace = (herd_home / "last-error.log").read_text()
    assert trace.startswith("Traceback") and "second line" in trace and "models.py" in trace


def test_the_trace_of_a_bug_is_shown_when_it_cannot_be_kept(herd: HerdCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "file" / "home"))
    breaks(monkeypatch, ZeroDivisionError("division by zero"))
    result = herd("models")
    assert result.code == 1 and "Traceback" in result.err and "the trace is above" in result.err


def test_debug_shows_the_trace_of_a_bug(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, ZeroDivisionError("division by zero"))
    result = herd("models", "--debug")
    assert result.code == 1 and "Traceback" in result.err and "error: herd failed: ZeroDivisionError" in result.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (HerdError("it failed", hint="try"), 1, "it failed"),
        (NotFoundError("no file", hint="look"), 3, "no file"),
        (GateError("bad", hint="see"), 5, "bad"),
        (MemoryError(), 4, "out of memory: an allocation failed"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 4, "can't allocate memory"),
        (OSError(28, "No space left on device", "out.gguf"), 4, "No space left on device: out.gguf"),
        (PermissionError(13, "Permission denied", "out.gguf"), 1, "Permission denied: out.gguf"),
        (FileNotFoundError(2, "No such file or directory", "gone"), 1, "No such file or directory: gone"),
        (ValueError("embedded null byte"), 2, "a path holds a null character"),
    ],
)
def test_errors_of_the_user_and_the_machine_have_a_code_and_a_hint(
    herd: HerdCommand, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    breaks(monkeypatch, error)
    found, hint = herd("models").refusal(code)
    assert message in found and hint


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), RecursionError("x"), OSError("x")])
def test_anything_else_is_a_bug_and_not_blamed_on_the_user(error: BaseException) -> None:
    assert known_error(error) is None


def test_a_message_that_no_encoding_has_is_still_told(herd: HerdCommand) -> None:
    message, _ = herd("show", b"m\xff".decode("utf-8", "surrogateescape")).refusal(3)
    assert "there is no model 'm" in message


def test_an_interrupt_ends_with_130_and_says_nothing(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, KeyboardInterrupt())
    result = herd("models")
    assert (result.code, result.out, result.err.strip()) == (130, "", "")
    assert exit_code(KeyboardInterrupt()) == 130


def test_the_log_goes_to_stderr_at_the_level_asked_for(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.base.log import get_logger

    def chatty() -> list[Any]:
        get_logger("herd.test").debug("a detail")
        get_logger("herd.test").warning("a warning")
        return []

    monkeypatch.setattr("herd.checkpoint.resolve.installed_models", chatty)
    usual, detailed, quiet = herd("models"), herd("--log-level", "debug", "models"), herd("--log-level", "error", "models")
    assert "W herd.test: a warning" in usual.err and "a detail" not in usual.err
    assert "D herd.test: a detail" in detailed.err and "a warning" not in quiet.err
    assert "a warning" not in usual.out + detailed.out
    monkeypatch.setenv("HERD_LOG_LEVEL", "debug")
    assert "a detail" in herd("models").err


def test_a_reader_that_leaves_early_is_no_error_to_tell(tiny_folder: Path) -> None:
    program = "import sys; from herd.cli import main; sys.argv[0] = 'herd'; main()"
    words = [sys.executable, "-c", program, "show", "--json", str(tiny_folder)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_ends_with_4() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "herd", "models"], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=300)
    assert done.returncode == 4 and b"error: No space left on device" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_no_bug_of_herd(tiny_folder: Path, herd_home: Path, closed: str) -> None:
    words = ["sh", "-c", f'"$0" -m herd tokenizer encode --model "$1" {closed}', sys.executable, str(tiny_folder)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (herd_home / "last-error.log").exists()


def test_a_usage_error_in_a_process_of_its_own_ends_with_2() -> None:
    spawn("no-such-command").refusal(2)
