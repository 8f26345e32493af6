"""Masks beside the forward pass: computed in threads while the model runs, ready when its logits are.

A mask takes ten to fifty microseconds, about what handing a task to a thread takes, so each thread gets a share of the states and works
through it; one state alone is done at once, by the caller. The library lets go of the interpreter's lock while it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from herd.engine.grammar.state import GrammarState, Mask

Job = tuple[GrammarState, Mask | None, Future[Mask]]


class MaskPool:
    """Threads that compute masks. A state handed in belongs to the pool until its future is done."""

    def __init__(self, num_threads: int = 2) -> None:
        self._num_threads = max(1, num_threads)
        self._pool = ThreadPoolExecutor(max_workers=self._num_threads, thread_name_prefix="herd-mask")

    def start(self, states: Sequence[GrammarState], out: Sequence[Mask] | None = None) -> list[Future[Mask]]:
        """A future for each state, in order; each raises what that state's `mask` raises, and no other's.

        Args:
            states: distinct states.
            out: where to write each mask, such as the rows of one array.
        """
        jobs: list[Job] = [(state, None if out is None else out[index], Future()) for index, state in enumerate(states)]
        if len(jobs) == 1:
            _work(jobs)
        else:
            for share in range(min(self._num_threads, len(jobs))):
                self._pool.submit(_work, jobs[share :: self._num_threads])
        return [future for _, _, future in jobs]

    def close(self) -> None:
        """Let the threads end after what they have begun."""
        self._pool.shutdown(wait=True)


def _work(jobs: Sequence[Job]) -> None:
    for state, out, future in jobs:
        try:
            future.set_result(state.mask(out))
        except BaseException as error:  # whatever it is belongs to this state's caller, and the next state is to have its mask
            future.set_exception(error)
