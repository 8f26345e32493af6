"""One schedule on every rank: rank 0 writes down what its scheduler is told, the others' are told the same. No torch.

A scheduler is a function of the calls it gets: it has no clock and draws nothing. So `LeadScheduler` keeps a log of them, and before a step
is computed it goes to every `Follower`, which makes the calls and takes the same step. What is logged is sequences, results and drafts:
parameters, grammars and how drafts are made concern rank 0 alone, which is the only one to sample. Each step's digest travels with it: a
follower that would take another step stops before it computes anything.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from herd.engine.batch import Piece, RaggedBatch, ragged
from herd.engine.blocks import BlockPool
from herd.engine.engine import EngineError
from herd.engine.request import Sequence
from herd.engine.scheduler import Scheduler
from herd.engine.step import Step, StepItem, StepResult

Call = list[Any]
"""A scheduler's call as JSON: its name and arguments."""
_ASKED = ("id", "max_new_tokens", "priority", "tenant", "adapter", "reuse_prefix", "reuse_limit")


def digest(step: Step) -> str:
    """A digest of a step: whose tokens, how many, from where, in which blocks, and what is copied."""
    hasher = hashlib.blake2b(digest_size=16)
    for item in step.items:
        numbers = (item.sequence.id, item.num_tokens, item.first_position, item.num_sampled)
        hasher.update(array("q", (*numbers, len(item.sequence.blocks), *item.sequence.blocks)))
    hasher.update(array("q", [block for copy in step.copies for block in copy]))
    return hasher.hexdigest()


def sequence_to_dict(sequence: Sequence) -> dict[str, Any]:
    """What a caller fills of a sequence, as JSON; not its prompt, which its group shares, nor its arrival, which decides nothing."""
    return {name: getattr(sequence, name) for name in _ASKED} | {"salt": sequence.salt.hex()}


def sequence_from_dict(data: Mapping[str, Any], prompt: tuple[int, ...]) -> Sequence:
    """The sequence of `sequence_to_dict`, which has this prompt."""
    return Sequence(**{**data, "prompt": prompt, "salt": bytes.fromhex(data["salt"])})


def frames(calls: list[Call], rows: list[int] | None = None, hidden: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """The calls up to now in frames; where the last is a step, the rows that want scores and states with it. Each group has its own frame:
    prompts may be long.
    """
    begin = 0
    for end, call in enumerate(calls, start=1):
        if call[0] == "add":
            yield {"calls": calls[begin:end]}
            begin = end
    yield {"calls": calls[begin:]} | ({} if rows is None else {"rows": rows, "hidden": hidden})


def _piece(item: StepItem) -> Piece:
    first, end = item.first_position, item.first_position + item.num_tokens
    return Piece(item.sequence.tokens(first, end), first, item.sequence.blocks)


class LeadScheduler(Scheduler):
    """A scheduler that writes down every call that changes it."""

    def __init__(self, pool: BlockPool, **sizes: Any) -> None:
        """As `Scheduler`."""
        super().__init__(pool, **sizes)
        self._calls: list[Call] = []

    def take_log(self) -> list[Call]:
        """The calls since this was asked last."""
        taken, self._calls = self._calls, []
        return taken

    def note(self, call: Call) -> None:
        """Write down what changes the blocks beside the scheduler, for `FollowerDisk`."""
        self._calls.append(call)

    def add_group(self, sequences: list[Sequence]) -> None:
        """See `Scheduler`; what is refused is not written down."""
        super().add_group(sequences)
        self._calls.append(["add", sequences[0].prompt, [sequence_to_dict(sequence) for sequence in sequences]])

    def cancel(self, sequence_id: int) -> bool:
        """See `Scheduler`."""
        found = super().cancel(sequence_id)
        if found:
            self._calls.append(["cancel", sequence_id])
        return found

    def schedule(self) -> Step:
        """See `Scheduler`; with the drafts that it finds, and the digest of what it gives."""
        drafts = [[sequence.id, list(sequence.draft)] for sequence in self.sequences if sequence.draft]
        step = super().schedule()
        if step.items:
            self._calls.append(["schedule", drafts, digest(step)])
        return step

    def update(self, results: Mapping[int, StepResult]) -> list[Sequence]:
        """See `Scheduler`."""
        self._calls.append(["update", [[number, result.accepted, result.finish] for number, result in results.items()]])
        return super().update(results)

    def abandon(self, *, forget: bool = False) -> None:
        """See `Scheduler`."""
        self._calls.append(["abandon", forget])
        super().abandon(forget=forget)


class DiskCalls(Protocol):
    """What a follower's disk is told of: `follower_disk.FollowerDisk`."""

    def call(self, name: str, arguments: list[Any]) -> bool:
        """Make a call; False where it is none of the disk's."""
        ...


class Follower:
    """A scheduler that is told what rank 0's was told, and a disk that is, if there is one."""

    def __init__(self, scheduler: Scheduler, *, rank: int, size: int) -> None:
        self.scheduler, self.rank, self.size = scheduler, rank, size
        self.num_steps = 0
        self.disk: DiskCalls | None = None

    def take(self, frame: Mapping[str, Any]) -> RaggedBatch | None:
        """Make a frame's calls; where it has rows, its last call was a `schedule`, and the batch of that step is returned.

        Raises EngineError where it is another step than rank 0's.
        """
        step: Step | None = None
        for name, *arguments in frame["calls"]:
            step = None
            if name == "schedule":
                step = self._schedule(*arguments)
            else:
                self._call(name, arguments)
        if "rows" not in frame:
            return None
        assert step is not None, "rows without a step"
        batch = ragged([_piece(item) for item in step.items], step.copies)
        rows, hidden = (np.asarray(frame[name], dtype=np.int64) for name in ("rows", "hidden"))
        return replace(batch, rows_R=rows, hidden_E=hidden)

    def _call(self, name: str, arguments: list[Any]) -> None:
        if self.disk is not None and self.disk.call(name, arguments):
            return
        scheduler, argument = self.scheduler, arguments[0]
        if name == "add":
            prompt = tuple(argument)
            scheduler.add_group([sequence_from_dict(data, prompt) for data in arguments[1]])
        elif name == "cancel":
            scheduler.cancel(argument)
        elif name == "update":
            scheduler.update({number: StepResult(accepted=accepted, finish=finish) for number, accepted, finish in argument})
        else:
            assert name == "abandon", name
            scheduler.abandon(forget=argument)

    def _schedule(self, drafts: list[Any], expected: str) -> Step:
        proposed = dict(drafts)
        for sequence in self.scheduler.sequences:
            sequence.draft = list(proposed.get(sequence.id, ()))
        step = self.scheduler.schedule()
        self.num_steps += 1
        if digest(step) != expected:
            raise EngineError(
                f"rank {self.rank} of {self.size} would take another step than rank 0: its step {self.num_steps} has "
                f"{len(step.items)} sequences and {step.num_tokens} tokens, and another digest",
                hint="this is a bug: please report it",
            )
        return step
