"""Settings on the command line: flag > variable > herd.toml > default, and `herd config show` says which it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.base.settings import SETTINGS
from herd.inference.params import SamplingParams
from herd.text.messages import Message


def test_every_setting_is_shown_with_its_value_and_source(herd: HerdCommand) -> None:
    result = herd("config", "show", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json == {name: {"value": setting.default, "source": "default"} for name, setting in SETTINGS.items()}


def test_the_source_is_the_variables_name_the_files_path_or_default(
    herd: HerdCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "herd.toml").write_text('temperature = 1\nmodel = "llama3.2:1b"\ntop_p = 0.5\n')
    monkeypatch.setenv("HERD_TEMPERATURE", "0.25")
    shown = herd("config", "show", "--json").json
    assert shown["temperature"] == {"value": 0.25, "source": "HERD_TEMPERATURE"}
    assert shown["model"] == {"value": "llama3.2:1b", "source": str(tmp_path / "herd.toml")}
    assert shown["top_p"] == {"value": 0.5, "source": str(tmp_path / "herd.toml")}
    assert shown["max_tokens"] == {"value": 512, "source": "default"}


def test_the_table_names_variable_and_meaning_too(herd: HerdCommand) -> None:
    header, *rows = herd("config", "show").out.splitlines()
    assert header.split() == ["setting", "value", "source", "variable", "what", "it", "is"]
    assert [row.split()[0] for row in rows] == list(SETTINGS)
    assert all(setting.variable in row and setting.help in row for setting, row in zip(SETTINGS.values(), rows, strict=True))


def test_the_working_folders_file_comes_before_the_homes(herd: HerdCommand, tmp_path: Path, herd_home: Path) -> None:
    herd_home.mkdir()
    (herd_home / "herd.toml").write_text("max_tokens = 7\n")
    assert herd("config", "show", "--json").json["max_tokens"] == {"value": 7, "source": str(herd_home / "herd.toml")}
    (tmp_path / "herd.toml").write_text("max_tokens = 9\n")
    assert herd("config", "show", "--json").json["max_tokens"]["value"] == 9


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, says: Any) -> dict[str, Any]:
    """What `herd run` asks with: model, place and parameters."""
    seen: dict[str, Any] = {}

    def load(path: Path, *, dtype: Any = None, device: Any = None, tp: int = 1, pp: int = 1) -> Any:
        llm = says("ok")
        seen.update(path=path, dtype=dtype, device=device)
        stream = llm.inference.chat

        def chat(request: Any) -> Any:
            seen["params"] = request.params
            return stream(request)

        llm.inference.chat = chat
        return llm

    monkeypatch.setattr("herd.inference.llm.LLM", load)
    monkeypatch.setattr("herd.cli.fits.check_fits", lambda *_, **__: None)
    return seen


def test_a_flag_wins_over_a_variable_that_over_the_file_that_over_the_default(
    herd: HerdCommand, tmp_path: Path, tiny_folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def temperature(*words: str) -> float:
        assert herd("run", "-m", tiny_folder, "x", *words).code == 0
        return asked["params"].temperature

    assert temperature() == SETTINGS["temperature"].default == SamplingParams().temperature
    (tmp_path / "herd.toml").write_text("temperature = 0.25\n")
    assert temperature() == 0.25
    monkeypatch.setenv("HERD_TEMPERATURE", "0.5")
    assert temperature() == 0.5
    assert temperature("--temperature", "0") == 0.0, "a flag of zero is a flag that was given"


def test_every_setting_of_a_request_reaches_it(
    herd: HerdCommand, tmp_path: Path, tiny_folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = f'model = "{tiny_folder}"\ndevice = "cpu"\ndtype = "bfloat16"\nthreads = 1\ntop_p = 0.5\nmax_tokens = 3\n'
    (tmp_path / "herd.toml").write_text(settings)
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    assert herd("run", "x").code == 0
    assert (asked["path"], asked["device"], asked["dtype"], threads) == (tiny_folder, "cpu", "bfloat16", [1])
    assert (asked["params"].top_p, asked["params"].max_tokens) == (0.5, 3)


def test_the_models_variable_names_the_model(herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_MODEL", str(tiny_folder))
    assert herd("run", "--max-tokens", "1", "--json", "x").code == 0
    assert herd("show", "--json").json["path"] == str(tiny_folder)
    assert herd("tokenizer", "encode", "a").out == "97\n"
    assert herd("run", "-m", "no-such-model", "x").code == 3


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("HERD_TEMPERATURE", "warm", "HERD_TEMPERATURE='warm' is not of type float"),
        ("HERD_MAX_TOKENS", "1.5", "HERD_MAX_TOKENS='1.5' is not of type int"),
        ("HERD_THREADS", "many", "HERD_THREADS='many' is not of type int"),
    ],
)
def test_a_variable_of_the_wrong_type_is_refused_by_name(
    herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, fragment: str
) -> None:
    monkeypatch.setenv(name, text)
    message, hint = herd("run", "-m", tiny_folder, "x").refusal(1)
    assert fragment in message and f"unset {name}" in hint
    assert herd("config", "show").code == 1


def test_a_flag_makes_a_wrong_variable_harmless(herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_TEMPERATURE", "warm")
    assert herd("run", "-m", tiny_folder, "--temperature", "0", "--max-tokens", "1", "x").code == 0


def test_the_answer_depends_on_the_setting_and_not_on_its_source(
    herd: HerdCommand, tiny_folder: Path, tiny_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_TEMPERATURE", "1.5")
    by_variable = herd("run", "-m", tiny_folder, "--seed", "2", "--max-tokens", "8", "--json", "x").json
    expected = tiny_llm.chat([Message.user("x")], SamplingParams(temperature=1.5, seed=2, max_tokens=8))
    assert by_variable["token_ids"] == list(expected.token_ids)
