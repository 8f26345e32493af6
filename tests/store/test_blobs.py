"""Bytes by id: whole or absent, in a folder and behind fsspec."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.base.errors import ConfigError, NotFoundError
from herd.store.blobs import Blobs, FolderBlobs, open_blobs


@pytest.fixture(params=["folder", "file", "memory", "local"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    places = {
        "folder": str(tmp_path / "files"),
        "file": f"file://{tmp_path}/files",
        "memory": f"memory://{tmp_path.name}",
        "local": f"local://{tmp_path}/files",
    }
    return open_blobs(places[request.param], tmp_path / "staging")


def test_what_is_put_comes_back_is_listed_and_goes(blobs: Blobs) -> None:
    blobs.put(b"abc", "file-1")
    blobs.put(b"", "file-2")
    assert (blobs.read("file-1"), blobs.size("file-1"), blobs.size("file-2")) == (b"abc", 3, 0)
    assert sorted(blobs.ids()) == ["file-1", "file-2"]
    blobs.delete("file-1")
    blobs.delete("file-1")
    assert blobs.size("file-1") is None and list(blobs.ids()) == ["file-2"]
    with pytest.raises(NotFoundError, match="the bytes of 'file-1' are gone"):
        blobs.open("file-1")


def test_what_is_staged_is_no_blob_and_is_swept_with_what_nobody_names(blobs: Blobs) -> None:
    blobs.staged("file-1").write_bytes(b"half")
    blobs.put(b"abc", "file-2")
    blobs.put(b"abc", "file-3")
    assert sorted(blobs.ids()) == ["file-2", "file-3"]
    assert blobs.orphans({"file-2"}) == ["file-3"]
    assert blobs.sweep({"file-2"}) == 2
    assert list(blobs.ids()) == ["file-2"] and not blobs.staged("file-1").exists()


def test_a_staged_file_is_adopted_and_gone_from_there(blobs: Blobs) -> None:
    path = blobs.staged("file-1")
    path.write_bytes(b"x" * 100_000)
    blobs.adopt(path, "file-1")
    assert not path.exists() and blobs.size("file-1") == 100_000
    assert (blobs.path("file-1") is not None) == isinstance(blobs, FolderBlobs)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a\\b", "", ".hidden", "a\0", "x" * 101, "ä"])
def test_an_id_that_is_a_path_is_none_of_ours(blobs: Blobs, name: str) -> None:
    for act in (blobs.open, blobs.size, blobs.delete, blobs.staged):
        with pytest.raises(AssertionError):
            act(name)


def test_a_place_whose_driver_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot keep files at 'nosuch://x'"):
        open_blobs("nosuch://x", tmp_path)
