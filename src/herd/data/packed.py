"""Token shards as rows of a fixed length: best fit over windows of documents, planned once and kept, so that any row is found at once.

A window holds so many documents that hardly a row stays open, and so few that memory does not grow with the data. The plan is two flat
files: for every row the end of its pieces, for every piece (shard, start, length). It is a pure function of lengths, row and window.
Shapes: R rows, T sequence length; a row has T + 1 tokens, as `rows.Rows` has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.atomic import atomic_directory
from herd.base.errors import ConfigError, DoesNotFitError
from herd.data.rows import RowBatch, best_fit
from herd.data.token_shards import TokenDataset

WINDOW = 2**16
_PIECE = np.dtype([("shard", "<i4"), ("start", "<i8"), ("length", "<i4")])
_MAX_PIECES = 2**15 - 1
_ABOUT = "packing.json"


def cut(lengths: NDArray[np.int64], capacity: int, *, split: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Documents as pieces of at most `capacity` tokens: the document of each, where it starts in it, its length.

    As `rows.split_document` cuts: a last piece has two tokens at least. Documents under two tokens hold nothing to predict and are left
    out, longer ones too where they may not be split.
    """
    kept = np.flatnonzero((lengths >= 2) & ((lengths <= capacity) | split))
    sizes = lengths[kept]
    counts = -(-sizes // capacity)
    documents = np.repeat(kept, counts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    total, last = np.repeat(sizes, counts), np.repeat(counts, counts) - 1
    short = (total % capacity == 1) & (last > 0) & (capacity > 2)
    starts = number * capacity - (short & (number == last))
    ends = np.minimum((number + 1) * capacity, total) - (short & (number == last - 1))
    return documents, starts, ends - starts


class PackedTokens:
    """Rows of a data set. `take` reads some of them; `len` counts them."""

    def __init__(
        self, dataset: TokenDataset, sequence_length: int, *, split: bool = True, window: int = WINDOW, cache: Path | None = None
    ) -> None:
        """Plan the packing, or take the plan kept in `cache` (by default beside the tokens): the first process plans, others wait.

        Raises ConfigError for an impossible length, DoesNotFitError if the plan cannot be written.
        """
        if sequence_length < 1 or window < 1:
            raise ConfigError(f"sequence_length {sequence_length}, window {window}", hint="both are positive")
        self.dataset, self.capacity = dataset, sequence_length + 1
        key = hashlib.blake2b(f"1|{dataset.digest}|{sequence_length}|{split}|{window}".encode(), digest_size=8).hexdigest()
        self.folder = (cache or dataset.folder.parent / f"{dataset.folder.name}.packed") / f"{sequence_length}-{key}"
        if not (self.folder / _ABOUT).exists():
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                with (self.folder.parent / f".{self.folder.name}.lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not (self.folder / _ABOUT).exists():
                        self._plan(split=split, window=window)
            except OSError as error:
                message = f"cannot write the packing to {self.folder}: {error.strerror}"
                raise DoesNotFitError(message, hint="name another folder as cache") from error
        about = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
        self.num_documents, self.num_dropped = int(about["num_documents"]), int(about["num_dropped"])
        self.num_tokens = int(about["num_tokens"])
        self._ends: NDArray[np.int64] = _mapped(self.folder / "rows.bin", np.dtype("<i8"))
        self._pieces: NDArray[Any] = _mapped(self.folder / "pieces.bin", _PIECE)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def row_length(self) -> int:
        """Tokens of a row: T + 1."""
        return self.capacity

    @property
    def fill(self) -> float:
        """The share of the rows' places that hold a token."""
        return self.num_tokens / (len(self) * self.capacity) if len(self) else 0.0

    @property
    def fingerprint(self) -> str:
        """What tells these rows from others."""
        return f"{self.dataset.digest}/{self.folder.name}"

    def _plan(self, *, split: bool, window: int) -> None:
        num_documents = num_dropped = num_tokens = end = 0
        with (
            atomic_directory(self.folder, overwrite=True) as folder,
            (folder / "rows.bin").open("wb") as rows,
            (folder / "pieces.bin").open("wb") as pieces,
        ):
            for shard, first, lengths in self._windows(window):
                documents, starts, sizes = cut(lengths, self.capacity, split=split)
                num_documents += len(lengths)
                num_dropped += len(lengths) - len(np.unique(documents))
                num_tokens += int(sizes.sum())
                offsets = first + np.cumsum(lengths) - lengths
                found = np.zeros(len(sizes), dtype=_PIECE)
                found["shard"], found["start"], found["length"] = shard, offsets[documents] + starts, sizes
                bins = best_fit(sizes.tolist(), self.capacity, max_items=_MAX_PIECES)
                pieces.write(found[np.array([item for items in bins for item in items], dtype=np.int64)].tobytes())
                ends = end + np.cumsum([len(items) for items in bins], dtype=np.int64)
                end = int(ends[-1]) if len(ends) else end
                rows.write(ends.astype("<i8").tobytes())
            about = {"num_documents": num_documents, "num_dropped": num_dropped, "num_tokens": num_tokens}
            (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")

    def _windows(self, window: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Shard, offset of the first token, and the documents' lengths of one window after another; a window stays within its shard."""
        for shard in range(len(self.dataset.shards)):
            ends = self.dataset.ends(shard)
            for start in range(0, len(ends), window):
                part = np.array(ends[start : start + window])
                first = int(ends[start - 1]) if start else 0
                yield shard, first, np.diff(part, prepend=first)

    def take(self, rows: NDArray[np.int64]) -> RowBatch:
        """Tokens, document numbers and loss mask of some rows, each [len(rows), T+1]."""
        shape = (len(rows), self.capacity)
        tokens = np.full(shape, self.dataset.pad_id, dtype=np.int32)
        documents = np.full(shape, -1, dtype=np.int16)
        counts = np.zeros(shape, dtype=np.bool_)
        for place, row in enumerate(rows.tolist()):
            first = int(self._ends[row - 1]) if row else 0
            end = 0
            for number, (shard, start, length) in enumerate(self._pieces[first : int(self._ends[row])].tolist()):
                begin, end = end, end + length
                tokens[place, begin:end] = self.dataset.tokens(shard, start, start + length)
                documents[place, begin:end] = number
                own = self.dataset.counts(shard, start, start + length)
                counts[place, begin:end] = True if own is None else own
                counts[place, begin] = False  # the first token of a piece has nothing before it to be predicted from
        return tokens, documents, counts


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
