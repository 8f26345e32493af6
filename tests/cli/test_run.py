"""`herd run`: flags and JSON are a contract."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from herd.cli.app import run


def test_first(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "-m", str(tiny_folder), "--max-tokens", "5", "--seed", "1", "hello"]) == 0
    print(capsys.readouterr())
