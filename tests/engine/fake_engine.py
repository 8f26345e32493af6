"""An engine without a model: what the scheduler says is done over a cache of integers, and every read is checked.

A slot of the cache holds the fingerprint of the whole prefix up to its token, salt and adapter included, and blocks are wiped when they are
given away: a slot that is wrong, stale, overwritten or was never written differs from what its reader expects. The next token is a function
of the fingerprint and of the sequence's seed: an answer that differs from `alone` betrays a token lost, doubled or misread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from herd.engine.blocks import BlockPool
from herd.engine.request import Sequence, Status
from herd.engine.scheduler import Scheduler, Step, StepItem, StepResult

KEY = b"a key for tests only, 32 bytes.."
VOCAB = 3
"""Few tokens, so that prefixes meet by chance."""
STOP = 0
_PRIME = 2**61 - 1


def start_print(salt: bytes, adapter: str) -> int:
    """The fingerprint of nothing."""
    return int.from_bytes(b"\1" + salt + b"\0" + adapter.encode(), "little") % _PRIME


def next_print(before: int, token: int) -> int:
    """The fingerprint of a prefix and one more token."""
    return (before * 1_000_003 + token + 7) % _PRIME


def draw(fingerprint: int, seed: int) -> int:
    """The token after a prefix: one time in twelve it is STOP."""
    mixed = ((fingerprint ^ (seed * 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64) >> 20
    return STOP if mixed % 12 == 0 else 1 + (mixed >> 8) % VOCAB


def alone(sequence: Sequence, seed: int) -> tuple[list[int], str]:
    """What the model says when nothing else runs, and why it ends."""
    fingerprint = start_print(sequence.salt, sequence.adapter)
    for token in sequence.prompt:
        fingerprint = next_print(fingerprint, token)
    output: list[int] = []
    while len(output) < sequence.max_new_tokens:
        token = draw(fingerprint, seed)
        output.append(token)
        if token == STOP:
            return output, "stop"
        fingerprint = next_print(fingerprint, token)
    return output, "length"


def prompt_with_answers(good: Callable[[int], bool], *, n: int = 1) -> list[int]:
    """Six tokens to which each of n answers, before it stops, has a good number of tokens."""
    for number in range(VOCAB**6):
        prompt = [1 + number // VOCAB**place % VOCAB for place in range(6)]
        sequence = Sequence(id=0, prompt=tuple(prompt), max_new_tokens=200)
        if all(good(len(alone(sequence, seed)[0])) for seed in range(n)):
            return prompt
    raise AssertionError("no such prompt")


LONG = prompt_with_answers(lambda length: length >= 30)
"""A prompt that is answered with 30 tokens or more."""


class FakeCache:
    """Blocks of slots."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.blocks: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]

    def wipe(self, block: int) -> None:
        self.blocks[block] = [None] * self.block_size

    def write(self, table: list[int], position: int, value: int) -> None:
        self.blocks[table[position // self.block_size]][position % self.block_size] = value

    def read(self, table: list[int], count: int) -> list[int | None]:
        num_blocks = -(-count // self.block_size)
        return [value for block in table[:num_blocks] for value in self.blocks[block]][:count]

    def copy(self, copies: list[tuple[int, int]]) -> None:
        """Once in order and once all read before all written: it must not matter."""
        at_once = {destination: list(self.blocks[source]) for source, destination in copies}
        assert len(at_once) == len(copies), "two copies to one place"
        for source, destination in copies:
            self.blocks[destination] = list(self.blocks[source])
        assert all(self.blocks[destination] == content for destination, content in at_once.items())


class WipingPool(BlockPool):
    """A pool that wipes what it gives away, so that nothing is right by luck."""

    def __init__(self, num_blocks: int, block_size: int, *, key: bytes = KEY) -> None:
        super().__init__(num_blocks, block_size, key=key)
        self.cache = FakeCache(num_blocks, block_size)

    def allocate(self, count: int) -> list[int]:
        blocks = super().allocate(count)
        for block in blocks:
            self.cache.wipe(block)
        return blocks


class FakeEngine:
    """Runs a scheduler. `rng` decides about drafts and early ends; without it there are none."""

    def __init__(
        self,
        *,
        num_blocks: int = 33,
        block_size: int = 4,
        token_budget: int = 32,
        max_sequences: int = 8,
        max_context: int = 64,
        chunk_alignment: int = 1,
        reserve: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        self.now = 0.0
        self.pool = WipingPool(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.pool,
            token_budget=token_budget,
            max_sequences=max_sequences,
            max_context=max_context,
            chunk_alignment=chunk_alignment,
            clock=lambda: self.now,
            reserve=reserve,
        )
        self.rng = rng
        self.stop_rate = 0.0
        self.live: dict[int, Sequence] = {}
        self.seeds: dict[int, int] = {}
        self.cut: dict[int, str] = {}
        self.done: list[Sequence] = []
        self.counts: Counter[str] = Counter()
        self.num_steps = 0
        self._prints: dict[int, list[int]] = {}
        self._next_id = 0

    # Requests

    def submit(self, prompt: list[int] | tuple[int, ...], max_new_tokens: int = 8, *, n: int = 1, **fields: object) -> list[Sequence]:
        """Add a group; the seed is the number in the group, so that equal requests have equal answers."""
        group = [self._sequence(tuple(prompt), max_new_tokens, fields) for _ in range(n)]
        self.scheduler.add_group(group)
        for index, sequence in enumerate(group):
            self.live[sequence.id] = sequence
            self.seeds[sequence.id] = index
        return group

    def _sequence(self, prompt: tuple[int, ...], max_new_tokens: int, fields: dict[str, object]) -> Sequence:
        self._next_id += 1
        return Sequence(id=self._next_id, prompt=prompt, max_new_tokens=max_new_tokens, arrival=self.now, **fields)  # type: ignore[arg-type]

    def cancel(self, sequence: Sequence) -> None:
        """Cancel, and see that nothing is left of it."""
        assert self.scheduler.cancel(sequence.id) == (sequence.id in self.live)
        if sequence.id in self.live:
            self._forget(sequence)
            assert sequence.status is Status.FINISHED and sequence.finish_reason == "cancelled"

    def _forget(self, sequence: Sequence) -> None:
        assert not sequence.blocks
        del self.live[sequence.id], self.seeds[sequence.id]
        self._prints.pop(sequence.id, None)
        self.cut.pop(sequence.id, None)
        self.done.append(sequence)

    # Steps

    def step(self) -> Step:
        """Schedule, run and update."""
        step = self.begin()
        if step.items:
            self.finish(step)
        return step

    def begin(self) -> Step:
        """Propose drafts and schedule."""
        if self.rng is not None:
            for sequence in self.live.values():
                if sequence.blocks and self.rng.random() < 0.3:
                    sequence.draft = self._proposal(sequence)
        computed = {sequence.id: sequence.num_computed for sequence in self.live.values()}
        step = self.scheduler.schedule()
        self._check_step(step, computed)
        return step

    def finish(self, step: Step) -> list[Sequence]:
        """Run a step that was scheduled and update; compares the answers of those that end."""
        self._compute(step)
        results = {item.sequence.id: self._outcome(item) for item in step.items if item.sequence.id in self.live}
        before = {sequence.id: list(sequence.output) for sequence in self.live.values()}
        ended = self.scheduler.update(results)
        for sequence_id, output in before.items():
            accepted = results[sequence_id].accepted if sequence_id in results else []
            assert self.live[sequence_id].output == output + accepted, "a token is lost or doubled"
        for sequence in ended:
            self._check_answer(sequence)
            self._forget(sequence)
        self.num_steps += 1
        return ended

    def run(self, max_steps: int = 10_000) -> int:
        """Step until nothing is left; returns the number of steps."""
        for count in range(max_steps):
            if not self.step().items:
                assert not self.live, "the scheduler is done, but sequences live"
                return count
        raise AssertionError(f"{len(self.live)} sequences live after {max_steps} steps")

    # The model

    def prints(self, sequence: Sequence, count: int) -> list[int]:
        """Fingerprints of the prefixes that end at the known tokens."""
        prints = self._prints.get(sequence.id)
        if prints is None:
            prints = self._prints[sequence.id] = [start_print(sequence.salt, sequence.adapter)]
        if len(prints) <= count:
            for token in sequence.tokens(len(prints) - 1, count):
                prints.append(next_print(prints[-1], token))
        return prints

    def _proposal(self, sequence: Sequence) -> list[int]:
        """Right for a while, then random."""
        assert self.rng is not None
        fingerprint = self.prints(sequence, sequence.num_tokens)[sequence.num_tokens]
        draft: list[int] = []
        while self.rng.random() < 0.75:
            right = self.rng.random() < 0.7
            draft.append(draw(fingerprint, self.seeds[sequence.id]) if right else self.rng.randrange(1 + VOCAB))
            fingerprint = next_print(fingerprint, draft[-1])
        return draft

    def _compute(self, step: Step) -> None:
        """Copy, write all, then read all: as a layer's attention does."""
        cache, size = self.pool.cache, self.pool.block_size
        cache.copy(step.copies)
        self.counts["copies"] += len(step.copies)
        expected: list[tuple[StepItem, list[int]]] = []
        for item in step.items:
            sequence, count, first, num_sampled = item
            if sequence.id not in self.live:
                continue
            known = first + count - max(0, num_sampled - 1)
            prints = self.prints(sequence, known)[1 : known + 1]
            for token in sequence.draft:
                prints.append(next_print(prints[-1], token))
            for position in range(first, first + count):
                block = sequence.blocks[position // size]
                assert self.pool.refs[block] == 1, "a shared block is written"
                assert self.pool.digests[block] is None, "a block is written whose content has a name"
                cache.write(sequence.blocks, position, prints[position])
            expected.append((item, prints))
        for item, prints in expected:
            end = item.first_position + item.num_tokens
            assert cache.read(item.sequence.blocks, end) == prints[:end], f"{item.sequence} reads what is not its prefix"

    def _outcome(self, item: StepItem) -> StepResult:
        """Draw after the known tokens, and after each draft that was drawn too."""
        sequence = item.sequence
        if self.rng is not None and self.rng.random() < self.stop_rate:
            self.cut[sequence.id] = "error"
            return StepResult(accepted=[], finish="error")
        if not item.num_sampled:
            return StepResult(accepted=[])
        fingerprint = self.prints(sequence, sequence.num_tokens)[sequence.num_tokens]
        accepted: list[int] = []
        for place in range(item.num_sampled):
            token = draw(fingerprint, self.seeds[sequence.id])
            accepted.append(token)
            if token == STOP:
                return StepResult(accepted=accepted, finish="stop")
            if place < len(sequence.draft) and sequence.draft[place] != token:
                break
            fingerprint = next_print(fingerprint, token)
        self.counts["drafts"] += item.num_sampled - 1
        self.counts["drafts accepted"] += len(accepted) - 1
        return StepResult(accepted=accepted)

    # Checks

    def _check_step(self, step: Step, computed: dict[int, int]) -> None:
        limits = self.scheduler.limits
        assert step.num_tokens == sum(item.num_tokens for item in step.items) <= limits.token_budget
        assert len({item.sequence.id for item in step.items}) == len(step.items), "a sequence stands twice in a step"
        assert bool(step.items) == bool(self.live)
        preempted = {sequence.id for sequence in step.preempted}
        admitted = {sequence.id for sequence in step.admitted}
        for item in step.items:
            sequence, count, first, num_sampled = item
            assert sequence.status is Status.RUNNING and count >= 1
            assert first == sequence.num_computed
            if sequence.id not in admitted | preempted:
                assert first == computed[sequence.id]
            if num_sampled:
                assert first + count == sequence.num_tokens + num_sampled - 1 and num_sampled == 1 + sequence.num_draft
            else:
                assert first + count < sequence.num_tokens and (first + count) % limits.chunk_alignment == 0
            self.counts["chunks"] += not num_sampled
        served = {item.sequence.id for item in step.items}
        for sequence in self.live.values():
            if sequence.status is Status.RUNNING and sequence.num_tokens - sequence.num_computed == 1:
                assert sequence.id in served, "a sequence in the middle of its answer got no token"
        self.counts["preemptions"] += len(step.preempted)
        self.counts["hits"] += sum(sequence.num_computed > 0 for sequence in step.admitted)
        self.counts["tokens"] += step.num_tokens

    def _check_answer(self, sequence: Sequence) -> None:
        output, reason = alone(sequence, self.seeds[sequence.id])
        cut = self.cut.get(sequence.id)
        if cut is None:
            assert (sequence.output, sequence.finish_reason) == (output, reason), f"{sequence} answers differently than alone"
        else:
            assert sequence.output == output[: len(sequence.output)] and sequence.finish_reason == cut
        self.counts[f"finished {sequence.finish_reason}"] += 1
