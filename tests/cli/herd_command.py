"""Run herd's command line in this process or in one of its own, and a model that says what it is told and fails when it is told."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from herd.cli.app import run
from scripted import ScriptedModel  # pyright: ignore[reportMissingImports]

REFUSAL = re.compile(r"error: (?P<message>.+)\n\nhint: (?P<hint>.+)\n")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)

    def refusal(self, code: int) -> tuple[str, str]:
        """Message and hint of a command that was refused with an exit code: on stderr, in herd's form, and with no trace."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        found = REFUSAL.search(self.err)
        assert found is not None and self.err.endswith(found.group()), self.err
        return found["message"], found["hint"]


class TerminalInput(io.TextIOWrapper):
    """Standard input that is a terminal at which nobody types."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def isatty(self) -> bool:
        return True


class HerdCommand:
    """Runs a command line in this process. `stdin` is what is piped in; without it there is a terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str | Path, stdin: str | bytes | None = None) -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", TerminalInput() if data is None else io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
            self._capsys.readouterr()
            code = run([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Result(code=code, out=out, err=err)


def environment(**variables: str) -> dict[str, str]:
    """The environment of a herd in a process of its own: one thread, and what is given."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **variables}


def spawn(*arguments: str | Path, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> Result:
    """Run `python -m herd` in a process of its own."""
    words = [sys.executable, "-m", "herd", *map(str, arguments)]
    done = subprocess.run(words, input=stdin, capture_output=True, env=environment(**(variables or {})), timeout=300)
    return Result(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


class Talker(ScriptedModel):
    """A scripted model that raises `fails[n]` instead of giving its n-th token."""

    def __init__(self, script: Sequence[int], vocab_size: int, context: int, fails: Mapping[int, BaseException]) -> None:
        super().__init__(script, vocab_size, context)
        self.fails = dict(fails)

    def logits(self, hidden: Tensor) -> Tensor:
        """The next token of the script, or an error."""
        if self.calls in self.fails:
            raise self.fails.pop(self.calls)
        return super().logits(hidden)
