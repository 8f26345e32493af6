"""What goes wrong between processes: one that is killed, hangs, takes another step or cannot load; and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_helpers import all_gone, checkpoint, is_gone, parallel_engine  # pyright: ignore[reportMissingImports]
from small_model import CONFIG  # pyright: ignore[reportMissingImports]

from herd.base.errors import CheckpointError, ConfigError, DoesNotFitError
from herd.engine.engine import EngineError
from herd.engine.parallel.engine import ParallelEngine
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens, TokenStream
from herd.model.transformer import Transformer

LONG = TokenRequest(prompt=(1, 2, 3), params=TokenParams(max_tokens=500, temperature=1.0))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("faults") / "model")


def begun(engine: ParallelEngine) -> TokenStream:
    """A request that has given its first token."""
    stream = engine.submit(LONG)
    next(event for event in stream if isinstance(event, Tokens))
    return engine.submit(LONG)


def fails(engine: ParallelEngine, stream: TokenStream, match: str) -> None:
    """The request and all later ones fail by the same error, and no process is left."""
    with pytest.raises(EngineError, match=match):
        list(stream)
    with pytest.raises(EngineError, match=match):
        engine.submit(LONG)
    assert all_gone(list(engine.workers.pids.values()), 5)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 3), (2, 2)])
def test_a_rank_that_is_killed_ends_the_engine_at_once(path: Path, tp: int, pp: int) -> None:
    engine = parallel_engine(path, tp=tp, pp=pp)
    stream = begun(engine)
    last = engine.workers.size - 1
    before = time.monotonic()
    os.kill(engine.workers.pids[last], signal.SIGKILL)
    fails(engine, stream, f"rank {last} of {last + 1} was killed by SIGKILL")
    assert time.monotonic() - before < 10
    engine.close()


def test_a_rank_that_hangs_ends_the_engine_within_its_timeout(path: Path) -> None:
    engine = parallel_engine(path, tp=2, timeout_s=3.0)
    stream = begun(engine)
    before = time.monotonic()
    os.kill(engine.workers.pids[1], signal.SIGSTOP)
    fails(engine, stream, "rank 1 of 2 hangs: it said nothing for 3 s")
    assert time.monotonic() - before < 10
    engine.close()


def test_a_rank_that_is_killed_while_nothing_runs(path: Path) -> None:
    engine = parallel_engine(path, pp=2)
    os.kill(engine.workers.pids[1], signal.SIGKILL)
    while engine.broken is None:
        time.sleep(0.01)
    with pytest.raises(EngineError, match="rank 1 of 2 was killed by SIGKILL"):
        engine.submit(LONG)
    engine.close()


def test_a_rank_that_would_take_another_step_is_named(path: Path) -> None:
    engine = parallel_engine(path, tp=2)
    engine.scheduler.pool._blank.reverse()
    fails(engine, engine.submit(LONG), "rank 1 of 2 would take another step than rank 0: its step 1 has 1 sequences")
    engine.close()


def test_close_ends_every_process_and_fails_what_is_in_flight(path: Path) -> None:
    engine = parallel_engine(path, pp=2)
    stream = begun(engine)
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        list(stream)
    assert all(is_gone(pid) for pid in engine.workers.pids.values())
    with pytest.raises(EngineError, match="is closed"):
        engine.submit(LONG)
    engine.close()


def test_no_process_outlives_rank_0(path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("parent_process.py")), str(path)]
    parent = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2 and not any(is_gone(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all_gone(pids, 5)


def damaged(path: Path, folder: Path) -> Path:
    """The checkpoint, cut short once its header was read."""
    (folder / "config.json").write_bytes((path / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-4])
    return folder


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"tp": 3}, ConfigError, "tp 3 does not divide num_attention_heads 4"),
        ({"tp": 4}, ConfigError, "tp 4 does not divide num_key_value_heads 2"),
        ({"pp": 5}, ConfigError, "pp 5 is over the model's 4 layers"),
        ({"tp": 0}, ConfigError, "tp is 0, it must be at least 1"),
        (
            {"tp": 2, "prefix_dir": "none", "prefix_dir_bytes": 1000},
            ConfigError,
            "prefix_dir_bytes is 1,000, and a block of this model takes 16,808",
        ),
        ({"pp": 2, "num_blocks": None, "memory_bytes": 400 * 2**20}, DoesNotFitError, "rank 0 of 2 does not fit: one sequence of 640"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    path: Path, changes: dict[str, Any], kind: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*arguments: object, **options: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(kind, match=match):
        parallel_engine(path, **changes)


@pytest.mark.parametrize(
    ("changes", "device", "match"),
    [
        ({"vocab_size": 300}, "cpu", "the draft model has 300 token ids, the model 320"),
        ({}, "meta", "the draft model is on meta, and a model over several processes runs on the CPU"),
    ],
)
def test_a_draft_model_that_cannot_guess_is_refused_before_anything_starts(
    path: Path, changes: dict[str, int], device: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("a process was started"))
    with torch.device(device):
        draft = Transformer(replace(CONFIG, **changes))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=match):
        parallel_engine(path, tp=2, draft=draft)


def test_a_damaged_checkpoint_is_refused_by_its_own_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        parallel_engine(damaged(path, tmp_path), tp=2)


def test_a_worker_that_cannot_start_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def broken(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return started([command[0], "-c", "raise SystemExit(7)"], **options)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(subprocess, "Popen", broken)
    with pytest.raises(EngineError, match=r"rank 1 of 2 (ended with code 7|is gone)"):
        parallel_engine(path, tp=2)
