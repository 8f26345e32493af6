"""Rows of several sources packed at once, each by a process of its own: a GPU otherwise waits for one core to tokenise.

What a source's rows are does not depend on it. An error of a worker comes back whole, hint and all.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.base.errors import HerdError, UsageError, from_dict
from herd.base.log import get_logger
from herd.base.progress import track_steps
from herd.data.executor.local import leave_with_parent
from herd.recipes.config import RecipeConfig
from herd.recipes.prepare import missing_sources, pack_source
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.train.config import SourceConfig, StageConfig

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """What the sources of a stage have in common."""

    stage: StageConfig
    config: RecipeConfig
    data: Path | None
    tokenizer: Path
    digest: str
    cache: Path


_work: tuple[Packing, Tokenizer] | None = None
"""In a worker: what it packs for, sent and loaded once."""


def _begin(packing: Packing) -> None:
    global _work
    leave_with_parent()
    _work = (packing, load_tokenizer(packing.tokenizer))


def _pack(source: SourceConfig) -> tuple[str, dict[str, Any] | None]:
    """In a worker: one source; its name, and what went wrong by a user's doing as data."""
    assert _work is not None
    packing, tokenizer = _work
    try:
        pack_source(source, packing.stage, packing.config, packing.data, tokenizer, digest=packing.digest, cache=packing.cache)
    except HerdError as error:
        return source.name, error.to_dict()
    return source.name, None


def _size(source: SourceConfig, data: Path | None) -> int:
    """Roughly how long a source takes, so that the long ones begin first."""
    file = (data or Path()) / source.path
    return source.max_bytes or (file.stat().st_size if file.is_file() else source.num_items * (source.document_bytes or 1000))


def pack_at_once(packing: Packing, *, workers: int) -> None:
    """Pack the sources of a stage that are not in the cache yet, `workers` at a time; one source, or one worker, is left to the caller.

    Raises UsageError for fewer workers than one, and what a source raises.
    """
    if workers < 1:
        raise UsageError(
            f"{workers} processes cannot pack rows", hint="1 packs in this process; the cores of the machine are as many as pay"
        )
    missing = missing_sources(packing.stage, packing.config, packing.data, digest=packing.digest, cache=packing.cache)
    if workers == 1 or len(missing) < 2:
        return
    missing.sort(key=lambda source: _size(source, packing.data), reverse=True)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(missing)), mp_context=context, initializer=_begin, initargs=(packing,))
    try:
        _wait(pool, missing)
    except BrokenProcessPool as error:
        raise HerdError(
            "a process that packs rows was killed, perhaps for want of memory",
            hint="run the same command again, with fewer --workers; what is packed stays packed",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _wait(pool: ProcessPoolExecutor, sources: Sequence[SourceConfig]) -> None:
    futures = [pool.submit(_pack, source) for source in sources]
    with track_steps("packing rows", total=len(futures)) as advance:
        for done, future in enumerate(as_completed(futures), start=1):
            name, failure = future.result()
            if failure is not None:
                raise from_dict(failure)
            advance(done, name)
