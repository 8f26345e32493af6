"""Completion: a script for each shell, and herd's answers when the shell asks what could come next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from herd_command import HerdCommand, environment  # pyright: ignore[reportMissingImports]

from herd.cli.app import run

SHELLS = ("bash", "zsh", "fish", "powershell")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_that_asks_herd(herd: HerdCommand, shell: str) -> None:
    result = herd("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"complete_{shell}" in result.out and "_HERD_COMPLETE" in result.out


def test_an_unknown_shell_is_refused_with_the_known_ones(herd: HerdCommand) -> None:
    assert herd("completion", "tcl").refusal(2) == ("unknown shell 'tcl'", "shells: bash, zsh, fish, powershell")


def asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str, line: str) -> str:
    """What herd answers a shell in which this line is being typed."""
    variables = {
        "_HERD_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": line.split(" ")[-1],
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "expected", "others"),
    [
        ("herd con", ("config", "convert"), "chat"),
        ("herd tokenizer ", ("train", "encode", "decode"), "doctor"),
        ("herd run --te", ("--temperature",), "--top-p"),
        ("herd run --m", ("--model", "--max-tokens", "--min-p"), "--seed"),
    ],
)
def test_herd_completes_commands_and_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str, line: str, expected: tuple[str, ...], others: str
) -> None:
    answer = asked(capsys, monkeypatch, shell, line)
    assert all(word in answer for word in expected) and others not in answer


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself_completes_with_the_script(herd: HerdCommand, tmp_path: Path) -> None:
    command = tmp_path / "herd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m herd "$@"\n')
    command.chmod(0o755)
    ask = f'COMP_WORDS=(herd mod); COMP_CWORD=1; _herd_completion "{command}"; echo "${{COMPREPLY[@]}}"'
    words = ["bash", "--norc", "-c", herd("completion", "bash").out + ask]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300)
    assert (done.stdout, done.stderr) == ("models\n", "")
