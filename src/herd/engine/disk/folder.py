"""Blocks as files of a folder: read, written, touched, and the oldest deleted. No torch, no threads; several processes may share it.

    ROOT/key                          the secret
    ROOT/STATE/DIGEST.kv              a block; STATE names all that its bits depend on beside the prefix
    ROOT/STATE/DIGEST.PID-N.tmp       a block in the making

Nothing whose name is not of this form is ever touched. A file's time of modification says when it was used last, since times of access are
often not kept: the end of a minute less a moment for each block before it, so that of one prefix the end goes before the beginning.
What is wrong with a file means that the block is not there, and the file goes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from herd.engine.disk.block_file import BlockFormat

MINUTE_NS = 60 * 10**9
_MOMENT_NS = 100_000
_STATE = re.compile(r"[0-9a-f]{32}")
_BLOCK = re.compile(r"[0-9a-f]{64}\.kv")
_PARTS = itertools.count()
"""Numbers of this process's parts: several engines of one process may write to one folder."""
_PART = re.compile(r"[0-9a-f]{64}\.\d+-\d+\.tmp")
_PART_S = 600
"""A part that is older was left behind by a process that died."""


def minute_now() -> int:
    """The minute that a use falls into."""
    return time.time_ns() // MINUTE_NS


def stamp_ns(minute: int, index: int) -> int:
    """The time that stands for a use in this minute of a prefix's block `index`."""
    return (minute + 1) * MINUTE_NS - index * _MOMENT_NS


class _File(NamedTuple):
    used_ns: int
    size: int
    path: Path
    is_part: bool


class BlockFolder:
    """The blocks of one state below `root`, and the size of all states together: `max_bytes`, at most.

    Every process counts what it writes and looks at the folder again after its part of an eighth of the limit, when it makes an eighth
    free: so `num_writers` processes keep the limit without a word between them.

    Attributes:
        num_damaged: files that were not what their name says.
        num_evicted: files deleted to make room.
    """

    def __init__(self, root: Path, state: str, format: BlockFormat, *, max_bytes: int, num_writers: int = 4) -> None:
        assert _STATE.fullmatch(state), f"{state!r} is no name of a state"
        self._look_after = max_bytes // (8 * num_writers)
        self._root, self._home, self._format, self.max_bytes = root, root / state, format, max_bytes
        self._total: int | None = None
        self._since = 0
        self.num_damaged = self.num_evicted = 0

    @property
    def block_bytes(self) -> int:
        """Of a block's content."""
        return self._format.content_bytes

    def _path(self, digest: bytes) -> Path:
        return self._home / f"{digest.hex()}.kv"

    def has(self, digest: bytes) -> bool:
        """Whether there is a file of this name; one look at the folder, no more."""
        return os.path.exists(self._path(digest))

    def read(self, digest: bytes, used_ns: int) -> memoryview | None:
        """A block's content in memory of its own; None where it is not there, or not as it was written: then the file is gone too."""
        path = self._path(digest)
        try:
            with path.open("rb", buffering=0) as file:
                data = bytearray(self._format.file_bytes)
                right = os.fstat(file.fileno()).st_size == len(data) == file.readinto(data)
            content = self._format.decode(data, digest) if right else None
            if content is None:
                self.num_damaged += 1
                path.unlink(missing_ok=True)
            else:
                self.touch(digest, used_ns)
        except FileNotFoundError:
            return None
        except OSError:  # a disk that cannot read it, or a folder that cannot be written
            return None
        return content

    def touch(self, digest: bytes, used_ns: int) -> bool:
        """Note that a block was used; False where its file is gone."""
        try:
            os.utime(self._path(digest), ns=(used_ns, used_ns))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # read-only: it stays as old as it was
        return True

    def write(self, digest: bytes, content: memoryview, used_ns: int) -> bool:
        """Write a block, whole or not at all; False where it is there already or the limit has no room. Raises OSError."""
        if self.has(digest) and self.touch(digest, used_ns):
            return False
        if not self._make_room(self._format.file_bytes):
            return False
        self._home.mkdir(mode=0o700, exist_ok=True)
        part = self._home / f"{digest.hex()}.{os.getpid()}-{next(_PARTS)}.tmp"
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False  # a process of another machine or container with this number writes the same block: the file is its own
        try:
            # Not flushed to the disk: a file that a crash leaves half written fails its checksum and costs nothing but the block.
            with open(descriptor, "wb", buffering=0) as file:
                for piece in self._format.encode(digest, content):
                    _write_all(file.fileno(), piece)
            os.utime(part, ns=(used_ns, used_ns))
            os.replace(part, self._path(digest))
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._since += self._format.file_bytes
        return True

    def _make_room(self, size: int) -> bool:
        if self._total is None or self._since + size > self._look_after:
            self._total, self._since = self._evict(self.max_bytes - self.max_bytes // 8), 0
        return self._total + self._since + size <= self.max_bytes

    def _evict(self, most: int) -> int:
        """Delete the files that were used the longest ago until they take at most so many bytes; returns what they take."""
        files = list(self._files())
        total = sum(file.size for file in files)
        if total > most:
            for file in sorted(files):
                if total <= most:
                    break
                if file.is_part:
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process was here first
                    file.path.unlink()
                    self.num_evicted += 1
                total -= file.size
        return total

    def _files(self) -> Iterator[_File]:
        """Every block of every state, and parts; those left behind are deleted."""
        for folder in _entries(self._root):
            if not _STATE.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in _entries(Path(folder.path)):
                is_part = _PART.fullmatch(entry.name) is not None
                if not is_part and not _BLOCK.fullmatch(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    told = entry.stat(follow_symlinks=False)
                    if is_part and time.time() - told.st_ctime > _PART_S:
                        os.unlink(entry.path)
                    else:
                        yield _File(told.st_mtime_ns, told.st_size, Path(entry.path), is_part)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return list(found)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left.nbytes:
        left = left[os.write(descriptor, left) :]
