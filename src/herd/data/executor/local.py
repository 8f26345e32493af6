"""Processes of this machine carry out a plan. Any number of them gives the same bytes, since shards share nothing.

Workers are spawned, never forked, and end by themselves when the process that started them is gone: a killed run leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import threading
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herd.base.errors import HerdError, UsageError, from_dict
from herd.base.progress import track_steps
from herd.data.executor.plan import Plan, Step
from herd.data.executor.shard_run import is_done, run_shard

_MAX_WORKERS = 1024


_work: tuple[Plan, Path] | None = None
"""In a worker: what it works on, sent once rather than with every shard."""


def _begin(plan: Plan, folder: Path) -> None:
    """In a worker: take the plan, and leave with the parent."""
    global _work
    _work = (plan, folder)
    leave_with_parent()


def leave_with_parent() -> None:
    """In a worker process: leave as soon as the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _attempt(name: str, number: int) -> dict[str, Any] | None:
    """In a worker: carry out a shard; returns what a user caused as data, since an exception loses its hint on the way."""
    assert _work is not None
    plan, folder = _work
    try:
        run_shard(plan, name, number, folder)
    except HerdError as error:
        return error.to_dict()
    return None


@contextmanager
def claimed(folder: Path) -> Generator[None, None, None]:
    """Hold a folder against a second run. Raises UsageError if one is under way."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another run is at work in {folder}", hint="wait for it, or choose another --output") from error
        yield


def clear_leftovers(step: Step, folder: Path) -> None:
    """Remove what a killed run left half-written, and shards that the plan no longer has."""
    known = {shard.name for shard in step.shards}
    place = folder / step.name
    for path in place.iterdir() if place.is_dir() else ():
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


def run_local(plan: Plan, folder: Path, *, workers: int = 1) -> int:
    """Carry out whatever of a plan is not done; returns how many shards that were.

    Raises UsageError for a number of workers out of range, and the error of the first shard that fails once those under way have ended.
    """
    if not 1 <= workers <= _MAX_WORKERS:
        raise UsageError(f"workers is {workers}, it must be 1 to {_MAX_WORKERS}", hint="leave it out for one a core")
    count = 0
    with claimed(folder):
        pool = None if workers == 1 else _pool(plan, folder, workers)
        try:
            for step in plan.steps:
                clear_leftovers(step, folder)
                pending = [number for number in range(len(step.shards)) if not is_done(plan, step, number, folder)]
                count += len(pending)
                with track_steps(step.name, total=len(step.shards), done=len(step.shards) - len(pending)) as advance:
                    done = len(step.shards) - len(pending)
                    for _ in _each(plan, step, pending, folder) if pool is None else _pooled(pool, step, pending):
                        done += 1
                        advance(done, "")
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
    return count


def _pool(plan: Plan, folder: Path, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(plan, folder))


def _each(plan: Plan, step: Step, pending: list[int], folder: Path) -> Generator[int, None, None]:
    for number in pending:
        run_shard(plan, step.name, number, folder)
        yield number


def _pooled(pool: ProcessPoolExecutor, step: Step, pending: list[int]) -> Generator[int, None, None]:
    futures: dict[Future[dict[str, Any] | None], int] = {pool.submit(_attempt, step.name, number): number for number in pending}
    waiting = set(futures)
    failure: dict[str, Any] | None = None
    while waiting:
        ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in ended:
            if future.cancelled():
                continue
            try:
                failure = future.result() or failure
            except BrokenProcessPool as error:
                raise HerdError(
                    f"step {step.name}: a worker was killed, perhaps for want of memory",
                    hint="run the same command again, with fewer --workers; what is done stays done",
                ) from error
            yield futures[future]
        if failure is not None:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise from_dict(failure)
