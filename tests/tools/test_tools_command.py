"""`herd tools` and `herd code`: the listing and its reasons, calls, agreement, the index, and code with its exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import typer
from jail_fixtures import any_jail_spec  # pyright: ignore[reportMissingImports]
from test_mcp_client import PEER  # pyright: ignore[reportMissingImports]

from herd.cli.app import run
from herd.tools.mcp.config import McpServerConfig
from herd.tools.toolbox import ToolboxConfig, open_toolbox


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("BRAVE_SEARCH_API_KEY", "TAVILY_SEARCH_API_KEY", "WOLFRAM_ALPHA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Herd:
    """Runs a command line here; gives code, stdout and stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture(name="herd")
def herd_fixture(capsys: pytest.CaptureFixture[str]) -> Herd:
    return Herd(capsys)


@pytest.fixture(name="no_code")
def no_code_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_CODE_JAIL", "off")


@pytest.mark.usefixtures("no_code")
def test_the_list_says_what_there_is_and_why_the_rest_is_not(herd: Herd) -> None:
    code, out, err = herd("tools", "list")
    assert code == 0
    assert "clock" in out and "fetch_url" in out and "code_interpreter" not in out
    assert "builtin::code_interpreter: running code is switched off" in err
    assert "builtin::websearch: no provider; set BRAVE_SEARCH_API_KEY" in err
    listed = json.loads(herd("tools", "list", "--json")[1])
    assert {tool["name"]: tool["taint"] for tool in listed["tools"]}["fetch_url"] == ["reads_untrusted", "acts_outside"]
    assert set(listed["missing"]) == {"builtin::websearch", "builtin::wolfram_alpha", "builtin::files", "builtin::code_interpreter"}


@pytest.mark.usefixtures("no_code")
def test_keys_and_settings_bring_tools(herd: Herd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_SEARCH_API_KEY", "k")
    monkeypatch.setenv("WOLFRAM_ALPHA_API_KEY", "w")
    listed = json.loads(herd("tools", "list", "--json", "--files", tmp_path)[1])
    assert {tool["name"] for tool in listed["tools"]} >= {"web_search", "wolfram_alpha", "read_file", "list_files", "search_files"}
    assert set(listed["missing"]) == {"builtin::code_interpreter"}


@pytest.mark.usefixtures("no_code")
def test_a_call_as_a_model_would_make_it(herd: Herd, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
    assert herd("tools", "call", "read_file", '{"path": "a.txt"}', "--files", tmp_path)[:2] == (0, "hello\n")
    code, out, _ = herd("tools", "call", "read_file", '{"path": "../x"}', "--files", tmp_path, "--json")
    assert code == 1 and json.loads(out)["error_code"] == "tool"
    code, out, err = herd("tools", "call", "read_file", "{}", "--files", tmp_path)
    assert (code, out) == (1, "") and '"path" is a required property' in err
    assert herd("tools", "call", "raed_file", "{}", "--files", tmp_path)[0] == 3
    code, _, err = herd("tools", "call", "clock", "nonsense")
    assert code == 2 and "the arguments are not JSON" in err


@pytest.mark.usefixtures("no_code")
def test_an_index_makes_searches_work_offline(herd: Herd, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "llamas.txt").write_text("Llamas live in the Andes.", encoding="utf-8")
    code, out, err = herd("tools", "index", tmp_path / "library", "--output", tmp_path / "i.db", "--json")
    assert (code, json.loads(out)["num_passages"]) == (0, 1) and "wrote 1 passages" in err
    for tool in ("web_search", "brave_search", "knowledge_search"):
        code, out, _ = herd("tools", "call", tool, '{"query": "andes"}', "--index", tmp_path / "i.db")
        assert code == 0 and "Llamas live in the Andes." in out
    assert herd("tools", "index", tmp_path / "none", "--output", tmp_path / "j.db")[0] == 3


def mcp(tmp_path: Path) -> None:
    words = json.dumps([sys.executable, str(PEER), "stdio"])
    (tmp_path / "home" / "mcp.toml").write_text(f'[servers.peer]\ncommand = {words}\ntools = ["add"]\n', encoding="utf-8")


@pytest.mark.usefixtures("no_code")
def test_an_mcp_server_is_used_once_agreed_to(herd: Herd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mcp(tmp_path)
    assert "herd tools agree peer" in herd("tools", "list")[2]
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    code, out, _ = herd("tools", "agree", "peer")
    assert code == 5 and "add (new)" in out and "Adds two numbers." in out
    assert herd("tools", "call", "peer__add", '{"a": 1, "b": 2}')[0] == 3
    assert herd("tools", "agree", "peer", "--yes")[0] == 0
    assert herd("tools", "call", "peer__add", '{"a": 1, "b": 2}')[:2] == (0, "3\n")
    assert herd("tools", "agree", "pear", "--yes")[0] == 3


def test_the_doctor_tries_jails_and_servers(herd: Herd, tmp_path: Path) -> None:
    any_jail_spec()
    mcp(tmp_path)
    code, out, _ = herd("tools", "doctor")
    assert code == 0 and "bubblewrap:" in out and "landlock:" in out and "MCP server peer: 1 new" in out
    report = json.loads(herd("tools", "doctor", "--json")[1])
    assert report["jail"] in ("bubblewrap", "landlock") and len(report["jails"]) == 2


def test_the_doctor_fails_where_no_jail_works(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.tools.code.choose import JailReport

    broken = [JailReport(kind="bubblewrap", works=False, reason="broken", hint="mend it")]
    monkeypatch.setattr("herd.tools.code.choose.survey", lambda _: broken)
    code, out, err = herd("tools", "doctor")
    assert code == 5 and "broken" in out and "mend it" in out and "no jail works" in err


def test_code_and_its_exit_codes(herd: Herd, tmp_path: Path) -> None:
    any_jail_spec()
    assert herd("code", "--code", "print('hi')\n6 * 7")[:2] == (0, "hi\n42\n")
    code, _, err = herd("code", "--code", "1/0")
    assert code == 1 and "ZeroDivisionError" in err and "error: the code failed" in err
    code, _, err = herd("code", "--timeout", "0.5", "--code", "while True: pass")
    assert code == 1 and "was stopped" in err
    (tmp_path / "s.py").write_text("open('out.txt', 'w').write(open('in.txt').read().upper())", encoding="utf-8")
    (tmp_path / "in.txt").write_text("data", encoding="utf-8")
    assert herd("code", tmp_path / "s.py", "--attach", tmp_path / "in.txt", "--output", tmp_path / "got")[0] == 0
    assert (tmp_path / "got" / "out.txt").read_text(encoding="utf-8") == "DATA"
    code, _, err = herd("code", tmp_path / "s.py", "--attach", tmp_path / "in.txt", "--output", tmp_path / "got")
    assert code == 2 and "exists" in err
    value = json.loads(herd("code", "--json", "--code", "2")[1])
    assert (value["status"], value["result"]) == ("completed", "2")
    assert "\x1b" not in herd("code", "--code", "print('\\x1b[2J')")[1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("code", "no-such-file.py"), 3),
        (("code", "x.py", "--code", "1"), 2),
        (("code", "--code", "1", "--timeout", "0"), 2),
        (("code", "--code", "1", "--jail", "docker"), 1),
        (("code", "--code", "1", "--jail", "off"), 1),
        (("code", "--code", "1", "--python", "/nonexistent/python"), 3),
        (("tools", "serve", "--http", "--host", "0.0.0.0"), 2),
        (("tools", "serve", "--http", "--api-key-file", "none.txt"), 3),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_is_refused(herd: Herd, words: tuple[str, ...], code: int) -> None:
    got = herd(*words)
    assert got[0] == code and "hint: " in got[2]


def test_the_toolbox_runs_code_and_closes(tmp_path: Path) -> None:
    any_jail_spec()
    before = set(threading.enumerate())

    async def main() -> None:
        gone = McpServerConfig(name="gone", command=("/nonexistent",))
        box = await open_toolbox(ToolboxConfig(files_root=str(tmp_path / "none"), search_index=str(tmp_path / "i"), servers=(gone,)))
        try:
            assert (await box.registry.call("code_interpreter", {"code": "1 + 1"})).text == "completed\n[stdout]\n2\n[/stdout]"
            assert {"builtin::files", "builtin::rag", "mcp::gone"} <= set(box.missing)
        finally:
            await box.close()

    asyncio.run(main())
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("herd-code")]


def test_settings_of_the_toolbox_hide_keys() -> None:
    config: Any = ToolboxConfig(keys={"brave_search_api_key": "s3cret"})
    assert "s3cret" not in repr(config)
