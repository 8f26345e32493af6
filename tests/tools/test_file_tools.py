"""Files: no way out of the root (traversal, links, devices, races), archives that lie, and the index of texts."""

# ruff: noqa: E501, SIM105

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError, NotFoundError
from herd.tools.errors import ToolError
from herd.tools.files.archive import MAX_MEMBERS, members, read_member
from herd.tools.files.index import FileIndex, build_index, cut_passages
from herd.tools.files.root import Root
from herd.tools.files.tools import ListFilesTool, ReadFileTool, SearchFilesTool
from herd.tools.knowledge import ClockTool, KnowledgeSearchTool
from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import ToolContext, ToolResult
from herd.tools.web.inflate import TooLargeError


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("first line\nsecond Llama line\n", encoding="utf-8")
    (folder / "sub" / "b.md").write_text("# Llamas\nThe herd grazes.\n", encoding="utf-8")
    (folder / "inside").symlink_to("sub/b.md")
    (folder / "outside").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to("..")
    (folder / ".hidden").write_text("hidden llama", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret llama", encoding="utf-8")
    (tmp_path / "shared-too").mkdir()
    (tmp_path / "shared-too" / "c.txt").write_text("secret", encoding="utf-8")
    return folder


def call(folder: Path, name: str, **arguments: Any) -> ToolResult:
    root = Root(folder)
    registry = Registry([ToolGroup(name="f", description="", tools=(ListFilesTool(root), ReadFileTool(root), SearchFilesTool(root)))])
    return asyncio.run(registry.call(name, arguments))


def test_reading_and_a_link_that_stays_inside(folder: Path) -> None:
    assert call(folder, "read_file", path="a.txt").text == "first line\nsecond Llama line\n"
    assert call(folder, "read_file", path="inside").text == "# Llamas\nThe herd grazes.\n"
    assert call(folder, "read_file", path="sub/../a.txt").ok
    assert call(folder, "read_file", path="a.txt", first_line=2, num_lines=1).text == "second Llama line\n"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "outside", "up/secret.txt", "/etc/passwd", "sub/../../secret.txt", "../shared-too/c.txt", "../shared/../secret.txt",
        "a.txt\0", "a.txt/../../secret.txt", "./../secret.txt", "sub/....//....//secret.txt", "~/x", "..", "\udcff", "x" * 5000, "no-such-file",
        "..\\secret.txt", "%2e%2e/secret.txt", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_traversal_has_one_answer_whatever_is_there(folder: Path, path: str) -> None:
    root = Root(folder)
    with pytest.raises(ToolError, match=r"there is nothing at|is no plain file"):
        root.open(path)
    result = call(folder, "read_file", path=path)
    assert not result.ok and "secret llama" not in result.text and str(folder) not in result.text


def test_only_plain_files_are_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    started = time.monotonic()
    for path in ("pipe", "sub", ""):
        assert not call(folder, "read_file", path=path).ok
    assert time.monotonic() - started < 30


def test_a_folder_swapped_for_a_link_is_not_followed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race between the check and the opening: after the check, the folder becomes a link to the outside."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "b.md").write_text("secret", encoding="utf-8")
    root, real = Root(folder), Root.relative

    def swapped(self: Root, path: str) -> str:
        below = real(self, path)
        os.rename(folder / "sub", folder / "was")
        (folder / "sub").symlink_to(tmp_path / "evil")
        return below

    monkeypatch.setattr(Root, "relative", swapped)
    with pytest.raises(ToolError, match="there is nothing"):
        root.open("sub/b.md")


def test_a_race_that_goes_on_gives_no_secret(folder: Path, tmp_path: Path) -> None:
    root, stop = Root(folder), threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for target in ("a.txt", "../secret.txt"):
                (folder / "new").symlink_to(target)
                os.replace(folder / "new", folder / "race")

    (folder / "race").symlink_to("a.txt")
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(500):
            try:
                assert b"secret" not in root.read("race", limit=100)[0]
            except ToolError:
                continue
    finally:
        stop.set()
        thread.join()


def test_listing_leaves_out_links_and_hidden_names(folder: Path) -> None:
    assert call(folder, "list_files").text == "sub/\na.txt  29"
    assert call(folder, "list_files", deep=True).text == "sub/\na.txt  29\nsub/b.md  26"
    assert call(folder, "list_files", path="up").error_code == "tool"
    assert call(folder, "list_files", path="a.txt").error_code == "tool"


def test_a_long_listing_says_that_there_is_more(folder: Path) -> None:
    for number in range(600):
        (folder / f"f{number}").touch()
    result = call(folder, "list_files")
    assert result.truncated and result.data["has_more"] and len(result.data["entries"]) == 500


def test_searching_finds_lines_and_never_what_is_outside(folder: Path) -> None:
    result = call(folder, "search_files", text="LLAMA")
    assert [(hit["path"], hit["line"]) for hit in result.data["hits"]] == [("a.txt", 2), ("sub/b.md", 1)]
    assert call(folder, "search_files", text="(.*").text == "[nothing found]"


def test_a_binary_file_is_no_text(folder: Path) -> None:
    (folder / "x.bin").write_bytes(b"\0\1\2")
    assert "is no text" in call(folder, "read_file", path="x.bin").text


def test_a_root_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Root(tmp_path / "none")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def test_archives_are_listed_and_read(folder: Path) -> None:
    held = {"x/one.txt": b"one", "../../climb.txt": b"two"}
    (folder / "z.zip").write_bytes(zipped(held))
    (folder / "t.tar").write_bytes(tarred(held, "w"))
    (folder / "t.tar.gz").write_bytes(tarred(held, "w:gz"))
    for name in ("z.zip", "t.tar", "t.tar.gz"):
        assert [member["name"] for member in call(folder, "read_file", path=name).data["members"]] == list(held)
        for member, data in held.items():
            assert call(folder, "read_file", path=name, member=member).text == data.decode()
        assert "holds no file" in call(folder, "read_file", path=name, member="none").text
    assert "holds no file" in call(folder, "read_file", path="t.tar", member="link").text
    assert sorted(path.name for path in folder.parent.iterdir()) == ["secret.txt", "shared", "shared-too"]


def test_a_zip_bomb_is_stopped_at_the_limit(folder: Path) -> None:
    bomb = zipped({"bomb": bytes(100 << 20)})
    assert len(bomb) < 200_000
    with pytest.raises(TooLargeError, match="over the limit of 1000000 bytes"):
        read_member("z.zip", bomb, "bomb", limit=1_000_000)
    (folder / "z.zip").write_bytes(bomb)
    result = call(folder, "read_file", path="z.zip", member="bomb")
    assert (result.ok, result.error_code) == (False, "too_large")


def test_a_gzip_and_a_tar_bomb_are_stopped(folder: Path) -> None:
    import gzip

    (folder / "g.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    assert call(folder, "read_file", path="g.gz", member="g").error_code == "too_large"
    packed = tarred({"big": bytes(80 << 20)}, "w:gz")
    with pytest.raises(TooLargeError):
        members("t.tar.gz", packed, limit=1000)


def test_a_zip_that_lies_about_its_sizes_is_counted_by_what_comes_out() -> None:
    data = bytearray(zipped({"bomb": bytes(5 << 20)}))
    # The central directory's claim of the unpacked size: 24 bytes after its signature.
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = (10).to_bytes(4, "little")
    try:
        assert len(read_member("z.zip", bytes(data), "bomb", limit=1000)) <= 1000
    except ToolError:
        pass


def test_an_archive_of_very_many_members_is_refused() -> None:
    with pytest.raises(TooLargeError, match=f"at most {MAX_MEMBERS}"):
        members("z.zip", zipped({str(number): b"" for number in range(MAX_MEMBERS + 1)}), limit=1000)


@pytest.mark.parametrize("name", ["z.zip", "t.tar", "t.tar.gz", "g.gz"])
@given(data=st.binary(max_size=400))
def test_a_damaged_archive_is_refused(name: str, data: bytes) -> None:
    for action in (lambda: members(name, data, limit=1000), lambda: read_member(name, data, "x", limit=1000)):
        try:
            action()
        except ToolError:
            continue


def test_an_encrypted_zip_is_refused() -> None:
    data = bytearray(zipped({"x": b"y"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    with pytest.raises(ToolError, match="damaged, encrypted"):
        read_member("z.zip", bytes(data), "x", limit=100)


@pytest.fixture(name="index")
def index_fixture(tmp_path: Path) -> FileIndex:
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "llamas.md").write_text("Llamas live in the Andes.\n" * 3, encoding="utf-8")
    (folder / "bread.txt").write_text("Brød bakes at 220 degrees. Café au lait.", encoding="utf-8")
    (folder / "page.html").write_text("<title>Alpacas</title><script>llamas llamas</script><p>Alpacas give wool.</p>", encoding="utf-8")
    (folder / "thai.txt").write_text("ลามะอาศัยอยู่ในเทือกเขาแอนดีส", encoding="utf-8")
    (folder / "skip.bin").write_bytes(b"llamas\0")
    assert build_index(folder, tmp_path / "index.db") == 4
    return FileIndex(tmp_path / "index.db")


def test_the_index_ranks_by_words(index: FileIndex) -> None:
    assert [passage.source for passage in index.search("where do llamas live?", 5)] == ["llamas.md#1"]
    assert index.search("cafe", 5)[0].source == "bread.txt#1"
    assert index.search("wool", 5)[0].title == "Alpacas"
    assert index.search("nothingatall", 5) == []


def test_scripts_without_spaces_are_found(index: FileIndex) -> None:
    assert index.search("เทือกเขา", 5)[0].source == "thai.txt#1"


@given(query=st.text(max_size=80))
def test_no_query_is_syntax(query: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "shared-index.db"
    if not path.exists():
        folder = tmp_path_factory.mktemp("texts")
        (folder / "a.txt").write_text('a "quoted" AND OR NOT NEAR(b) col:x * ^', encoding="utf-8")
        build_index(folder, path)
    for text in (query, f'"{query}', f"{query}*", f"text:{query} OR"):
        FileIndex(path).search(text, 3)


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no index"):
        FileIndex(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database " * 100, encoding="utf-8")
    with pytest.raises(ConfigError, match="is no index of herd"):
        FileIndex(tmp_path / "text.db")


def test_an_index_cannot_be_changed_by_a_search(index: FileIndex) -> None:
    before = index.path.read_bytes()
    index.search("llamas'); DROP TABLE words; --", 3)
    assert index.path.read_bytes() == before


@given(st.text(max_size=3000), st.integers(20, 200))
def test_passages_are_the_text(text: str, limit: int) -> None:
    pieces = list(cut_passages(text, limit))
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_knowledge_search_gives_passages_with_sources(index: FileIndex) -> None:
    registry = Registry([ToolGroup(name="k", description="", tools=(KnowledgeSearchTool(index), ClockTool()))])
    result = asyncio.run(registry.call("knowledge_search", {"query": "Andes"}, ToolContext()))
    assert result.data["passages"][0]["source"] == "llamas.md#1"
    assert asyncio.run(registry.call("clock", {"timezone": "Asia/Kolkata"})).data["iso"].endswith("+05:30")
    assert asyncio.run(registry.call("clock", {})).data["iso"].endswith("+00:00")
    for zone in ("../../etc/passwd", "Mars/Olympus", "\0"):
        assert asyncio.run(registry.call("clock", {"timezone": zone})).error_code == "tool"
