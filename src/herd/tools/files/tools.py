"""`list_files`, `read_file` and `search_files` over one root."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from herd.tools.errors import ToolError
from herd.tools.files.archive import MAX_ARCHIVE_BYTES, is_archive, members, read_member
from herd.tools.files.root import Root
from herd.tools.tool import Taint, ToolContext, ToolLimits, ToolResult

MAX_FILE_BYTES = 8 * 1024 * 1024
_MAX_LISTED = 500
_MAX_HITS = 50
_MAX_SEARCHED_BYTES = 64 * 1024 * 1024
_SHOWN_CHARS = 240


class _FileTool:
    # A shared folder is private data, and whoever filled it may be a stranger.
    taint = Taint(reads_untrusted=True, reads_private=True)
    limits = ToolLimits(timeout_s=30.0)

    def __init__(self, root: Root) -> None:
        self._root = root


class ListFilesTool(_FileTool):
    """Lists a folder."""

    name = "list_files"
    description = "Lists the files and folders of a folder, with sizes in bytes."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "The folder, relative to the shared one; the shared one itself if left out."},
            "deep": {"type": "boolean", "description": "Also list what is in the folders below."},
        },
        "additionalProperties": False,
    }

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """List `path`."""
        return await asyncio.to_thread(self._list, arguments.get("path", ""), arguments.get("deep", False))

    def _list(self, path: str, deep: bool) -> ToolResult:
        found, more = [], False
        for entry in self._root.entries(path, deep=deep):
            if len(found) == _MAX_LISTED:
                more = True
                break
            found.append({"path": entry.path, "type": "folder" if entry.is_folder else "file", "size_bytes": entry.size_bytes})
        lines = [f"{item['path']}/" if item["type"] == "folder" else f"{item['path']}  {item['size_bytes']}" for item in found]
        if more:
            lines.append(f"[more than {_MAX_LISTED} entries: list a folder below]")
        return ToolResult(text="\n".join(lines) or "[the folder is empty]", data={"entries": found, "has_more": more}, truncated=more)


class ReadFileTool(_FileTool):
    """Reads a text file, or a file in an archive."""

    name = "read_file"
    description = "Reads a text file. For a .zip, .tar, .tar.gz or .gz it lists what the archive holds, or reads the member that is named."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "The file, relative to the shared folder.", "minLength": 1},
            "member": {"type": "string", "description": "A file in the archive at path."},
            "first_line": {"type": "integer", "minimum": 1, "description": "The line to begin with; 1 if left out."},
            "num_lines": {"type": "integer", "minimum": 1, "maximum": 10_000, "description": "How many lines; all if left out."},
        },
        "required": ["path"],
        "additionalProperties": False,
    }

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Read `path`."""
        return await asyncio.to_thread(self._read, arguments)

    def _read(self, arguments: Mapping[str, Any]) -> ToolResult:
        path = arguments["path"]
        if not is_archive(path):
            data, size = self._root.read(path, limit=MAX_FILE_BYTES)
            return _lines(path, data, arguments, cut=size > len(data))
        data, size = self._root.read(path, limit=MAX_ARCHIVE_BYTES)
        if size > len(data):
            raise ToolError(f"{path!r} has {size} bytes of at most {MAX_ARCHIVE_BYTES}", hint="use a smaller archive")
        if "member" in arguments:
            return _lines(path, read_member(path, data, arguments["member"], limit=MAX_FILE_BYTES), arguments, cut=False)
        held = [{"name": member.name, "claimed_bytes": member.claimed_bytes} for member in members(path, data, limit=MAX_FILE_BYTES)]
        text = "\n".join(json.dumps(item["name"], ensure_ascii=False) for item in held[:_MAX_LISTED])
        more = len(held) > _MAX_LISTED
        return ToolResult(text=text or "[the archive is empty]", data={"members": held[:_MAX_LISTED], "has_more": more}, truncated=more)


def _lines(path: str, data: bytes, arguments: Mapping[str, Any], *, cut: bool) -> ToolResult:
    if b"\0" in data[:4096]:
        raise ToolError(f"{path!r} is no text", hint="give it to the code interpreter as an attachment")
    lines = data.decode("utf-8-sig", "replace").splitlines(keepends=True)
    first = arguments.get("first_line", 1) - 1
    shown = lines[first : first + arguments.get("num_lines", len(lines) or 1)]
    text = "".join(shown) + (f"\n[only the first {MAX_FILE_BYTES} bytes of the file are read]" if cut else "")
    return ToolResult(text=text, data={"num_lines": len(lines), "first_line": first + 1, "shown_lines": len(shown)}, truncated=cut)


class SearchFilesTool(_FileTool):
    """Finds lines that hold a word."""

    name = "search_files"
    description = "Finds the lines of text files that hold a word or phrase, upper and lower case alike."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What to look for, taken literally.", "minLength": 1, "maxLength": 500},
            "path": {"type": "string", "description": "The folder to search; the shared one if left out."},
        },
        "required": ["text"],
        "additionalProperties": False,
    }

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Search for `text`."""
        return await asyncio.to_thread(self._search, arguments["text"], arguments.get("path", ""))

    def _search(self, text: str, path: str) -> ToolResult:
        pattern = re.compile(re.escape(text), re.IGNORECASE)
        hits: list[dict[str, Any]] = []
        room, cut = _MAX_SEARCHED_BYTES, False
        for entry in self._root.entries(path, deep=True):
            if entry.is_folder or entry.size_bytes > MAX_FILE_BYTES or is_archive(entry.path):
                continue
            room -= entry.size_bytes
            if room < 0 or len(hits) >= _MAX_HITS:
                cut = True
                break
            hits += self._in_file(entry.path, pattern, _MAX_HITS - len(hits))
        lines = [f"{hit['path']}:{hit['line']}: {hit['text']}" for hit in hits]
        lines += ["[there may be more: name a folder or a longer text]"] if cut else []
        return ToolResult(text="\n".join(lines) or "[nothing found]", data={"hits": hits, "has_more": cut}, truncated=cut)

    def _in_file(self, path: str, pattern: re.Pattern[str], limit: int) -> list[dict[str, Any]]:
        try:
            data, _ = self._root.read(path, limit=MAX_FILE_BYTES)
        except ToolError:
            return []
        if b"\0" in data[:4096]:
            return []
        hits: list[dict[str, Any]] = []
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
            found = pattern.search(line)
            if found is not None:
                start = max(0, found.start() - _SHOWN_CHARS // 2)
                hits.append({"path": path, "line": number, "text": line[start : start + _SHOWN_CHARS].strip()})
                if len(hits) == limit:
                    break
        return hits
