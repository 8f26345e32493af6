"""An engine whose model lies in several processes: `Engine` on rank 0, and what it does when another rank is lost.

Requests, sampling, grammars and events are rank 0's alone, and the same code as for one process. Only rank 0 samples: scores are gathered
once and not on every rank, grammars are compiled once, and what was drawn reaches the others with the next step's frame.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import HerdError
from herd.engine.batch import RaggedBatch
from herd.engine.engine import Engine, EngineError
from herd.engine.memory import MemoryPlan
from herd.engine.parallel.replica import LeadScheduler, frames
from herd.engine.parallel.shard_runner import Scores, ShardRunner
from herd.engine.parallel.workers import Workers
from herd.kernels import draw
from herd.model.config import ModelConfig


class LeadRunner:
    """Tells the other ranks of a step, then does rank 0's part of it. A line that breaks becomes the error that names the lost rank."""

    def __init__(self, shard: ShardRunner, scheduler: LeadScheduler, workers: Workers) -> None:
        self.block_size, self.num_blocks, self.vocab_size = shard.block_size, shard.num_blocks, shard.vocab_size
        self._shard, self._scheduler, self._workers = shard, scheduler, workers
        self.draws_rows, self.draw_rows = draw.available(), draw.draw

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`."""
        for told in frames(self._scheduler.take_log(), batch.rows_R.tolist(), batch.hidden_E.tolist()):
            self._workers.send(told)
        return self._told(self._named(lambda: self._shard.run(batch)))

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`."""
        return self._shard.hidden(batch)

    def _told(self, scores: Scores) -> Iterator[tuple[int, NDArray[np.float32]]]:
        while (chunk := self._named(lambda: next(scores, None))) is not None:
            yield chunk

    def _named(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except RuntimeError as error:
            lost = self._workers.verdict()
            if lost is None:
                raise
            raise lost from error


class ParallelEngine(Engine):
    """An `Engine` on a thread of its own, for `build.build_parallel_engine` to make. `plans` has what each rank allocated,
    `model_config` the whole model, `dtype` its weights' kind by name.

    Where a rank is lost, what is in flight fails with an EngineError that names it, later requests are refused with it, and every process
    has ended.
    """

    def __init__(
        self,
        workers: Workers,
        shard: ShardRunner,
        scheduler: LeadScheduler,
        *,
        model_config: ModelConfig,
        plans: list[MemoryPlan],
        dtype: str,
        on_close: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(LeadRunner(shard, scheduler, workers), scheduler, threaded=True, **options)
        self.workers, self.model_config, self.plans, self.dtype, self._on_close = workers, model_config, plans, dtype, on_close
        atexit.register(self.close)
        workers.on_loss = self._lose
        if workers.lost is not None:
            self._lose(workers.lost)

    def _lose(self, error: HerdError) -> None:
        def stop() -> None:
            if self.broken is None and not self._closed:
                raise error if isinstance(error, EngineError) else EngineError(error.message, hint=error.hint) from error

        self._post(stop)

    def close(self) -> None:
        """Stop, and end every process; what is in flight fails."""
        super().close()
        atexit.unregister(self.close)
        self.workers.close()
        self._on_close()
