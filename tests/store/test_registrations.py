"""What clients register, in the database: kept over a restart, each owner's own, copied and checked, and taken over from a herd's files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from herd.base.errors import ConfigError
from herd.stack.errors import RequestError
from herd.stack.registrations import KINDS, Registrations
from herd.stack.takeover import take_over
from herd.store import registrations as rows
from herd.store.backup import back_up
from herd.store.check import check
from herd.store.state import State
from herd.store.vectors import Vectors

SHIELD = {"identifier": "mine", "params": {"threshold": 0.5}}
GROUP = {"uri": "https://example.com/mcp", "headers": {"Authorization": "Bearer x"}, "args": {}}
PROMPT = {"default": 1, "versions": [{"prompt": "Grüße, {{ name }}: สวัสดี \0", "variables": ["name"]}]}


def digest(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def old_files(folder: Path, owner: str = "ann") -> Path:
    """What a herd of revision 0004 left."""
    (folder / "registered").mkdir(parents=True)
    things = {"shields": {"mine": SHIELD}, "toolgroups": {"web": GROUP}, "prompts": {"pmpt_1": PROMPT}}
    path = folder / "registered" / f"{digest(owner)}.json"
    path.write_text(json.dumps(things))
    agreed = digest(owner + "\0web")
    (folder / "registered" / f"agreed-{agreed}.json").write_text(json.dumps({"web": {"search": "d1", "fetch": "d2"}}))
    return path


def test_what_was_registered_is_there_after_a_restart_in_its_order(state: State) -> None:
    first = Registrations(state.database)
    for number in range(5):
        first.put("ann", "prompts", f"pmpt_{9 - number}", {**PROMPT, "number": number})
    first.put("ann", "shields", "mine", SHIELD)
    first.put("ann", "prompts", "pmpt_8", {"default": 2, "versions": [1, 2]}, expected={**PROMPT, "number": 1})
    assert first.drop("ann", "prompts", "pmpt_7") and not first.drop("ann", "prompts", "pmpt_7")
    for kept in (first, Registrations(state.database)):
        assert list(kept.all("ann", "prompts")) == ["pmpt_9", "pmpt_8", "pmpt_6", "pmpt_5"]
        assert kept.get("ann", "prompts", "pmpt_8") == {"default": 2, "versions": [1, 2]}
        assert kept.get("ann", "prompts", "pmpt_9") == {**PROMPT, "number": 0}
        assert kept.get("ann", "shields", "mine") == SHIELD


def test_each_owner_finds_their_own_alone(state: State) -> None:
    kept = Registrations(state.database)
    kept.put("ann", "shields", "mine", SHIELD)
    kept.put("bob", "shields", "mine", {**SHIELD, "params": {}})
    assert not kept.drop("", "shields", "mine") and kept.drop("ann", "shields", "mine")
    again = Registrations(state.database)
    assert again.get("bob", "shields", "mine") == {**SHIELD, "params": {}}
    assert all(again.all("ann", kind) == {} for kind in KINDS)


def test_a_change_of_what_has_changed_meanwhile_is_refused_and_changes_nothing(state: State) -> None:
    kept = Registrations(state.database)
    kept.put("ann", "prompts", "p", PROMPT)
    for expected, told in ((None, "already"), ({"default": 7}, "changed meanwhile")):
        with pytest.raises(RequestError, match=told):
            kept.put("ann", "prompts", "p", {"default": 1, "versions": []}, expected=expected)
    assert Registrations(state.database).get("ann", "prompts", "p") == PROMPT


def test_more_than_fits_is_refused_before_it_is_kept(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.stack.registrations.MAX_OWNER_BYTES", 1000)
    kept = Registrations(state.database)
    with pytest.raises(RequestError, match="1,000 bytes"):
        kept.put("ann", "prompts", "p", {"default": 1, "versions": ["x" * 1000]})
    monkeypatch.setitem(__import__("herd.stack.registrations", fromlist=["MOST"]).MOST, "shields", 1)
    kept.put("ann", "shields", "a", SHIELD)
    with pytest.raises(RequestError, match="the most there can be"):
        kept.put("ann", "shields", "b", SHIELD)
    assert rows.of_owner(state.database, "ann") == [("shields", "a", SHIELD)]


def test_without_a_database_it_is_kept_in_memory() -> None:
    kept = Registrations()
    kept.put("ann", "shields", "mine", SHIELD)
    assert kept.get("ann", "shields", "mine") == SHIELD and not kept.outlives_a_restart
    assert Registrations().all("ann", "shields") == {}


def test_files_of_an_earlier_herd_are_taken_over_once(state: State) -> None:
    path = old_files(state.folder)
    assert take_over(state.database, state.folder, ["", "ann"]) == 3
    assert not (state.folder / "registered").exists()
    kept = Registrations(state.database)
    assert kept.get("ann", "prompts", "pmpt_1") == PROMPT and kept.get("ann", "shields", "mine") == SHIELD
    assert kept.get("ann", "toolgroups", "web") == {**GROUP, "agreed": {"search": "d1", "fetch": "d2"}}
    assert take_over(state.database, state.folder, ["", "ann"]) == 0 and not path.exists()


def test_a_crash_between_rows_and_files_takes_nothing_twice(state: State) -> None:
    old_files(state.folder)
    kept = shutil.copytree(state.folder / "registered", state.folder.parent / "kept")
    take_over(state.database, state.folder, ["ann"])
    Registrations(state.database).put("ann", "prompts", "pmpt_1", {**PROMPT, "default": 1, "versions": [1, 2]}, expected=PROMPT)
    shutil.copytree(kept, state.folder / "registered")
    assert take_over(state.database, state.folder, ["ann"]) == 0
    changed = Registrations(state.database).get("ann", "prompts", "pmpt_1")
    assert changed is not None and changed["versions"] == [1, 2], "the row is newer than the file"


def test_files_of_a_key_that_is_not_there_stay(state: State) -> None:
    path = old_files(state.folder)
    assert take_over(state.database, state.folder, ["", "bob"]) == 0 and path.exists()
    assert take_over(state.database, state.folder, ["ann"]) == 3


@pytest.mark.parametrize("damage", ["{", "[]", '{"shields": []}'])
def test_a_damaged_file_is_told_and_stays(state: State, damage: str) -> None:
    path = old_files(state.folder)
    path.write_text(damage)
    with pytest.raises(ConfigError, match="is damaged"):
        take_over(state.database, state.folder, ["ann"])
    assert path.exists() and rows.of_owner(state.database, "ann") == []


def test_a_backup_holds_them(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    Registrations(state.database).put("ann", "toolgroups", "web", GROUP)
    back_up(state.database, state.blobs, state.folder, tmp_path / "copy")
    state.close()
    copy = State(tmp_path / "copy")
    assert Registrations(copy.database).get("ann", "toolgroups", "web") == GROUP
    copy.close()


@pytest.mark.parametrize(
    ("kind", "thing", "told"),
    [
        ("prompts", {"default": 3, "versions": [1]}, "its default version is 3, it has 1"),
        ("prompts", {"default": "1", "versions": [1]}, "its 'default' is missing or of another kind"),
        ("toolgroups", {"uri": "x", "args": {}}, "its 'headers' is missing or of another kind"),
        ("shields", [], "it is no object"),
        ("hats", {}, "there is no kind 'hats'"),
    ],
)
def test_the_check_sees_what_no_server_could_use(state: State, kind: str, thing: Any, told: str) -> None:
    Registrations(state.database).put("ann", "prompts", "fine", PROMPT)
    with state.database.connect() as connection:
        values = {"kind": kind, "thing": json.dumps(thing)}
        connection.execute(
            text("INSERT INTO registrations (owner, kind, name, created, thing) VALUES ('ann', :kind, 'odd', 1.0, :thing)"), values
        )
    found = check(state.database, state.blobs, Vectors(state.indexes_dir))
    assert found.counts["registrations"] == 2
    assert [(one.kind, one.subject, one.message) for one in found.problems] == [("registration", f"{kind}/odd", told)]
