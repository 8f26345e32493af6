"""Writes are whole or absent, whatever happens between their beginning and their rename."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from herd.base.atomic import atomic_directory, atomic_file
from herd.base.errors import NotFoundError, UsageError

KILLED_FILE = """
import os, signal, sys
from herd.base.atomic import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_FOLDER = """
import os, signal, sys
from herd.base.atomic import atomic_directory
with atomic_directory(sys.argv[1], overwrite=True) as temporary:
    (temporary / "a").write_text("half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(program: str, target: Path) -> None:
    result = subprocess.run([sys.executable, "-c", program, str(target)], check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_parents_and_readable_by_others(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o644
    assert names(target.parent) == ["a.txt"]


def test_an_error_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="power"), atomic_file(target) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("power")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_interruption_by_the_keyboard_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(target, overwrite=True) as temporary:
        (temporary / "a").write_text("half")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_kill_between_write_and_rename_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    kill_while_writing(KILLED_FILE, target)
    assert target.read_text() == "old"


def test_a_kill_between_write_and_rename_leaves_no_half_written_file(tmp_path: Path) -> None:
    kill_while_writing(KILLED_FILE, tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
    assert all(name.startswith(".a.txt.partial-") for name in names(tmp_path))


def test_a_kill_between_write_and_rename_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    kill_while_writing(KILLED_FOLDER, target)
    assert (target / "a").read_text() == "old"
    assert names(target) == ["a"]


def test_a_folder_that_is_not_empty_is_refused_and_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(UsageError, match="not empty") as refusal, atomic_directory(target):
        raise AssertionError("the block must not run")
    assert "--overwrite" in (refusal.value.hint or "")
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "b").write_text("new")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["model"]


def test_an_empty_folder_and_a_file_in_the_way_count_as_free_and_as_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as temporary:
        (temporary / "a").write_text("new")
    assert names(tmp_path / "empty") == ["a"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError), atomic_directory(tmp_path / "file"):
        pass


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    rename = os.rename

    def failing(source: Path, destination: Path) -> None:
        if ".partial-" in Path(source).name:
            raise OSError("no space left")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space"), atomic_directory(target, overwrite=True) as temporary:
        (temporary / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.fixture(name="closed_folder")
def closed_folder_fixture(tmp_path: Path) -> Iterator[Path]:
    """A path below a file, where nothing can be made: permissions would not stop root."""
    (tmp_path / "file").write_text("")
    yield tmp_path / "file"
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_place_that_cannot_be_written_is_a_named_error(closed_folder: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot write"), atomic_file(closed_folder / "a"):
        pass
    with pytest.raises(NotFoundError, match="cannot write"), atomic_directory(closed_folder / "model"):
        pass
