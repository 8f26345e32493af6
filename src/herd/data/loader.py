"""What a trainer reads: samples by their number, from packed sources mixed by a schedule, with reading ahead in threads.

`StreamMixture.batch(first, size)` is a pure function of (seed, sample number). `Loader` adds ranks and workers, neither of which changes
what any sample is; its state is the number of samples read.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError, DoesNotFitError, UsageError
from herd.data.executor.shard_run import canonical
from herd.data.order import key_of, permuted
from herd.data.rows import RowBatch
from herd.data.schedule import BLOCK, MixPhase, Schedule


@runtime_checkable
class RowSource(Protocol):
    """Rows by their number: `rows.Rows` in memory, `packed.PackedTokens` on disk."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def row_length(self) -> int:
        """Tokens of a row."""
        ...

    def take(self, rows: NDArray[np.int64]) -> RowBatch:
        """Some of them."""
        ...


@runtime_checkable
class Batches(Protocol):
    """Samples by their number."""

    def batch(self, first: int, size: int) -> RowBatch:
        """Samples first..first+size-1."""
        ...


class StreamMixture:
    """Samples of several sources. Epoch e of a source is a permutation of its rows of its own; no order is kept in memory."""

    def __init__(
        self,
        sources: Mapping[str, RowSource],
        phases: Sequence[MixPhase] | Mapping[str, int | float],
        *,
        seed: int,
        max_epochs: Mapping[str, int | float] | None = None,
        num_samples: int | None = None,
        block: int = BLOCK,
    ) -> None:
        """`phases` may be plain weights. Raises ConfigError for a source that is empty or not there.

        With `num_samples`, raises DoesNotFitError if the epochs' limits end the data before.
        """
        given = [MixPhase(from_sample=0, weights=phases)] if isinstance(phases, Mapping) else list(phases)
        used = {name for phase in given for name, weight in phase.weights.items() if weight > 0 or name not in sources}
        self.names = [name for name in sources if name in used]
        self._sources = [sources[name] for name in self.names]
        for name, source in zip(self.names, self._sources, strict=True):
            if len(source) == 0:
                raise ConfigError(f"data source {name!r} is empty", hint="check its path, its language filter and the data folder")
            if source.row_length != self._sources[0].row_length:
                lengths = f"{self._sources[0].row_length} and {source.row_length}"
                raise ConfigError(f"sources {self.names[0]!r} and {name!r} have rows of {lengths} tokens", hint="pack both to one length")
        limits = {name: int(times * len(sources[name])) for name, times in (max_epochs or {}).items() if times and name in used}
        weighed = [
            MixPhase(from_sample=phase.from_sample, weights={name: weight for name, weight in phase.weights.items() if name in used})
            for phase in given
        ]
        self.schedule = Schedule(self.names, weighed, seed=seed, limits=limits, block=block)
        self.seed, self._num_samples = seed, num_samples
        if num_samples is not None:
            self.schedule.used(num_samples)  # goes through the blocks up to there, or to the end of the data
            end = self.schedule.ended_at
            if end is not None and end < num_samples:
                hint = "raise max_epochs, add a source, or train for fewer samples"
                raise DoesNotFitError(f"the data ends after {end:,} samples, {num_samples:,} are asked for", hint=hint)

    def __len__(self) -> int:
        if self._num_samples is None:
            raise TypeError("a mixture without num_samples has no length")
        return self._num_samples

    @property
    def sources(self) -> dict[str, RowSource]:
        """The sources that are read, by name."""
        return dict(zip(self.names, self._sources, strict=True))

    @property
    def fingerprint(self) -> str:
        """What tells this order of this data from any other."""
        rows = [str(getattr(source, "fingerprint", len(source))) for source in self._sources]
        return hashlib.blake2b(canonical([self.schedule.describe(), rows]), digest_size=16).hexdigest()

    def rows_of(self, first: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source and row of samples first..first+size-1."""
        sources, turns = self.schedule.locate(first, size)
        rows = np.empty(size, dtype=np.int64)
        for number, source in enumerate(self._sources):
            epochs, places = np.divmod(turns, len(source))
            for epoch in np.unique(epochs[sources == number]):
                mine = (sources == number) & (epochs == epoch)
                key = key_of(self.seed, "epoch", self.names[number], int(epoch))
                rows[mine] = permuted(key, places[mine], len(source))
        return sources, rows

    def batch(self, first: int, size: int) -> RowBatch:
        """Samples first..first+size-1: tokens, document numbers and loss mask, each [size, T+1]. Raises IndexError past the end."""
        if first < 0 or (self._num_samples is not None and first + size > self._num_samples):
            raise IndexError(f"samples {first} to {first + size - 1} of {self._num_samples}")
        if size == 0:
            return self._sources[0].take(np.empty(0, dtype=np.int64))
        sources, rows = self.rows_of(first, size)
        parts: list[RowBatch | None] = [None] * size
        for number, source in enumerate(self._sources):
            places = np.flatnonzero(sources == number)
            if len(places):
                tokens, documents, counts = source.take(rows[places])
                for index, place in enumerate(places):
                    parts[place] = (tokens[index], documents[index], counts[index])
        found = [part for part in parts if part is not None]
        return np.stack([part[0] for part in found]), np.stack([part[1] for part in found]), np.stack([part[2] for part in found])

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often each source has been read after `num_samples` samples."""
        used = self.schedule.used(num_samples)
        return {name: used[name] / len(source) for name, source in zip(self.names, self._sources, strict=True)}


class Loader:
    """One rank's part of every batch, read ahead by `workers` threads (0: none). The state is a number, the same for every world size."""

    def __init__(self, mixture: Batches, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0, ahead: int = 2) -> None:
        """Raises ConfigError for a rank or a size that cannot be."""
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size} is none", hint="ranks are numbered from 0")
        if batch_size < world_size or workers < 0 or ahead < 1:
            raise ConfigError(
                f"batch_size {batch_size}, workers {workers}, ahead {ahead} on {world_size} ranks", hint="a sample a rank at least"
            )
        self._mixture, self.batch_size = mixture, batch_size
        self._rank, self._world_size, self._workers, self._ahead = rank, world_size, workers, ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="herd-loader") if workers else None
        self._waiting: deque[tuple[int, int, list[Future[RowBatch]]]] = deque()
        self.num_samples = 0

    def part(self, first: int, size: int) -> tuple[int, int]:
        """This rank's samples of a batch: the first, and how many. Parts follow one another by rank, and differ by one sample at most."""
        begin, end = (size * number // self._world_size for number in (self._rank, self._rank + 1))
        return first + begin, end - begin

    def __iter__(self) -> Iterator[RowBatch]:
        return self

    def __next__(self) -> RowBatch:
        """This rank's part of the next batch; ends where the data does."""
        try:
            return self.next_batch(self.batch_size)
        except IndexError as error:
            raise StopIteration from error

    def next_batch(self, size: int) -> RowBatch:
        """This rank's part of the next `size` samples, for a batch that grows during the run. Raises IndexError where the data ends."""
        first = self.num_samples
        if self._pool is None:
            found = self._mixture.batch(*self.part(first, size))
        else:
            found = self._read_ahead(first, size)
        self.num_samples += size
        return found

    def _read_ahead(self, first: int, size: int) -> RowBatch:
        if self._waiting and self._waiting[0][:2] != (first, size):
            self._waiting.clear()
        while len(self._waiting) < self._ahead:
            start = self._waiting[-1][0] + size if self._waiting else first
            self._waiting.append((start, size, self._submitted(start, size)))
        parts = [future.result() for future in self._waiting.popleft()[2]]
        return tuple(np.concatenate([part[column] for part in parts]) for column in range(3))  # pyright: ignore[reportReturnType]

    def _submitted(self, first: int, size: int) -> list[Future[RowBatch]]:
        """A part in as many pieces as there are workers."""
        assert self._pool is not None
        start, count = self.part(first, size)
        cuts = [start + count * number // self._workers for number in range(self._workers + 1)]
        pieces = [(one, two - one) for one, two in pairwise(cuts) if two > one] or [(start, 0)]
        return [self._pool.submit(self._mixture.batch, *piece) for piece in pieces]

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint has to keep of the data."""
        return {"num_samples": self.num_samples, "fingerprint": getattr(self._mixture, "fingerprint", None)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved, whatever the number of ranks was. Raises UsageError for a state of other data."""
        mine = getattr(self._mixture, "fingerprint", None)
        if state.get("fingerprint") != mine:
            raise UsageError(
                f"the state was saved with other data or another mix ({state.get('fingerprint')}, here {mine})",
                hint="restore the sources, weights and seed of that run, or begin a new one",
            )
        self.num_samples = int(state["num_samples"])
        self._waiting.clear()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
