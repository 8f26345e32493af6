"""The prefix cache on disk under an engine: what is found after a restart, and that no answer depends on it."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import VOCAB, Answer, answers, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError
from herd.engine.disk import cache as module
from herd.engine.disk import folder as folder_module
from herd.engine.disk.cache import DiskCache
from herd.engine.disk.folder import BlockFolder
from herd.engine.engine import Engine, EngineError
from herd.engine.memory import EngineConfig, plan_memory
from herd.engine.params import TokenParams
from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import Admitted, PromptLogprobs, TokenRequest, Tokens
from herd.engine.torch_runner import TorchRunner
from herd.kernels import dispatch
from herd.model.presets import preset
from herd.model.transformer import Transformer

REQUESTS = mixed_requests(60)
LONG = TokenRequest(prompt=tuple(range(200)), params=TokenParams(max_tokens=8, temperature=0.0, logprobs=2))


class OwnTransformer(Transformer):
    """One that the torch runner runs."""


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return small_model(request.param)


@pytest.fixture(scope="module")
def plain() -> Transformer:
    return small_model()


@pytest.fixture(scope="module")
def cold(model: Transformer) -> list[Answer]:
    return answers(small_engine(model), REQUESTS, at_once=16)


def disk_of(engine: Engine) -> DiskCache:
    assert engine.disk is not None
    return engine.disk


def count(engine: Engine, name: str) -> int:
    return disk_of(engine).counters()[name]


def cached(engine: Engine, request: TokenRequest = LONG) -> int:
    """How many tokens of a prompt were not computed."""
    found = [event.num_cached for event in engine.submit(request) if isinstance(event, Admitted)]
    engine.scheduler.check()
    return found[0]


def fill(model: Transformer, folder: Path, request: TokenRequest = LONG, **changes: object) -> None:
    """Leave a request's blocks in the folder."""
    engine = small_engine(model, prefix_dir=str(folder), **changes)
    assert cached(engine, request) == 0
    engine.close()


def told_by(engine: Engine, request: TokenRequest) -> tuple[list[TokenLogprobs], list[Tokens]]:
    """Log-probabilities of the prompt, and what was written."""
    events = list(engine.submit(request))
    prompt = [found for event in events if isinstance(event, PromptLogprobs) for found in event.logprobs]
    return prompt, [event for event in events if isinstance(event, Tokens)]


@pytest.mark.parametrize("threaded", [False, True], ids=["driven", "threaded"])
def test_answers_after_a_restart_are_the_same_bits(model: Transformer, cold: list[Answer], tmp_path: Path, threaded: bool) -> None:
    for is_hot in (False, True):
        engine = small_engine(model, prefix_dir=str(tmp_path), threaded=threaded)
        assert answers(engine, REQUESTS, at_once=16) == cold
        engine.close()
        engine.scheduler.check()
        assert bool(count(engine, "blocks_read")) == is_hot
        assert bool(count(engine, "blocks_written")) != is_hot


@pytest.mark.parametrize("changes", [{"num_draft": 4}, {"context": 280, "block_size": 4, "num_blocks": 72}], ids=["guesses", "preemptions"])
def test_so_they_are_with_guesses_and_preemptions(
    model: Transformer, cold: list[Answer], tmp_path: Path, changes: dict[str, object]
) -> None:
    for _ in range(2):
        engine = small_engine(model, prefix_dir=str(tmp_path), **changes)
        assert answers(engine, REQUESTS, at_once=32) == cold
        engine.scheduler.check()
        engine.close()
    assert count(engine, "blocks_read") > 0
    assert engine.stepper.results.num_guesses_accepted or engine.scheduler.num_preemptions


def test_a_restart_skips_the_work(model: Transformer, tmp_path: Path) -> None:
    fill(model, tmp_path)
    engine = small_engine(model, prefix_dir=str(tmp_path))
    assert cached(engine) == 192
    assert count(engine, "blocks_read") == 12 and count(engine, "read_bytes") == 12 * 16 * model.config.kv_bytes_per_token(
        model.dtype.itemsize
    )
    longer = replace(LONG, prompt=LONG.prompt + LONG.prompt)
    assert cached(engine, longer) == 192, "a longer prompt goes on from there"


def test_the_answer_is_kept_too_for_the_next_turn(plain: Transformer, tmp_path: Path) -> None:
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    request = replace(LONG, params=replace(LONG.params, max_tokens=40))
    ids = [token_id for event in engine.submit(request) if isinstance(event, Tokens) for token_id in event.ids]
    engine.close()
    following = replace(LONG, prompt=(*LONG.prompt, *ids, 1, 2, 3))
    assert cached(small_engine(plain, prefix_dir=str(tmp_path)), following) == (200 + 39) // 16 * 16


def test_what_was_evicted_from_memory_is_found_on_disk(plain: Transformer, tmp_path: Path) -> None:
    engine = small_engine(plain, prefix_dir=str(tmp_path), context=280, num_blocks=19)
    expected = answers(engine, [LONG])
    answers(engine, [replace(LONG, prompt=tuple(range(VOCAB - 1, VOCAB - 251, -1)))])
    assert disk_of(engine).flush(5.0)
    assert answers(engine, [LONG]) == expected
    assert count(engine, "blocks_read") > 0 and engine.scheduler.pool.num_evictions > 0
    engine.scheduler.check()


def test_running_sequences_keep_their_blocks(plain: Transformer, tmp_path: Path) -> None:
    """With too few free blocks for what was read, the beginning is taken and the rest computed."""
    fill(plain, tmp_path, context=300, num_blocks=30)
    engine = small_engine(plain, prefix_dir=str(tmp_path), context=300, num_blocks=22)
    other = replace(LONG, prompt=tuple(range(300, 100, -1)), params=replace(LONG.params, max_tokens=90))
    stream = engine.submit(other)
    running = iter(stream)
    while not isinstance(next(running), Tokens):
        pass
    alone = answers(small_engine(plain), [LONG])
    assert answers(engine, [LONG]) == alone
    assert engine.scheduler.num_preemptions == 0
    assert count(engine, "blocks_read") > 0
    assert sum(isinstance(event, Tokens) for event in running) == 89


def test_a_group_and_a_reported_prompt_go_on_from_the_disk(plain: Transformer, tmp_path: Path) -> None:
    reported = replace(LONG, n=3, params=replace(LONG.params, prompt_logprobs=1, prompt_logprobs_from=100, temperature=1.0))
    expected = told_by(small_engine(plain), reported)
    fill(plain, tmp_path)
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    assert told_by(engine, reported) == expected
    assert engine.scheduler.pool.num_hit_tokens == 96
    assert cached(engine, replace(LONG, reuse_prefix=False)) == 0


@pytest.mark.parametrize("damage", [lambda data: data[:50], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""])
def test_a_damaged_block_is_computed_again(plain: Transformer, tmp_path: Path, damage: object) -> None:
    fill(plain, tmp_path)
    blocks = sorted(tmp_path.glob("*/*.kv"), key=lambda path: -path.stat().st_mtime_ns)
    blocks[5].write_bytes(damage(blocks[5].read_bytes()))  # type: ignore[operator]
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    assert answers(engine, [LONG]) == answers(small_engine(plain), [LONG])
    assert engine.scheduler.pool.num_hit_tokens == 5 * 16
    assert count(engine, "blocks_damaged") == 1
    engine.close()
    assert cached(small_engine(plain, prefix_dir=str(tmp_path))) == 192, "it was written anew"


def test_a_file_under_another_s_name_is_not_taken(plain: Transformer, tmp_path: Path) -> None:
    fill(plain, tmp_path)
    blocks = sorted(tmp_path.glob("*/*.kv"), key=lambda path: -path.stat().st_mtime_ns)
    os.replace(blocks[3], blocks[0])
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    assert cached(engine) == 0 and count(engine, "blocks_damaged") == 1


def test_another_salt_finds_nothing(plain: Transformer, tmp_path: Path) -> None:
    fill(plain, tmp_path, replace(LONG, salt=b"tenant"))
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    assert cached(engine) == cached(engine, replace(LONG, salt=b"other")) == 0
    assert cached(engine, replace(LONG, salt=b"tenant")) == 192


def test_another_secret_finds_nothing(plain: Transformer, tmp_path: Path) -> None:
    fill(plain, tmp_path)
    (tmp_path / "key").unlink()
    assert cached(small_engine(plain, prefix_dir=str(tmp_path))) == 0


@pytest.mark.parametrize("change", [{"block_size": 8}, {"cache_dtype": "bfloat16"}, {"cache_dtype": "float16"}])
def test_another_layout_finds_nothing(plain: Transformer, tmp_path: Path, change: dict[str, object]) -> None:
    fill(plain, tmp_path)
    assert cached(small_engine(plain, prefix_dir=str(tmp_path), **change)) == 0
    assert cached(small_engine(plain, prefix_dir=str(tmp_path))) == 192


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    fill(small_model(), tmp_path)
    assert cached(small_engine(small_model(torch.bfloat16), prefix_dir=str(tmp_path))) == 0
    changed = small_model()
    with torch.no_grad():
        changed.model.layers[1].get_parameter("self_attn.k_proj.weight")[5, 7] += 0.125
    assert cached(small_engine(changed, prefix_dir=str(tmp_path))) == 0, "one weight is another"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    dispatch.reload()


@pytest.mark.usefixtures("reference")
def test_other_kernels_find_nothing(plain: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(plain, tmp_path)
    monkeypatch.setitem(os.environ, "HERD_KERNELS", "reference")
    dispatch.reload()
    fill(plain, tmp_path)


def test_the_torch_runner_s_blocks_survive_too(tmp_path: Path) -> None:
    own = OwnTransformer(small_model().config)
    own.load_state_dict(small_model().state_dict())
    own.eval()
    fill(own, tmp_path)
    engine = small_engine(own, prefix_dir=str(tmp_path))
    assert isinstance(engine.stepper.runner, TorchRunner)
    assert cached(engine) == 192
    assert cached(small_engine(small_model(), prefix_dir=str(tmp_path))) == 0


def test_two_engines_share_a_folder(model: Transformer, cold: list[Answer], tmp_path: Path) -> None:
    engines = [small_engine(model, prefix_dir=str(tmp_path), threaded=True) for _ in range(2)]
    found: list[list[Answer]] = []
    threads = [threading.Thread(target=lambda engine=engine: found.append(answers(engine, REQUESTS, at_once=8))) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cold, cold]
    assert cached(engines[0], replace(LONG, salt=b"new")) == 0
    engines[0].close()
    assert cached(engines[1], replace(LONG, salt=b"new")) == 192, "one finds what the other wrote, without a restart"
    engines[1].close()


def test_many_that_share_a_prefix_read_it_once(plain: Transformer, tmp_path: Path) -> None:
    fill(plain, tmp_path)
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    requests = [replace(LONG, prompt=(*LONG.prompt, number)) for number in range(16)]
    answers(engine, requests, at_once=16)
    assert count(engine, "blocks_read") == 12 and engine.scheduler.pool.num_hit_tokens == 16 * 192


def test_the_limit_holds_under_an_engine(plain: Transformer, tmp_path: Path) -> None:
    limit = 40 * 9000
    engine = small_engine(plain, prefix_dir=str(tmp_path), prefix_dir_bytes=limit)
    answers(engine, mixed_requests(60, seed=3), at_once=8)
    engine.close()
    assert limit // 2 < sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= limit
    assert count(engine, "blocks_evicted") > 0


def test_a_limit_that_holds_hardly_a_block_is_refused(plain: Transformer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prefix_dir_bytes is 20,000"):
        small_engine(plain, prefix_dir=str(tmp_path), prefix_dir_bytes=20_000)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_only_read(
    plain: Transformer, tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(plain, tmp_path)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module.os, "open", refuse)
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    requests = mixed_requests(20)
    assert answers(engine, requests) == answers(small_engine(plain), requests)
    assert cached(engine) == 192
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(code) in caplog.text
    assert count(engine, "blocks_written") == 0
    engine.close()


def test_what_the_queue_does_not_take_is_dropped(plain: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stands still: the answer comes all the same."""
    gate = threading.Event()
    write = BlockFolder.write
    monkeypatch.setattr(BlockFolder, "write", lambda *args: gate.wait(10) and write(*args))
    monkeypatch.setattr(module, "WRITE_BYTES", 4 * 8192)
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    assert answers(engine, [LONG]) == answers(small_engine(plain), [LONG])
    dropped = count(engine, "blocks_dropped")
    gate.set()
    assert dropped > 0 and disk_of(engine).flush(5.0)
    assert 4 <= count(engine, "blocks_written") <= 5
    cached(engine)
    assert disk_of(engine).flush(5.0)
    assert count(engine, "blocks_written") > 5, "the next that comes with the prefix has the rest written"


def slow_reads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    gate = threading.Event()
    read = BlockFolder.read
    monkeypatch.setattr(BlockFolder, "read", lambda *args: read(*args) if gate.wait(30) else None)
    return gate


@pytest.mark.parametrize("threaded", [False, True], ids=["driven", "threaded"])
def test_a_disk_that_hangs_is_waited_for_a_while(
    plain: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    fill(plain, tmp_path)
    gate = slow_reads(monkeypatch)
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    engine = small_engine(plain, prefix_dir=str(tmp_path), threaded=threaded)
    began = time.monotonic()
    assert cached(engine) == 0
    assert time.monotonic() - began >= 0.2
    gate.set()
    engine.close()


def test_others_go_on_meanwhile_and_who_waits_can_leave(plain: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(plain, tmp_path)
    gate = slow_reads(monkeypatch)
    monkeypatch.setattr(module, "PATIENCE_S", 30.0)
    engine = small_engine(plain, prefix_dir=str(tmp_path), threaded=True)
    waiting, leaving = engine.submit(LONG), engine.submit(LONG)
    other = replace(LONG, prompt=(9, 8, 7))
    assert answers(engine, [other]) == answers(small_engine(plain), [other])
    leaving.cancel()
    assert [event.finish for event in leaving if isinstance(event, Tokens)] == ["cancelled"]
    gate.set()
    assert next(iter(waiting)) == Admitted(num_cached=192)
    engine.close()


def test_what_waits_fails_when_the_engine_closes(plain: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(plain, tmp_path)
    gate = slow_reads(monkeypatch)
    engine = small_engine(plain, prefix_dir=str(tmp_path), threaded=True)
    stream = engine.submit(LONG)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    gate.set()


def test_an_engine_that_no_one_closed_ends_its_threads(plain: Transformer, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    engine = small_engine(plain, prefix_dir=str(tmp_path))
    own = set(threading.enumerate()) - before
    assert sorted(thread.name for thread in own) == ["herd-prefix-reader", "herd-prefix-writer"]
    assert cached(engine) == 0
    del engine
    gc.collect()
    for thread in own:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert len(list(tmp_path.glob("*/*.kv"))) == 12, "what was queued is written first"


def test_a_process_that_ends_writes_what_is_queued(tmp_path: Path) -> None:
    script = (
        "from small_model import *\n"
        "import sys\n"
        "engine = small_engine(small_model(), prefix_dir=sys.argv[1])\n"
        "answers(engine, [TokenRequest(prompt=tuple(range(200)), params=TokenParams(max_tokens=1))])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.glob("*/*.kv"))) == 12
    engine = small_engine(small_model(), prefix_dir=str(tmp_path))
    assert cached(engine) == 192, "another process finds it"


def test_the_plan_counts_what_is_on_its_way() -> None:
    without, with_it = (plan_memory(preset("cria-8m"), EngineConfig(prefix_dir=folder), dtype="bfloat16") for folder in (None, "x"))
    assert with_it.total_bytes - without.total_bytes == 192 * 2**20
