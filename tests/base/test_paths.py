"""Where herd keeps things: one variable moves all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import herd
from herd.base.paths import bundled_model, home, models_dir


def test_home_is_in_the_users_folder_unless_the_variable_moves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HERD_HOME", raising=False)
    assert home() == tmp_path / ".herd"
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"
    assert models_dir() == tmp_path / "elsewhere" / "models"


def test_an_empty_variable_counts_as_none_and_a_tilde_is_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERD_HOME", "")
    assert home() == tmp_path / ".herd"
    monkeypatch.setenv("HERD_HOME", "~/here")
    assert home() == tmp_path / "here"


def test_the_bundled_model_ships_inside_the_package() -> None:
    assert herd.__file__ is not None
    assert bundled_model() == Path(herd.__file__).parent / "cria"
