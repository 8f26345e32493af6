"""A folder that tools may read, and nothing beside it.

A path is resolved with its links first, must then lie below the root, and is opened step by step with no link followed: what was checked
is what is opened, even if somebody swaps a folder for a link meanwhile. Only plain files are read: no device blocks or gives without end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from herd.base.errors import NotFoundError
from herd.tools.errors import ToolError

_MAX_ENTRIES = 20_000
_MAX_DEPTH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file or folder, by its path below the root."""

    path: str
    is_folder: bool
    size_bytes: int


class Root:
    """A folder by its path. Raises NotFoundError if it is none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(os.path.realpath(folder))
        if not self.folder.is_dir():
            raise NotFoundError(f"there is no folder at {folder}", hint="give the path of a folder that tools may read")

    def relative(self, path: str) -> str:
        """A path as one below the root, links resolved; "" is the root itself. Raises ToolError for one that leads out of it.

        What is outside and what is not there are answered alike, so that nobody learns what the machine has.
        """
        if "\0" in path or len(path) > 4096:
            raise _no_such(path)
        try:
            path.encode("utf-8")
            real = Path(os.path.realpath(self.folder / path))
        except (OSError, ValueError) as error:
            raise _no_such(path) from error
        if not real.is_relative_to(self.folder):
            raise _no_such(path)
        below = real.relative_to(self.folder).as_posix()
        return "" if below == "." else below

    def open(self, path: str) -> int:
        """A descriptor of a plain file. Raises ToolError if there is none."""
        below = self.relative(path)
        descriptor = self._descend(path, below, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ToolError(f"{_shown(path)} is no plain file", hint="name a file; list_files shows them")
        return descriptor

    def _descend(self, path: str, below: str, flags: int) -> int:
        """Open each part in turn from the root on. No part can be a link: they were resolved, so one that is now was put there since."""
        current = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        parts = below.split("/") if below else []
        try:
            for number, part in enumerate(parts, start=1):
                mode = flags if number == len(parts) else os.O_RDONLY | os.O_DIRECTORY
                inner = os.open(part, mode | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = inner
        except OSError as error:
            os.close(current)
            raise _no_such(path) from error
        return current

    def read(self, path: str, *, limit: int) -> tuple[bytes, int]:
        """At most `limit` bytes of a file, and its size."""
        with os.fdopen(self.open(path), "rb") as file:
            return file.read(limit), os.fstat(file.fileno()).st_size

    def entries(self, path: str = "", *, deep: bool = False) -> Iterator[Entry]:
        """What a folder holds, by name, folders first among equals; with `deep` what is below too. Links and hidden names are left out."""
        below = self.relative(path)
        seen = 0
        waiting = [(below, 0)]
        while waiting:
            folder, depth = waiting.pop()
            for entry in self._scan(path, folder):
                seen += 1
                if seen > _MAX_ENTRIES:
                    return
                yield entry
                if deep and entry.is_folder and depth < _MAX_DEPTH:
                    waiting.append((entry.path, depth + 1))

    def _scan(self, path: str, folder: str) -> list[Entry]:
        descriptor = self._descend(path, folder, os.O_RDONLY | os.O_DIRECTORY)
        found: list[Entry] = []
        try:
            with os.scandir(descriptor) as scan:
                for item in scan:
                    status = item.stat(follow_symlinks=False)
                    is_folder = stat.S_ISDIR(status.st_mode)
                    if item.name.startswith(".") or not (is_folder or stat.S_ISREG(status.st_mode)):
                        continue
                    found.append(Entry(path=f"{folder}/{item.name}".lstrip("/"), is_folder=is_folder, size_bytes=status.st_size))
        except OSError as error:
            raise _no_such(path) from error
        finally:
            os.close(descriptor)
        return sorted(found, key=lambda entry: (not entry.is_folder, entry.path))


def _no_such(path: str) -> ToolError:
    return ToolError(f"there is nothing at {_shown(path)}", hint="paths are relative to the shared folder; list_files shows what it holds")


def _shown(path: str) -> str:
    return repr(path[:120])
