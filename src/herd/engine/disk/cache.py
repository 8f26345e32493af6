"""The prefix cache on disk as the stepper sees it: what a new prompt waits for, what came, what a step left to be written. No torch.

    hold            a prompt whose first missing block has a file waits until its blocks were read, or until nothing came for a while
    take_arrivals   between two steps: what was read goes into free blocks and is registered, so that the scheduler finds it as any prefix
    save            after a step: blocks that became full are copied out and queued for the writer

A digest stands for a prefix, an adapter and a salt, so tenants are kept apart on disk as they are in memory. Sequences of an adapter stay
out: its name does not tell its weights. Copies are made between steps, by the engine's thread; files are the business of two others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial

from herd.engine.batch import BlockCopier
from herd.engine.blocks import BlockPool
from herd.engine.disk.folder import BlockFolder, minute_now, stamp_ns
from herd.engine.disk.reader import PART_BYTES, Job, Part, Reader
from herd.engine.disk.writer import Writer
from herd.engine.request import Sequence, Status
from herd.engine.step import Step

WRITE_BYTES, READ_BYTES = 128 * 2**20, 64 * 2**20
"""What may lie in memory on its way to the disk, and from it."""
PATIENCE_S = 2.0
"""A prompt waits so long for the next part of what is being read."""
_MAX_KNOWN = 2**18


class DiskCache:
    """Blocks of `pool`, whose content `copier` copies, in `folder`. Calls come from the engine's thread.

    Attributes:
        num_dropped: blocks that were not written because too many waited to be.
    """

    def __init__(
        self, folder: BlockFolder, pool: BlockPool, copier: BlockCopier, *, clock: Callable[[], float], reader: Reader | None = None
    ) -> None:
        self._folder, self._pool, self._copier, self._clock = folder, pool, copier, clock
        # Digests that have a file, with the minute in which that was said last.
        self._known = known = dict[bytes, int]()
        self._writer = Writer(folder, max_bytes=WRITE_BYTES, forget=partial(_forget, known))
        self._reader = reader or Reader(folder, max_bytes=READ_BYTES)
        self._jobs: dict[Job, None] = {}
        self._coming: set[bytes] = set()
        self.num_dropped = 0
        # The threads know nothing of this object, so that an engine that no one closed can go, and they after it.
        weakref.finalize(self, _end, self._reader, self._writer).atexit = False

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, on another thread, whenever there are arrivals to take."""
        self._reader.wake = wake

    def counters(self) -> dict[str, int]:
        """What the metrics show."""
        return {
            "blocks_written": self._writer.num_written,
            "blocks_read": self._reader.num_read,
            "blocks_dropped": self.num_dropped,
            "blocks_damaged": self._folder.num_damaged,
            "blocks_evicted": self._folder.num_evicted,
            "written_bytes": self._writer.num_bytes,
            "read_bytes": self._reader.num_bytes,
        }

    def hold(self, sequence: Sequence, then: Callable[[], None]) -> bool:
        """Whether a new sequence had better wait for blocks that are being read now; `then` is called when it need not any more."""
        if sequence.adapter:
            return False
        pool, hasher = self._pool, self._pool.hasher
        most = min(len(sequence.prompt) - 1, sequence.reusable) // pool.block_size
        num_here = len(pool.lookup(hasher.block_hashes(sequence, most)))
        if num_here == most:
            return False
        first = hasher.block_hash(sequence, num_here)
        if first not in self._coming and not self._folder.has(first):
            return False
        digests = list(hasher.block_hashes(sequence, min(most, pool.num_usable)))
        # What another prompt reads is here by the time this one's turn has come.
        wanted = [index for index in range(num_here, len(digests)) if digests[index] not in self._coming]
        self._coming.update(digests[index] for index in wanted)
        job = Job(digests, wanted, then, self._clock() + PATIENCE_S)
        self._jobs[job] = None
        self._reader.start(job)
        return True

    @property
    def patience_s(self) -> float | None:
        """How long the first of those that wait would still wait; None where no one does."""
        if not self._jobs:
            return None
        return max(0.0, min(job.deadline for job in self._jobs) - self._clock())

    def take_arrivals(self) -> None:
        """Put what was read into the cache, some of it, and let those go on who have all there is, or waited too long."""
        left = PART_BYTES
        while left > 0 and (part := self._reader.take()) is not None:
            self._insert(part)
            left -= sum(content.nbytes for content in part.blocks.values())
        if left <= 0:
            self._reader.wake()  # there may be more
        now = self._clock()
        for job in [job for job in self._jobs if job.deadline <= now]:
            self._release(job)

    def _release(self, job: Job) -> None:
        if job in self._jobs:
            job.is_late = True
            del self._jobs[job]
            self._coming.difference_update(job.digests[index] for index in job.wanted)
            job.then()

    def _insert(self, part: Part) -> None:
        """Make cached blocks of what was read, as far as it goes on from what is here, in blocks that no one holds."""
        pool, job = self._pool, part.job
        here, new, chain = list[int](), list[bytes](), list[bytes]()
        for digest in job.digests:
            if (block := pool.find(digest)) is not None:
                here.append(block)
            elif digest in part.blocks:
                new.append(digest)
            else:
                break
            chain.append(digest)
        room = pool.num_free - pool.num_free_of(here)
        left_out = set(new[room:])
        new = new[:room]
        self._fill(part, [digest for digest in chain if digest not in left_out], new)
        self._known.update(dict.fromkeys(new, minute_now()))
        job.deadline = self._clock() + PATIENCE_S
        if part.is_last:
            self._release(job)

    def _fill(self, part: Part, chain: list[bytes], new: list[bytes]) -> None:
        """Put these blocks of a part into the cache."""
        fill(self._pool, self._copier, chain, {digest: part.blocks[digest] for digest in new})

    def save(self, step: Step) -> None:
        """Queue what became full in a step that was booked; at the end of a prompt and of an answer, what was dropped before too."""
        if not self._writer.is_open:
            return
        size = self._pool.block_size
        for sequence, num_tokens, first, num_sampled in step.items:
            if not sequence.reuse_prefix or sequence.adapter:
                continue
            ends = (num_sampled and first < len(sequence.prompt)) or sequence.status is Status.FINISHED
            begin = 0 if ends else first // size
            end = min(first + num_tokens, sequence.num_tokens - 1) // size
            if begin < end:
                self._save(sequence, begin, end)

    def _save(self, sequence: Sequence, begin: int, end: int) -> None:
        """Queue blocks begin..end-1 and note their use. One that cannot be queued stops it: no one would find those behind."""
        pool, known, minute = self._pool, self._known, minute_now()
        if len(known) > _MAX_KNOWN:
            known.clear()
        if begin and pool.hasher.block_hash(sequence, begin - 1) not in known:
            begin = 0
        for index in range(begin, end):
            digest = pool.hasher.block_hash(sequence, index)
            told = known.get(digest)
            if told == minute:
                continue
            if told is not None:
                self._queue(digest, None, stamp_ns(minute, index))
            elif (block := pool.find(digest)) is None:
                return
            elif not self._writer.has_room():
                self.num_dropped += end - index
                return
            else:
                self._queue(digest, block, stamp_ns(minute, index))
            known[digest] = minute

    def _queue(self, digest: bytes, block: int | None, used_ns: int) -> None:
        """Have a block written, of which there has to be room; or its use noted."""
        if block is None:
            self._writer.touch(digest, used_ns)
        else:
            self._writer.write(digest, self._copier.copy_out(block), used_ns)

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was saved lies in files; False where that took too long."""
        return self._writer.flush(timeout_s)

    def close(self) -> None:
        """Stop reading; write what is queued, for a while."""
        self._reader.end()
        self._writer.close()


def fill(pool: BlockPool, copier: BlockCopier, chain: list[bytes], new: Mapping[bytes, memoryview]) -> None:
    """Put the `new` blocks of a chain of digests into free ones; the chain's others are in the cache. There has to be room."""
    pool.acquire([block for digest in chain if (block := pool.find(digest)) is not None])  # they must not make room for the new ones
    for digest, block in zip(new, pool.allocate(len(new)), strict=True):
        copier.copy_in(block, new[digest])
        pool.register(block, digest)
    pool.release(pool.lookup(chain))


def _forget(known: dict[bytes, int], digest: bytes) -> None:
    known.pop(digest, None)


def _end(reader: Reader, writer: Writer) -> None:
    reader.end()
    writer.end()
