"""`herd db`: upgrade, backup and check from the command line, on a state directory of an earlier herd."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

OLD = Path(__file__).parents[1] / "golden" / "server_v1.sql"


def old_state(folder: Path) -> Path:
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "file-1").write_bytes(b'{"custom_id": "a"}\n')
    (folder / "files" / "file-2").write_bytes(b"{}\n")
    with closing(sqlite3.connect(folder / "server.db")) as database:
        database.executescript(OLD.read_text(encoding="utf-8"))
    return folder


def test_an_old_state_is_upgraded_copied_and_looked_through(herd: HerdCommand, tmp_path: Path) -> None:
    folder, copy = str(old_state(tmp_path / "state")), str(tmp_path / "copy")
    told = herd("db", "check", "--state-dir", folder)
    assert told.code == 5 and "herd db upgrade" in told.out and "1 things are wrong" in told.err
    upgraded = json.loads(herd("db", "upgrade", "--state-dir", folder, "--json").out)
    assert upgraded["before"] == "unversioned" and upgraded["after"] >= "0002"
    assert "already" in herd("db", "upgrade", "--state-dir", folder).out
    copied = json.loads(herd("db", "backup", copy, "--state-dir", folder, "--json").out)
    assert (copied["num_files"], copied["size_bytes"], copied["deleted_meanwhile"]) == (2, 22, [])
    for place in (folder, copy):
        found = herd("db", "check", "--deep", "--state-dir", place, "--json")
        assert (found.code, json.loads(found.out)["ok"], json.loads(found.out)["counts"]["files"]) == (0, True, 2)
    (tmp_path / "copy" / "files" / "file-1").unlink()
    lost = herd("db", "check", "--state-dir", copy, "--json")
    assert lost.code == 5
    assert [(one["kind"], one["subject"]) for one in json.loads(lost.out)["problems"]] == [("missing", "file-1")]
    again = herd("db", "backup", copy, "--state-dir", folder)
    assert again.code == 2 and "exists and is not empty" in again.err


def test_a_folder_without_a_server_is_told(herd: HerdCommand, tmp_path: Path) -> None:
    for words in (("db", "check"), ("db", "backup", str(tmp_path / "copy"))):
        told = herd(*words, "--state-dir", str(tmp_path / "none"))
        assert told.code == 3 and "there is no server's database" in told.err and "--state-dir" in told.err
