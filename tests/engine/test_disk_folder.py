"""The folder of blocks: what it holds, what it deletes and never touches, its limit, its secret."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from herd.base.errors import ConfigError
from herd.engine.disk import folder as module
from herd.engine.disk.block_file import BlockFormat
from herd.engine.disk.build import open_secret
from herd.engine.disk.folder import BlockFolder, minute_now, stamp_ns
from herd.engine.disk.secret import folder_secret

STATE, OTHER = "ab" * 16, "cd" * 16
CONTENT = bytes(range(100))
SIZE = BlockFormat(layout="x", content_bytes=100, key=bytes(32)).file_bytes


def open_at(root: Path, *, state: str = STATE, max_blocks: int = 1000) -> BlockFolder:
    format = BlockFormat(layout="x", content_bytes=len(CONTENT), key=bytes(32))
    return BlockFolder(root, state, format, max_bytes=max_blocks * SIZE)


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def put(folder: BlockFolder, number: int, *, used_ns: int | None = None) -> bool:
    return folder.write(digest(number), memoryview(CONTENT), stamp_ns(minute_now(), number) if used_ns is None else used_ns)


def held(root: Path) -> list[int]:
    return sorted(int(path.stem, 16) for path in root.glob("*/*.kv"))


def test_a_block_is_found_by_whoever_opens_the_folder_again(tmp_path: Path) -> None:
    assert put(open_at(tmp_path), 7)
    folder = open_at(tmp_path)
    assert folder.has(digest(7)) and not folder.has(digest(8))
    assert folder.read(digest(7), 5) == CONTENT and folder.read(digest(8), 5) is None
    assert folder.num_damaged == 0
    assert (tmp_path / STATE / f"{digest(7).hex()}.kv").stat().st_mtime_ns == 5, "a read is a use"


def test_a_block_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    folder = open_at(tmp_path)
    assert put(folder, 1) and not put(folder, 1)


def test_blocks_of_another_state_are_not_there(tmp_path: Path) -> None:
    put(open_at(tmp_path), 1)
    assert not open_at(tmp_path, state=OTHER).has(digest(1))


def test_only_the_owner_can_read_what_was_written(tmp_path: Path) -> None:
    put(open_at(tmp_path), 1)
    assert stat.S_IMODE((tmp_path / STATE).stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / STATE).iterdir())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x", lambda data: b"\0" * len(data)])
def test_a_damaged_file_is_not_there_and_goes(tmp_path: Path, damage: object) -> None:
    folder = open_at(tmp_path)
    put(folder, 1)
    path = tmp_path / STATE / f"{digest(1).hex()}.kv"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert folder.read(digest(1), 5) is None
    assert folder.num_damaged == 1 and not path.exists()
    assert put(folder, 1) and folder.read(digest(1), 5) == CONTENT


def test_the_limit_holds_over_all_states_and_the_oldest_go(tmp_path: Path) -> None:
    for number in range(20):
        put(open_at(tmp_path, state=OTHER), number, used_ns=number)
    folder = open_at(tmp_path, max_blocks=32)
    for number in range(20, 60):
        assert put(folder, number, used_ns=number)
        assert len(held(tmp_path)) <= 32
    assert held(tmp_path) == list(range(60 - len(held(tmp_path)), 60))
    assert folder.num_evicted == 60 - len(held(tmp_path))


def test_a_block_that_was_used_stays(tmp_path: Path) -> None:
    folder = open_at(tmp_path, max_blocks=16)
    for number in range(10):
        put(folder, number, used_ns=number)
    folder.read(digest(0), 100)
    assert folder.touch(digest(1), 101) and not folder.touch(digest(99), 101)
    for number in range(10, 20):
        put(folder, number, used_ns=number)
    assert held(tmp_path)[:2] == [0, 1] and 2 not in held(tmp_path)


def test_of_one_prefix_the_end_goes_first_and_of_two_the_older() -> None:
    assert stamp_ns(5, 0) > stamp_ns(5, 1) > stamp_ns(5, 131_071) > stamp_ns(4, 0)


def test_two_that_write_at_once_keep_the_limit(tmp_path: Path) -> None:
    folders = [open_at(tmp_path, max_blocks=64) for _ in range(2)]
    most = 0

    def fill(first: int) -> None:
        nonlocal most
        for number in range(first, first + 150):
            put(folders[first // 1000], number)
            most = max(most, len(held(tmp_path)))

    threads = [threading.Thread(target=fill, args=(first,)) for first in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 32 < most <= 64


def test_what_a_process_that_died_left_goes_and_nothing_else_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / STATE
    home.mkdir()
    part = home / f"{digest(1).hex()}.123-4.tmp"
    mine = [tmp_path / "notes.txt", home / "notes.txt", tmp_path / "photos" / f"{digest(2).hex()}.kv", home / "abc.kv"]
    mine[2].parent.mkdir()
    for path in [part, *mine]:
        path.write_bytes(b"x" * 9000)
    put(open_at(tmp_path, max_blocks=8), 3)
    assert part.exists(), "it may be in the making"
    later = time.time() + 3600
    monkeypatch.setattr(module.time, "time", lambda: later)
    folder = open_at(tmp_path, max_blocks=8)
    for number in range(4, 30):
        put(folder, number)
    assert not part.exists() and all(path.exists() for path in mine)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        put(open_at(tmp_path), 1)
    assert not list((tmp_path / STATE).iterdir())


def test_a_disk_that_cannot_read_has_nothing(tmp_path: Path) -> None:
    folder = open_at(tmp_path)
    (tmp_path / STATE / f"{digest(1).hex()}.kv").mkdir(parents=True)
    assert folder.read(digest(1), 5) is None and folder.num_damaged == 0


def test_the_secret_is_made_once_and_is_its_owner_s(tmp_path: Path) -> None:
    keys = {folder_secret(tmp_path) for _ in range(3)}
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_all_who_make_the_secret_at_once_get_the_same(tmp_path: Path) -> None:
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(folder_secret(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8 and len(set(keys)) == 1


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder_secret(tmp_path)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="0644, it must be 0600"):
        open_secret(tmp_path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "key").write_bytes(bytes(size))
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ConfigError, match="a key has 32") as caught:
        open_secret(tmp_path)
    assert caught.value.hint is not None and "delete it" in caught.value.hint


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        open_secret(tmp_path / "file")


def test_without_a_secret_and_no_way_to_write_one_there_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    assert open_secret(tmp_path) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
