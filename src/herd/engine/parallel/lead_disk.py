"""The prefix cache on disk of a model over several processes, as rank 0 has it. No torch.

Each rank keeps its share of a block, its layers and heads, in a file of its own: nothing of the cache travels. Rank 0 decides, as it does
for the schedule, and the others do the same to their blocks at the same place in its log:

    read    at once: read these blocks' files, and say how far you are                     `LeadReader`
    insert  what every rank has read goes into free blocks; the rest of what was read is let go of
    drop    no one waits for what is still being read
    save    copy these blocks out and write them; note the use of those that have a file

A block of which one rank has no file is not there. What another rank could not write it says, so that it is written at the next occasion.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from herd.engine.batch import BlockCopier
from herd.engine.disk.cache import READ_BYTES, DiskCache
from herd.engine.disk.folder import BlockFolder
from herd.engine.disk.reader import Job, Part, Reader
from herd.engine.parallel.replica import LeadScheduler, frames
from herd.engine.request import Sequence
from herd.engine.step import Step

Send = Callable[[Mapping[str, Any]], None]
"""Sends every other rank a frame."""


class LeadReader(Reader):
    """Rank 0's reader: has the other `ranks` read too, and gives of a job what all of them have."""

    def __init__(self, folder: BlockFolder, *, max_bytes: int, ranks: range, send: Send) -> None:
        super().__init__(folder, max_bytes=max_bytes)
        self._send, self._numbers = send, itertools.count(1)
        self._ranks = ranks
        self._lock = threading.Lock()
        # Of each job, by rank: how many of the wanted blocks were read, and whether that is all.
        self._said: dict[int, dict[int, tuple[int, bool]]] = {}
        self._given: dict[int, int] = {}
        self._held: Part | None = None

    def start(self, job: Job) -> None:
        """See `Reader`."""
        job.number = next(self._numbers)
        with self._lock:
            self._said[job.number] = dict.fromkeys(self._ranks, (0, False))
        self._given[job.number] = 0
        self._send({"read": [job.number, [digest.hex() for digest in job.digests], job.wanted]})
        super().start(job)

    def hear(self, rank: int, number: int, count: int, is_last: bool) -> None:
        """A rank, by another thread, tells how many of a job's blocks it has read, and whether that is all."""
        with self._lock:
            if number in self._said:
                self._said[number][rank] = (count, is_last)
        self.wake()

    def take(self) -> Part | None:
        """See `Reader`; nothing while a rank still reads."""
        while (part := self._held or super().take()) is not None:
            self._held = part
            if not part.job.is_late:
                return self._shared(part)
            self._done(part, is_last=part.is_last)  # no one waits for it, and the others have let go of it
        return None

    def _shared(self, part: Part) -> Part | None:
        """A part, as far as every rank has it; None where that is not known yet."""
        number = part.job.number
        first = self._given[number]
        end = first + len(part.blocks)
        with self._lock:
            said = list(self._said[number].values())
        if not all(is_last or count >= end for count, is_last in said):
            return None
        num_shared = min([end, *(count for count, _ in said)]) - first
        is_last = part.is_last or num_shared < len(part.blocks)
        self._given[number] = first + num_shared
        self._done(part, is_last=is_last)
        return Part(part.job, dict(itertools.islice(part.blocks.items(), num_shared)), is_last)

    def _done(self, part: Part, *, is_last: bool) -> None:
        self._held = None
        if is_last:
            with self._lock:
                self._said.pop(part.job.number, None)
            self._given.pop(part.job.number, None)


class LeadDisk(DiskCache):
    """A `DiskCache` that writes down what it does to blocks in the scheduler's log, and sends that at once.

    At once, because a rank's reader may wait for room that an `insert` makes while no step is taken, and because after the last step of an
    answer none may come for long.
    """

    def __init__(
        self,
        folder: BlockFolder,
        scheduler: LeadScheduler,
        copier: BlockCopier,
        *,
        clock: Callable[[], float],
        ranks: range,
        send: Send,
    ) -> None:
        self._lead_reader = LeadReader(folder, max_bytes=READ_BYTES, ranks=ranks, send=send)
        super().__init__(folder, scheduler.pool, copier, clock=clock, reader=self._lead_reader)
        self._scheduler, self._send = scheduler, send
        self._open: set[int] = set()
        self._saved: list[tuple[str, int | None, int]] = []
        self._is_told = True

    def hear(self, rank: int, said: Mapping[str, Any]) -> None:
        """What a rank's disk says, on another thread than the engine's."""
        if "read" in said:
            self._lead_reader.hear(rank, *said["read"])
        for digest in said.get("forget", ()):
            self._known.pop(bytes.fromhex(digest), None)
        if said.get("closed"):
            self._writer.end()

    def hold(self, sequence: Sequence, then: Callable[[], None]) -> bool:
        """See `DiskCache`."""
        is_held = super().hold(sequence, then)
        if is_held:
            self._open.add(next(reversed(self._jobs)).number)
        return is_held

    def take_arrivals(self) -> None:
        """See `DiskCache`."""
        super().take_arrivals()
        self._tell()

    def save(self, step: Step) -> None:
        """See `DiskCache`."""
        super().save(step)
        if self._saved:
            self._note(["save", self._saved])
            self._saved = []
        self._tell()

    def _fill(self, part: Part, chain: list[bytes], new: list[bytes]) -> None:
        super()._fill(part, chain, new)
        ends = part.is_last and part.job.number in self._open
        names = {digest: place for place, digest in enumerate(chain)}
        places = [names[digest] for digest in new]
        self._note(["insert", part.job.number, [digest.hex() for digest in chain], places, len(part.blocks), ends])
        if ends:
            self._open.discard(part.job.number)

    def _release(self, job: Job) -> None:
        if job.number in self._open:
            self._open.discard(job.number)
            self._note(["drop", job.number])
        super()._release(job)

    def _queue(self, digest: bytes, block: int | None, used_ns: int) -> None:
        super()._queue(digest, block, used_ns)
        self._saved.append((digest.hex(), block, used_ns))

    def _note(self, call: list[Any]) -> None:
        self._scheduler.note(call)
        self._is_told = False

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            for told in frames(self._scheduler.take_log()):
                self._send(told)
