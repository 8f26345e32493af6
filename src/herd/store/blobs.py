"""Bytes by id: files in a folder, or objects below any fsspec URL (s3://, gs://, memory://).

A blob is whole or absent: it is written elsewhere, flushed, and renamed. A row that names it is written after that, and goes before it;
what no row names is an orphan of a crash, and is swept at the next start. Ids are the server's own: letters, digits, `-` and `_`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from herd.base.errors import ConfigError, NotFoundError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
_PART = ".part"


def check_id(blob_id: str) -> str:
    """An id that is a plain name. What a client sends is looked up among rows first."""
    assert _ID.match(blob_id), blob_id
    return blob_id


class Blobs(ABC):
    """A place for bytes. `staging` is a local folder in which they are written before they are blobs."""

    def __init__(self, staging: Path) -> None:
        self.staging = staging
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    def staged(self, blob_id: str) -> Path:
        """Where to write the bytes of a blob to be."""
        return self.staging / (check_id(blob_id) + _PART)

    @abstractmethod
    def adopt(self, path: Path, blob_id: str) -> None:
        """Make a local file a blob, at once and to the disk; the file is gone then."""

    def put(self, data: bytes, blob_id: str) -> None:
        """Make bytes a blob."""
        path = self.staged(blob_id)
        try:
            path.write_bytes(data)
            self.adopt(path, blob_id)
        finally:
            path.unlink(missing_ok=True)

    @abstractmethod
    def open(self, blob_id: str) -> BinaryIO:
        """Its bytes. Raises NotFoundError."""

    def read(self, blob_id: str) -> bytes:
        """All of its bytes. Raises NotFoundError."""
        with self.open(blob_id) as file:
            return file.read()

    @abstractmethod
    def size(self, blob_id: str) -> int | None:
        """Its size, None where it is absent."""

    @abstractmethod
    def delete(self, blob_id: str) -> None:
        """Remove it, if it is there."""

    @abstractmethod
    def ids(self) -> Iterator[str]:
        """All that are there."""

    def path(self, blob_id: str) -> Path | None:
        """Its path, where it is a file of this machine."""
        return None

    def orphans(self, named: Collection[str]) -> list[str]:
        """Blobs that no row names."""
        return [blob_id for blob_id in self.ids() if blob_id not in named]

    def sweep(self, named: Collection[str]) -> int:
        """Remove orphans and what was never finished; how many."""
        parts = list(self.staging.glob("*" + _PART))
        for path in parts:
            path.unlink()
        found = self.orphans(named)
        for blob_id in found:
            self.delete(blob_id)
        return len(found) + len(parts)


class FolderBlobs(Blobs):
    """Files of one folder. Temporary ones lie beside them, so that a rename never crosses file systems."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def adopt(self, path: Path, blob_id: str) -> None:
        """Flush it, rename it, flush the folder."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(self.folder / check_id(blob_id))
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def open(self, blob_id: str) -> BinaryIO:
        """The file."""
        try:
            return (self.folder / check_id(blob_id)).open("rb")
        except FileNotFoundError as error:
            raise _gone(blob_id) from error

    def size(self, blob_id: str) -> int | None:
        """Of the file."""
        try:
            return (self.folder / check_id(blob_id)).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, blob_id: str) -> None:
        """Unlink it."""
        (self.folder / check_id(blob_id)).unlink(missing_ok=True)

    def ids(self) -> Iterator[str]:
        """Names of the folder."""
        return (path.name for path in sorted(self.folder.iterdir()) if path.suffix != _PART)

    def path(self, blob_id: str) -> Path | None:
        """The file's path."""
        return self.folder / check_id(blob_id)


class _Object(io.BufferedReader):
    """An object that is read, with what a plain file has beside its bytes."""

    @property
    def mode(self) -> str:
        """Of a file that is read."""
        return "rb"

    @property
    def name(self) -> str:
        """It has none here."""
        return ""


class RemoteBlobs(Blobs):
    """Objects below an fsspec URL. An object store's put is whole or absent; elsewhere a rename makes it so."""

    def __init__(self, url: str, staging: Path) -> None:
        super().__init__(staging)
        import fsspec

        try:
            self._fs, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
            self._fs.makedirs(root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(
                f"cannot keep files at {url!r}: {error}", hint="name a folder or an fsspec URL whose driver is here"
            ) from error
        self._root = root.rstrip("/")

    def _name(self, blob_id: str) -> str:
        return f"{self._root}/{check_id(blob_id)}"

    def adopt(self, path: Path, blob_id: str) -> None:
        """Send it under a temporary name, then rename."""
        part = self._name(blob_id) + _PART
        self._fs.put_file(str(path), part)
        self._fs.mv(part, self._name(blob_id))
        path.unlink()

    def open(self, blob_id: str) -> BinaryIO:
        """The object."""
        try:
            return _Object(self._fs.open(self._name(blob_id), "rb"))
        except FileNotFoundError as error:
            raise _gone(blob_id) from error

    def size(self, blob_id: str) -> int | None:
        """Of the object."""
        try:
            return int(self._fs.size(self._name(blob_id)))
        except FileNotFoundError:
            return None

    def delete(self, blob_id: str) -> None:
        """Remove it."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._name(blob_id))

    def ids(self) -> Iterator[str]:
        """Names below the URL."""
        self._fs.invalidate_cache()
        names = (str(path).rsplit("/", 1)[-1] for path in sorted(self._fs.ls(self._root, detail=False)))
        return (name for name in names if not name.endswith(_PART))

    def sweep(self, named: Collection[str]) -> int:
        """And what was sent in part."""
        for path in self._fs.glob(f"{self._root}/*{_PART}"):
            self._fs.rm_file(path)
        return super().sweep(named)


def _gone(blob_id: str) -> NotFoundError:
    return NotFoundError(f"the bytes of {blob_id!r} are gone from the server's disk", hint="upload it again")


def open_blobs(place: str, staging: Path) -> Blobs:
    """Blobs in a folder, or at a URL."""
    if "://" in place and not place.startswith("file://"):
        return RemoteBlobs(place, staging)
    return FolderBlobs(Path(place.removeprefix("file://")))


def copy_all(blobs: Blobs, target: Path) -> int:
    """Copy every blob into a folder; how many."""
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    for blob_id in blobs.ids():
        with contextlib.suppress(NotFoundError), blobs.open(blob_id) as source, (target / blob_id).open("wb") as file:
            shutil.copyfileobj(source, file)
            count += 1
    return count
