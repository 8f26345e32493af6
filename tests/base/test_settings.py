"""Settings: flag before variable before herd.toml before default, and each says where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.base.errors import ConfigError
from herd.base.settings import SETTINGS, find_file, read_file, resolve, resolve_all, value


@pytest.fixture(name="folder", autouse=True)
def folder_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, an empty home and no variables."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    return work


def source(name: str, flag: object = None) -> tuple[object, str]:
    resolved = resolve(name, flag)
    return resolved.value, resolved.source


def test_each_source_wins_over_those_after_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source("temperature") == (0.6, "default")
    (folder / "herd.toml").write_text("temperature = 0.2\n")
    assert source("temperature") == (0.2, str(folder / "herd.toml"))
    monkeypatch.setenv("HERD_TEMPERATURE", "0.3")
    assert source("temperature") == (0.3, "HERD_TEMPERATURE")
    assert source("temperature", 0.4) == (0.4, "flag")


def test_a_flag_of_nought_is_given_and_an_empty_variable_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_TEMPERATURE", "")
    assert source("temperature") == (0.6, "default")
    assert source("temperature", 0.0) == (0.0, "flag")


def test_the_working_folders_file_comes_before_the_homes(folder: Path, tmp_path: Path) -> None:
    assert find_file() is None
    assert read_file() == (None, {})
    home_file = tmp_path / "home" / "herd.toml"
    home_file.parent.mkdir()
    home_file.write_text("threads = 3\n")
    assert source("threads") == (3, str(home_file))
    (folder / "herd.toml").write_text("top_p = 1\n")
    assert source("threads") == (0, "default")
    assert source("top_p") == (1.0, str(folder / "herd.toml"))
    assert isinstance(value("top_p"), float)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_help_a_variable_and_a_default_of_its_type(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.help
    assert setting.variable == "HERD_" + name.upper()
    assert type(setting.default) is setting.kind


def test_all_settings_are_listed_in_order_with_the_flags_given() -> None:
    listed = resolve_all({"model": "tiny"})
    assert [resolved.name for resolved in listed] == list(SETTINGS)
    assert (listed[0].value, listed[0].source) == ("tiny", "flag")


def test_an_unknown_setting_is_refused_with_the_nearest(folder: Path) -> None:
    (folder / "herd.toml").write_text("temprature = 0.2\n")
    with pytest.raises(ConfigError, match="temprature") as refusal:
        value("temperature")
    assert refusal.value.hint == "did you mean 'temperature'?"


@pytest.mark.parametrize("text", ["threads = 'two'", "threads = 1.5", "threads = true", "model = 3", "temperature = true"])
def test_a_value_of_another_type_is_refused(text: str, folder: Path) -> None:
    (folder / "herd.toml").write_text(text + "\n")
    with pytest.raises(ConfigError, match="must be of type") as refusal:
        value("threads")
    assert refusal.value.hint


@pytest.mark.parametrize("content", [b"threads = ", b"\xff\xfe", b"[unclosed"])
def test_a_file_that_is_not_toml_is_refused(content: bytes, folder: Path) -> None:
    (folder / "herd.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="not TOML") as refusal:
        value("threads")
    assert refusal.value.hint


def test_a_variable_of_another_type_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_THREADS", "two")
    with pytest.raises(ConfigError, match="HERD_THREADS='two'") as refusal:
        value("threads")
    assert "HERD_THREADS" in (refusal.value.hint or "")
