"""Tokens on disk: a folder of shards, each a flat array of token ids and the ends of its documents; read in pieces, never whole.

`index.json` names the shards, the type of an id (uint16 up to a vocabulary of 65,536) and the tokenizer by the digest of its ranks. Beside
SHARD.tokens.bin stands SHARD.ends.npy (int64, cumulative) and, where not every token counts in the loss, SHARD.counts.bin (a byte a token).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import FormatError, NotFoundError

VERSION = 1
INDEX = "index.json"
_OPEN_FILES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard: its name, sizes and the digest of its files."""

    name: str
    num_tokens: int
    num_documents: int
    digest: str


class ShardWriter:
    """Writes one shard, document by document. `close` ends it and returns what the index says of it; as a context it closes its files."""

    def __init__(self, folder: Path, name: str, *, vocab_size: int, has_counts: bool) -> None:
        self._folder, self._name = folder, name
        self._dtype = id_dtype(vocab_size)
        self._tokens = (folder / f"{name}.tokens.bin").open("wb")
        self._counts = (folder / f"{name}.counts.bin").open("wb") if has_counts else None
        self._ends: list[int] = []
        self._end = 0

    def add(self, ids: Sequence[int], counts: Sequence[bool] | None = None) -> None:
        """The next document."""
        self._tokens.write(np.asarray(ids, dtype=self._dtype).tobytes())
        if self._counts is not None:
            self._counts.write((np.ones(len(ids), np.uint8) if counts is None else np.asarray(counts, dtype=np.uint8)).tobytes())
        self._end += len(ids)
        self._ends.append(self._end)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._tokens.close()
        if self._counts is not None:
            self._counts.close()

    def close(self) -> ShardInfo:
        """End the shard."""
        self.__exit__()
        np.save(self._folder / f"{self._name}.ends.npy", np.array(self._ends, dtype=np.int64))
        return ShardInfo(name=self._name, num_tokens=self._end, num_documents=len(self._ends), digest=_digest(self._folder, self._name))


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id, little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def _files(folder: Path, name: str) -> list[Path]:
    return [path for ending in (".tokens.bin", ".ends.npy", ".counts.bin") if (path := folder / f"{name}{ending}").exists()]


def _digest(folder: Path, name: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in _files(folder, name):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def write_index(folder: Path, shards: Sequence[ShardInfo], *, vocab_size: int, pad_id: int, tokenizer: str, has_counts: bool) -> None:
    """Make a folder of shards a data set."""
    about = {"version": VERSION, "vocab_size": vocab_size, "pad_id": pad_id, "tokenizer": tokenizer, "has_counts": has_counts}
    text = json.dumps({**about, "shards": [asdict(shard) for shard in shards]}, indent=1)
    (folder / INDEX).write_text(text, encoding="utf-8")


class TokenDataset:
    """A data set of token shards, opened for reading. Documents are numbered over all shards in the order of the index."""

    def __init__(self, folder: Path) -> None:
        """Raises NotFoundError if there is none, FormatError if a file is missing or of another size than the index says."""
        self.folder = folder
        try:
            about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except OSError as error:
            raise NotFoundError(
                f"{folder} holds no tokens: {error.strerror}", hint="make them: herd data tokenize FILES -o FOLDER"
            ) from error
        except ValueError as error:
            raise FormatError(f"{folder / INDEX} is not JSON: {error}", hint="tokenize again") from error
        try:
            if about["version"] != VERSION:
                raise FormatError(f"{folder} has version {about['version']!r}, this herd reads {VERSION}", hint="tokenize again")
            self.vocab_size, self.pad_id = int(about["vocab_size"]), int(about["pad_id"])
            self.tokenizer, self.has_counts = str(about["tokenizer"]), bool(about["has_counts"])
            self.shards = tuple(ShardInfo(**shard) for shard in about["shards"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{folder / INDEX} is no index of tokens: {error!r}", hint="tokenize again") from error
        self._dtype = id_dtype(self.vocab_size)
        self._ends = [self._open_ends(shard) for shard in self.shards]
        self._descriptors: dict[str, int] = {}

    def _open_ends(self, shard: ShardInfo) -> NDArray[np.int64]:
        sizes = {".tokens.bin": shard.num_tokens * self._dtype.itemsize}
        if self.has_counts:
            sizes[".counts.bin"] = shard.num_tokens
        for ending, size in sizes.items():
            path = self.folder / f"{shard.name}{ending}"
            real = path.stat().st_size if path.exists() else None
            if real != size:
                raise FormatError(f"{path} has {real} bytes, the index says {size}", hint="copy it again, or tokenize again")
        try:
            ends = np.load(self.folder / f"{shard.name}.ends.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FormatError(f"{self.folder / shard.name}.ends.npy cannot be read: {error}", hint="tokenize again") from error
        if ends.shape != (shard.num_documents,) or ends.dtype != np.int64 or (len(ends) and int(ends[-1]) != shard.num_tokens):
            raise FormatError(f"{self.folder / shard.name}.ends.npy does not fit its tokens", hint="tokenize again")
        return ends

    @property
    def num_tokens(self) -> int:
        """Of all shards."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Of all shards."""
        return sum(shard.num_documents for shard in self.shards)

    @property
    def digest(self) -> str:
        """Of the contents, by the index."""
        return hashlib.blake2b("".join(shard.digest for shard in self.shards).encode(), digest_size=16).hexdigest()

    def verify(self) -> None:
        """Read every file. Raises FormatError for a shard that is not what the index says."""
        for shard in self.shards:
            if _digest(self.folder, shard.name) != shard.digest:
                raise FormatError(f"shard {shard.name} of {self.folder} has other contents than when it was written", hint="tokenize again")

    def ends(self, shard: int) -> NDArray[np.int64]:
        """Where the documents of a shard end, as a memory map."""
        return self._ends[shard]

    def tokens(self, shard: int, start: int, stop: int) -> NDArray[Any]:
        """Token ids start..stop-1 of a shard."""
        data = self._read(f"{self.shards[shard].name}.tokens.bin", start * self._dtype.itemsize, stop * self._dtype.itemsize)
        return np.frombuffer(data, dtype=self._dtype)

    def counts(self, shard: int, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Whether tokens start..stop-1 count in the loss; None where all do."""
        if not self.has_counts:
            return None
        return np.frombuffer(self._read(f"{self.shards[shard].name}.counts.bin", start, stop), dtype=np.bool_)

    def document(self, number: int) -> NDArray[Any]:
        """The token ids of a document. Raises IndexError past the end."""
        for shard, info in enumerate(self.shards):
            if number < info.num_documents:
                ends = self._ends[shard]
                return self.tokens(shard, int(ends[number - 1]) if number else 0, int(ends[number]))
            number -= info.num_documents
        raise IndexError(number)

    def _read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file by pread: no shared position, and other threads run while the disk answers."""
        descriptor = self._descriptors.get(name)
        if descriptor is not None:
            data = os.pread(descriptor, stop - start, start)
        else:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
            data = os.pread(descriptor, stop - start, start)
            if len(self._descriptors) >= _OPEN_FILES or self._descriptors.setdefault(name, descriptor) != descriptor:
                os.close(descriptor)
        if len(data) != stop - start:
            raise FormatError(f"{self.folder / name} ends before byte {stop}", hint="the file was cut while it was in use")
        return data

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        """Close the files of a data set that is no longer used."""
        if hasattr(self, "_descriptors"):
            self.close()
