"""The disk beside the schedulers of three ranks, without processes: each has a fake cache of its own, and every read of it is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fake_engine import VOCAB, FakeEngine  # pyright: ignore[reportMissingImports]
from test_disk_scheduling import DiskEngine, IntegerBlocks  # pyright: ignore[reportMissingImports]

from herd.engine.disk.block_file import BlockFormat
from herd.engine.disk.folder import BlockFolder
from herd.engine.parallel.follower_disk import FollowerDisk
from herd.engine.parallel.lead_disk import LeadDisk
from herd.engine.parallel.replica import Follower, LeadScheduler, frames
from herd.engine.step import Step

RANKS = 3


def folder_of(root: Path, rank: int, copier: IntegerBlocks) -> BlockFolder:
    format = BlockFormat(layout=copier.block_layout, content_bytes=copier.block_bytes, key=bytes(32))
    return BlockFolder(root, f"{rank:032x}", format, max_bytes=500 * format.file_bytes)


class Rank(FakeEngine):
    """Another rank: does what it is told, over a cache of its own."""

    def __init__(self, root: Path, rank: int, lead: Lead, **sizes: Any) -> None:
        super().__init__(**sizes)
        copier = IntegerBlocks(self.pool)
        self.folder = folder_of(root, rank, copier)
        self.disk = FollowerDisk(self.folder, self.pool, copier, say=lambda said: lead.disk.hear(rank, json.loads(json.dumps(said))))
        self.follower = Follower(self.scheduler, rank=rank, size=RANKS)
        self.follower.disk = self.disk
        schedule, self.made = self.scheduler.schedule, Step()

        def made() -> Step:
            self.made = schedule()
            return self.made

        self.scheduler.schedule = made  # pyright: ignore[reportAttributeAccessIssue]

    def hear(self, told: Mapping[str, Any]) -> None:
        if "read" in told:
            self.disk.read(*told["read"])
        elif self.follower.take(told) is not None:
            self.live = {sequence.id: sequence for sequence in self.scheduler.sequences}
            self._compute(self.made)
        self.scheduler.check()


class Lead(DiskEngine):
    """Rank 0, and the others by their number."""

    disk: LeadDisk

    def __init__(self, root: Path, *, rng: Random | None = None, **sizes: Any) -> None:
        super().__init__(root, rng=rng, **sizes)
        self.disk.close()
        limits = self.scheduler.limits
        kept = {"token_budget": limits.token_budget, "max_sequences": limits.max_sequences, "max_context": limits.max_context}
        self.scheduler = LeadScheduler(self.pool, **kept, clock=lambda: self.now)
        copier, others = IntegerBlocks(self.pool), range(1, RANKS)
        folder = folder_of(root, 0, copier)
        self.disk = LeadDisk(folder, self.scheduler, copier, clock=lambda: self.now, ranks=others, send=self.send)
        self.ranks = [Rank(root, rank, self, **sizes) for rank in others]

    def send(self, told: Mapping[str, Any]) -> None:
        for rank in self.ranks:
            rank.hear(json.loads(json.dumps(told)))

    def tell(self, *rows: list[int]) -> None:
        for told in frames(self.scheduler.take_log(), *rows):
            self.send(told)

    def finish(self, step: Step) -> Any:
        self.tell([], [])
        return super().finish(step)

    def close(self) -> None:
        for part in (self, *self.ranks):
            part.disk.close()


@pytest.mark.parametrize("seed", range(4))
def test_no_rank_misreads_loses_or_waits_for_ever(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    num_read = 0
    for _ in range(3):
        engine = Lead(tmp_path, num_blocks=rng.choice((8, 12, 33)), block_size=2, max_context=14, rng=rng)
        slow = rng.choice(engine.ranks)
        slow.disk._writer.has_room = lambda: rng.random() < 0.5
        prompts = [[rng.randrange(1, 1 + VOCAB) for _ in range(4)] for _ in range(3)]
        for _ in range(40):
            for _ in range(rng.randrange(3)):
                prompt = rng.choice(prompts) + [rng.randrange(1, 1 + VOCAB) for _ in range(rng.randrange(7))]
                engine.ask(
                    prompt, rng.randrange(1, 9), n=rng.choice((1, 1, 2)), salt=rng.choice((b"", b"x")), reuse_prefix=rng.random() < 0.9
                )
            engine.disk.take_arrivals()
            if rng.random() < 0.1:
                engine.now += 3.0  # whoever waits has waited too long
            if engine.live and rng.random() < 0.1:
                engine.cancel(rng.choice(list(engine.live.values())))
            engine.step()
            engine.scheduler.check()
            if rng.random() < 0.3:
                assert all(part.disk._writer.flush(5.0) for part in (engine, *engine.ranks))
        while engine.live or engine.num_held:
            engine.disk.take_arrivals()
            engine.step()
        engine.tell()
        engine.close()
        num_read += engine.disk.counters()["blocks_read"]
        for rank in engine.ranks:
            assert not rank.scheduler.sequences and rank.pool.digests == engine.pool.digests
            assert not any(reading.blocks for reading in rank.disk._open.values())
        files = sorted(tmp_path.glob("*/*.kv"))
        for file in rng.sample(files, len(files) // 10):
            file.unlink()
    assert num_read > 0


def hold(engine: Lead) -> int:
    """Ask for what was written before; how many blocks came from the disk on every rank."""
    engine.ask([1, 2, 3, 1, 2, 3, 1, 2, 3], 1, n=1)
    while engine.num_held:
        engine.disk.take_arrivals()
    assert all(rank.pool.num_cached == engine.pool.num_cached for rank in engine.ranks)
    return engine.pool.num_cached


def written(root: Path) -> None:
    engine = Lead(root, block_size=2)
    engine.submit([1, 2, 3, 1, 2, 3, 1, 2, 3], 1)
    engine.run()
    engine.close()


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_block_that_one_rank_lacks_is_not_there(tmp_path: Path, rank: int) -> None:
    written(tmp_path)
    files = sorted(tmp_path.glob(f"{rank:032x}/*.kv"), key=lambda path: -path.stat().st_mtime_ns)
    assert len(files) == 4
    files[2].unlink()
    engine = Lead(tmp_path, block_size=2)
    assert hold(engine) == 2
    engine.run()
    engine.close()
    assert len(list(tmp_path.glob("*/*.kv"))) == RANKS * 4, "it was written again"
    again = Lead(tmp_path, block_size=2)
    assert hold(again) == 4
    again.run()
    again.close()


def test_a_rank_whose_disk_is_full_ends_the_writing_of_all(tmp_path: Path) -> None:
    engine = Lead(tmp_path, block_size=2)
    engine.ranks[0].disk._writer.is_open = False
    engine.submit([1, 2, 3, 1, 2, 3, 1, 2, 3], 4)
    engine.run()
    assert not engine.disk._writer.is_open
    engine.close()


def test_a_rank_that_reads_slowly_is_waited_for_and_one_that_never_comes_is_not(tmp_path: Path) -> None:
    written(tmp_path)
    engine = Lead(tmp_path, block_size=2)
    slow = engine.ranks[1].disk
    said: list[Any] = []
    tell = slow._say
    slow._say = said.append
    engine.ask([1, 2, 3, 1, 2, 3, 1, 2, 3], 1, n=1)
    while not said:
        engine.disk.take_arrivals()
    assert engine.num_held and engine.pool.num_cached == 0
    tell(said.pop(0))
    while engine.num_held:
        engine.disk.take_arrivals()
    assert engine.pool.num_cached == 4
    engine.run()
    engine.tell()
    engine.pool.forget()
    for rank in engine.ranks:
        rank.pool.forget()
    engine.ask([1, 2, 3, 1, 2, 3, 1, 2, 3], 1, n=1)
    while not said:
        engine.disk.take_arrivals()
    engine.now += 3.0
    engine.disk.take_arrivals()
    assert not engine.num_held and not slow._open and engine.pool.num_cached == 0
    engine.run()
    engine.close()
