"""The prefix cache on disk of a model over several processes: its answers are those without it, and what one rank lacks is not there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from parallel_helpers import checkpoint, parallel_engine  # pyright: ignore[reportMissingImports]
from small_model import Answer, answers, mixed_requests  # pyright: ignore[reportMissingImports]

from herd.engine.disk import cache
from herd.engine.disk.cache import DiskCache
from herd.engine.parallel.engine import ParallelEngine
from herd.engine.params import TokenParams
from herd.engine.stream import Admitted, TokenRequest

REQUESTS = mixed_requests(14, seed=4, max_tokens=8)
LONG = TokenRequest(prompt=tuple(range(200)), params=TokenParams(max_tokens=4, temperature=0.0, logprobs=1))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("spread-disk") / "model")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt gives the disk up, however slow the machine is."""
    monkeypatch.setattr(cache, "PATIENCE_S", 600.0)


def disk_of(engine: ParallelEngine) -> DiskCache:
    assert engine.disk is not None
    return engine.disk


def cached(engine: ParallelEngine, request: TokenRequest) -> int:
    """How many tokens of a prompt were not computed."""
    return next(event.num_cached for event in list(engine.submit(request)) if isinstance(event, Admitted))


def without(engine: ParallelEngine) -> list[Answer]:
    """The answers where no prefix is looked for nor kept."""
    return answers(engine, [replace(request, reuse_prefix=False) for request in REQUESTS], at_once=14)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (2, 2)], ids=["tp2", "tp2-pp2"])
def test_answers_after_a_restart_are_the_same_bits_with_guesses_too(path: Path, tmp_path: Path, tp: int, pp: int) -> None:
    sizes = {"tp": tp, "pp": pp, "prefix_dir": str(tmp_path), "num_draft": 3}
    engine = parallel_engine(path, **sizes)
    expected = without(engine)
    assert answers(engine, REQUESTS, at_once=14) == expected
    assert cached(engine, LONG) == 0
    engine.close()
    states = [folder for folder in tmp_path.iterdir() if folder.is_dir()]
    names = [sorted(file.name for file in folder.iterdir()) for folder in states]
    assert len(states) == tp * pp and names[0] and all(name == names[0] for name in names), "every rank has its share of every block"
    # Of one block another rank's file goes, another block's is damaged: both are computed again, with all behind them.
    files = sorted((file for file in states[-1].iterdir()), key=lambda file: file.stat().st_mtime_ns)
    files[len(files) // 2].unlink()
    files[len(files) // 4].write_bytes(bytes(files[0].stat().st_size))

    engine = parallel_engine(path, **sizes)
    assert answers(engine, REQUESTS, at_once=14) == expected
    assert 0 < cached(engine, LONG) <= 192
    assert disk_of(engine).counters()["blocks_read"] > 0
    engine.scheduler.check()
    assert engine.broken is None and not engine.scheduler.sequences
    engine.close()


def test_what_was_evicted_from_memory_is_found_on_disk_by_every_rank(path: Path, tmp_path: Path) -> None:
    engine = parallel_engine(path, pp=2, prefix_dir=str(tmp_path), context=280, num_blocks=19)
    expected = answers(engine, [LONG, REQUESTS[0]])
    while [len(list(tmp_path.glob(f"{folder.name}/*.kv"))) >= 12 for folder in tmp_path.iterdir() if folder.is_dir()] != [True, True]:
        time.sleep(0.02)  # what is written by threads of both
    other = replace(LONG, prompt=tuple(range(319, 69, -1)))
    for _ in range(3):
        answers(engine, [other])
        assert cached(engine, LONG) == 192
        assert answers(engine, [LONG, REQUESTS[0]]) == expected
    assert engine.scheduler.pool.num_evictions > 12
    engine.close()
