"""Which sample comes from which source, with weights that change during the run and sources that are read so often and no more.

Samples are dealt out in blocks. A block gives every source its share, what is left of a share carried over to the next, and is shuffled;
so the shares are exact, and the sources' turns up to any sample are known from the blocks before it. A block ends where a phase does. The
whole is a pure function of (phases, limits, seed): the state of a run is the number of samples it has read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError, did_you_mean
from herd.data.order import key_of, shuffled

BLOCK = 1024
_NO_LIMIT = 2**62
_MARK_EVERY = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class MixPhase:
    """Weights from a sample on: shares of the samples, relative to one another."""

    from_sample: int
    weights: Mapping[str, int | float]

    def __post_init__(self) -> None:
        if self.from_sample < 0:
            raise ConfigError(f"a phase begins at sample {self.from_sample}", hint="the first begins at 0")
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"source {name!r} has weight {weight}", hint="a weight is a share of the samples, 0 or more")
        if not any(self.weights.values()):
            raise ConfigError(f"the phase from sample {self.from_sample} has no positive weight", hint="give one source a weight above 0")


@dataclass(frozen=True, slots=True)
class _State:
    """Before a block: its first sample, the phase, how many rows of each source are given out, and what is owed to each."""

    sample: int
    phase: int
    used: NDArray[np.int64]
    owed: NDArray[np.float64]


class Schedule:
    """The source and turn of every sample. `limits` bounds how many rows of a source are given out in all; None: no bound.

    Kept are the blocks' first samples and the state before every 256th block; what lies between is computed again when it is asked for. The
    first question about a late sample goes through all blocks before it: some 25 s for a billion samples of twenty sources, once.
    """

    def __init__(
        self, names: Sequence[str], phases: Sequence[MixPhase], *, seed: int, limits: Mapping[str, int | None], block: int = BLOCK
    ) -> None:
        """Raises ConfigError for phases out of order or sources that do not exist."""
        self.names = tuple(names)
        self._phases = tuple(phases)
        self._check()
        self._weights = [np.array([float(phase.weights.get(name, 0.0)) for name in self.names]) for phase in phases]
        self._limits = np.array([_NO_LIMIT if (limit := limits.get(name)) is None else limit for name in self.names], dtype=np.int64)
        self._seed, self._block = seed, block
        self.ended_at: int | None = None
        self._starts: list[int] = []
        self._end = _State(0, 0, np.zeros(len(self.names), np.int64), np.zeros(len(self.names)))
        self._marks: list[_State] = []
        self._lock = RLock()
        self._dealt = lru_cache(maxsize=64)(self._deal)
        self._state = lru_cache(maxsize=4 * _MARK_EVERY)(self._state_before)

    def _check(self) -> None:
        if not self._phases or self._phases[0].from_sample != 0:
            raise ConfigError("the first phase of a mix has to begin at sample 0", hint="set its from_sample to 0")
        for one, after in pairwise(self._phases):
            if after.from_sample <= one.from_sample:
                raise ConfigError(f"a phase from sample {after.from_sample} follows one from {one.from_sample}", hint="put phases in order")
        for name in (name for phase in self._phases for name in phase.weights if name not in self.names):
            hint = did_you_mean(name, self.names, otherwise="sources: " + ", ".join(self.names))
            raise ConfigError(f"the mix weighs an unknown source {name!r}", hint=hint)

    def _quotas(self, state: _State) -> tuple[NDArray[np.int64], _State]:
        """How many samples of the block after a state each source gives, and the state after the block."""
        phase, owed, length = state.phase, state.owed, self._block
        while phase + 1 < len(self._phases) and self._phases[phase + 1].from_sample <= state.sample:
            phase, owed = phase + 1, np.zeros(len(self.names))
        if phase + 1 < len(self._phases):
            length = min(length, self._phases[phase + 1].from_sample - state.sample)
        quotas, owed = deal(self._weights[phase], owed, length, self._limits - state.used)
        return quotas, _State(state.sample + int(quotas.sum()), phase, state.used + quotas, owed)

    def _extend(self, past: int) -> None:
        """Go through the blocks until sample `past` lies in one, or the data ends."""
        while self._end.sample <= past and self.ended_at is None:
            quotas, after = self._quotas(self._end)
            if quotas.sum() == 0:
                self.ended_at = self._end.sample
                return
            if len(self._starts) % _MARK_EVERY == 0:
                self._marks.append(self._end)
            self._starts.append(self._end.sample)
            self._end = after

    def _state_before(self, number: int) -> _State:
        """The state before a block: that of the block before it and so on, to the mark before them if need be."""
        if number % _MARK_EVERY == 0:
            return self._marks[number // _MARK_EVERY]
        return self._quotas(self._state(number - 1))[1]

    def _deal(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source and turn of every sample of a block."""
        state = self._state(number)
        quotas, _ = self._quotas(state)
        sources = shuffled(key_of(self._seed, "block", state.sample), np.repeat(np.arange(len(self.names)), quotas))
        turns = np.empty(len(sources), dtype=np.int64)
        for source in range(len(self.names)):
            mine = sources == source
            turns[mine] = state.used[source] + np.arange(int(mine.sum()))
        return sources, turns

    def locate(self, first: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and turns of samples first..first+size-1. Raises IndexError where the data has ended: every limit is reached."""
        with self._lock:
            self._extend(first + size - 1)
            if self.ended_at is not None and first + size > self.ended_at:
                raise IndexError(f"the data ends after {self.ended_at} samples: every source has been read as often as it may be")
            sources: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
            turns: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
            sample = first
            while sample < first + size:
                number = bisect_right(self._starts, sample) - 1
                all_sources, all_turns = self._dealt(number)
                begin = sample - self._starts[number]
                end = min(len(all_sources), begin + first + size - sample)
                sources.append(all_sources[begin:end])
                turns.append(all_turns[begin:end])
                sample += end - begin
            return np.concatenate(sources), np.concatenate(turns)

    def used(self, num_samples: int) -> dict[str, int]:
        """How many rows of each source the first `num_samples` samples take, or all that there are if these are fewer."""
        with self._lock:
            self._extend(num_samples)
            if num_samples >= self._end.sample:
                return dict(zip(self.names, self._end.used.tolist(), strict=True))
            number = bisect_right(self._starts, num_samples) - 1
            sources, _ = self._dealt(number)
            part = np.bincount(sources[: num_samples - self._starts[number]], minlength=len(self.names))
            return dict(zip(self.names, (self._state(number).used + part).tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """What the schedule is made of, for a fingerprint."""
        phases = [[phase.from_sample, dict(sorted(phase.weights.items()))] for phase in self._phases]
        return {"names": list(self.names), "phases": phases, "limits": self._limits.tolist(), "seed": self._seed, "block": self._block}


def deal(
    weights: NDArray[np.float64], credit: NDArray[np.float64], length: int, left: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many of `length` samples each source gives, and what is owed afterwards.

    Never more than a source has `left`: its share then falls to the others by their weights. Fewer than `length` in all if nothing is left.
    """
    quotas = np.zeros(len(weights), dtype=np.int64)
    owed = credit.copy()
    while (missing := length - int(quotas.sum())) > 0:
        active = (weights > 0) & (quotas < left)
        if not active.any():
            break
        owed[~active] = 0.0
        share = np.where(active, weights, 0.0)
        wanted = owed + share / share.sum() * (missing - owed.sum())
        give = np.minimum(np.floor(np.maximum(wanted, 0)).astype(np.int64), left - quotas)
        give[~active] = 0
        if (excess := int(give.sum()) - missing) > 0:
            for source in np.argsort(wanted - give, kind="stable"):
                taken = min(excess, int(give[source]))
                give[source] -= taken
                excess -= taken
        if give.sum() == 0:
            give[int(np.argmax(np.where(active, wanted, -np.inf)))] = 1
        elif (rest := missing - int(give.sum())) > 0 and (give < left - quotas)[active].all():
            order = np.argsort(np.where(active, give - wanted, np.inf), kind="stable")
            give[order[: min(rest, int(active.sum()))]] += 1
        quotas += give
        owed = wanted - give
    return quotas, owed
