"""Archives, looked into without unpacking them to anywhere: members are listed, one is read, and nothing grows beyond a limit.

A zip may claim any size for what it holds: only what comes out is counted. Names in an archive are shown, never used as paths.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from dataclasses import dataclass

from herd.tools.errors import ToolError
from herd.tools.web.inflate import TooLargeError, gunzip

MAX_ARCHIVE_BYTES = 64 * 1024 * 1024
MAX_MEMBERS = 10_000
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".gz")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, OSError, KeyError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file in an archive, with the size that the archive claims."""

    name: str
    claimed_bytes: int


def is_archive(name: str) -> bool:
    """Whether a name is one of an archive that is read here."""
    return name.lower().endswith(ENDINGS)


def members(name: str, data: bytes, *, limit: int) -> list[Member]:
    """The files in an archive. Raises ToolError, TooLargeError."""
    try:
        if name.lower().endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                infos = archive.infolist()
                if len(infos) > MAX_MEMBERS:
                    raise TooLargeError(f"the archive has {len(infos)} members of at most {MAX_MEMBERS}", hint="use another archive")
                return [Member(name=info.filename, claimed_bytes=info.file_size) for info in infos if not info.is_dir()]
        if name.lower().endswith(".gz") and not name.lower().endswith(".tar.gz"):
            return [Member(name=name.rpartition("/")[2][:-3], claimed_bytes=-1)]
        return [Member(name=info.name, claimed_bytes=info.size) for info in _tar_infos(name, data, limit)]
    except _DAMAGED as error:
        raise _damaged(name) from error


def read_member(name: str, data: bytes, member: str, *, limit: int) -> bytes:
    """The bytes of one member. Raises TooLargeError for one that is over `limit` whatever the archive says; ToolError."""
    lower = name.lower()
    try:
        if lower.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(member) as file:
                return _within(file.read(limit + 1), member, limit)
        if lower.endswith(".gz") and not lower.endswith(".tar.gz"):
            return gunzip(data, limit)
        plain = _tar_bytes(name, data, limit)
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            info = next((info for info in archive if info.name == member and info.isreg()), None)
            file = archive.extractfile(info) if info is not None else None
            if file is None:
                raise KeyError(member)
            return _within(file.read(limit + 1), member, limit)
    except KeyError as error:
        raise ToolError(
            f"{name!r} holds no file {member[:120]!r}", hint="read the archive without a member to see what it holds"
        ) from error
    except _DAMAGED as error:
        raise _damaged(name) from error


def _within(data: bytes, member: str, limit: int) -> bytes:
    if len(data) > limit:
        raise TooLargeError(f"unpacked, {member[:120]!r} is over the limit of {limit} bytes", hint="ask for a smaller file")
    return data


def _tar_bytes(name: str, data: bytes, limit: int) -> bytes:
    return data if name.lower().endswith(".tar") else gunzip(data, max(limit, MAX_ARCHIVE_BYTES))


def _tar_infos(name: str, data: bytes, limit: int) -> list[tarfile.TarInfo]:
    found: list[tarfile.TarInfo] = []
    with tarfile.open(fileobj=io.BytesIO(_tar_bytes(name, data, limit)), mode="r:") as archive:
        for info in archive:
            if len(found) >= MAX_MEMBERS:
                raise TooLargeError(f"the archive has over {MAX_MEMBERS} members", hint="use another archive")
            if info.isreg():
                found.append(info)
    return found


def _damaged(name: str) -> ToolError:
    return ToolError(f"the archive {name[:120]!r} is damaged, encrypted or of another kind", hint="use another file")
