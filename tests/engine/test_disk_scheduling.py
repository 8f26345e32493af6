"""The disk beside a scheduler of few blocks: every read of the cache is checked by a fake model, and every invariant between steps."""

from __future__ import annotations

import secrets
import struct
from pathlib import Path
from random import Random

import pytest
from fake_engine import VOCAB, FakeEngine, WipingPool  # pyright: ignore[reportMissingImports]

from herd.engine.disk.block_file import BlockFormat
from herd.engine.disk.cache import DiskCache
from herd.engine.disk.folder import BlockFolder
from herd.engine.request import Sequence
from herd.engine.step import Step

STATE = "0" * 32


class IntegerBlocks:
    """Copies blocks of the fake cache."""

    def __init__(self, pool: WipingPool) -> None:
        self._cache, self._struct = pool.cache, struct.Struct(f"<{pool.block_size}Q")
        self.block_layout, self.block_bytes = "prints", self._struct.size

    def copy_out(self, block: int) -> memoryview:
        content = self._cache.blocks[block]
        assert None not in content, "a block is saved that was not written"
        return memoryview(self._struct.pack(*content))

    def copy_in(self, block: int, content: memoryview) -> None:
        self._cache.blocks[block] = list(self._struct.unpack(content))


class DiskEngine(FakeEngine):
    """A fake engine with a cache on disk; requests that wait for it stand in `num_held`."""

    def __init__(self, root: Path, **sizes: object) -> None:
        super().__init__(**sizes)  # type: ignore[arg-type]
        copier = IntegerBlocks(self.pool)
        format = BlockFormat(layout=copier.block_layout, content_bytes=copier.block_bytes, key=bytes(32))
        folder = BlockFolder(root, STATE, format, max_bytes=120 * format.file_bytes)
        self.disk = DiskCache(folder, self.pool, copier, clock=lambda: self.now)
        self.num_held = 0

    def ask(self, prompt: list[int], max_new_tokens: int, *, n: int, **fields: object) -> None:
        first = Sequence(id=0, prompt=tuple(prompt), max_new_tokens=max_new_tokens, **fields)  # type: ignore[arg-type]

        def then() -> None:
            self.num_held -= 1
            self.submit(prompt, max_new_tokens, n=n, **fields)

        self.num_held += 1
        if not self.disk.hold(first, then):
            then()

    def finish(self, step: Step) -> list[Sequence]:
        ended = super().finish(step)
        self.disk.save(step)
        return ended


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_misread_lost_or_held_for_ever(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    num_read = 0
    for _ in range(3):
        engine = DiskEngine(tmp_path, num_blocks=rng.choice((8, 12, 33)), block_size=rng.choice((2, 2, 3)), max_context=14, rng=rng)
        prompts = [[rng.randrange(1, 1 + VOCAB) for _ in range(4)] for _ in range(3)]
        for _ in range(40):
            for _ in range(rng.randrange(3)):
                prompt = rng.choice(prompts) + [rng.randrange(1, 1 + VOCAB) for _ in range(rng.randrange(7))]
                salt, reuse = rng.choice((b"", b"", b"x")), rng.random() < 0.9
                engine.ask(prompt, rng.randrange(1, 9), n=rng.choice((1, 1, 2)), salt=salt, reuse_prefix=reuse)
            engine.disk.take_arrivals()
            engine.scheduler.check()
            if engine.live and rng.random() < 0.1:
                engine.cancel(rng.choice(list(engine.live.values())))
            engine.step()
            engine.scheduler.check()
            if rng.random() < 0.3:
                engine.disk.flush(5.0)
        while engine.live or engine.num_held:
            engine.disk.take_arrivals()
            engine.step()
            engine.scheduler.check()
        engine.disk.close()
        num_read += engine.disk.counters()["blocks_read"]
        assert engine.disk.patience_s is None and engine.pool.num_references == 0
    assert num_read > 0


def test_a_hole_in_a_prefix_ends_what_is_taken(tmp_path: Path) -> None:
    """Blocks behind it are of no use, so they take no room."""
    engine = DiskEngine(tmp_path, block_size=2)
    engine.submit([1, 2, 3, 1, 2, 3, 1, 2, 3], 1)
    engine.run()
    engine.disk.close()
    blocks = sorted(tmp_path.glob("*/*.kv"), key=lambda path: -path.stat().st_mtime_ns)
    blocks[2].unlink()
    again = DiskEngine(tmp_path, block_size=2)
    again.ask([1, 2, 3, 1, 2, 3, 1, 2, 3], 1, n=1)
    while again.num_held:
        again.disk.take_arrivals()
    assert again.pool.num_cached == 2
    again.disk.close()


def test_a_prompt_without_files_never_waits(tmp_path: Path) -> None:
    engine = DiskEngine(tmp_path)
    engine.ask([1, 2, 3, 1, 2, 3], 1, n=1)
    assert not engine.num_held and engine.disk.patience_s is None
    engine.run()
    engine.disk.close()


def test_an_adapter_s_blocks_stay_in_memory(tmp_path: Path) -> None:
    """Its name does not tell its weights."""
    engine = DiskEngine(tmp_path, block_size=2)
    engine.submit([1, 2, 3, 1, 2], 1, adapter=secrets.token_hex(4))
    engine.run()
    engine.disk.close()
    assert not list(tmp_path.glob("*/*.kv"))
