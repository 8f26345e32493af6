"""Who is next: strict priority, then who was preempted, then the tenant that was served least, then the order of arrival. No torch.

Fair share is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), at each priority apart: a
tenant's account grows by every token computed for it, the one with the smallest account is next, and whoever comes back with nothing
waiting is lifted to the smallest account of those who wait, so that no one saves up a claim while away. Between two tenants that both wait
the accounts differ by a bounded number of tokens, however many requests either has. Who was preempted has been through this line before,
and someone may be reading its half answer: it comes before all others of its priority.

Costs O(log n) an operation: each tenant has a heap of turns, each priority a heap of tenants. Accounts only grow, so an entry that is out
of date stands too early and is put right when it reaches the top.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict

from herd.engine.request import Account, Sequence

MAX_DEBTORS = 1024
"""Idle tenants whose accounts are remembered at a priority; beyond, the one that left first is forgiven."""
_SLACK = 64
"""Entries out of date that a heap may hold beside as many as it has good ones, before it is made anew."""

_Entry = tuple[int, int, int, "Line"]
"""Account, turn of the first in line, a serial number that settles ties, the line."""

Standing = tuple[int, int, int]


def standing(sequence: Sequence) -> Standing:
    """Whose prompt is read first: priority, then its tenant's account, then turn. Who was preempted stands before all accounts."""
    return sequence.priority, -1 if sequence.num_preemptions else sequence.account.served, sequence.turn


class Line:
    """One tenant at one priority: its account and its waiting sequences in order of turn."""

    __slots__ = ("account", "entry", "num_live", "turns", "waiting")

    def __init__(self, served: int) -> None:
        self.account = Account(served=served)
        self.num_live = 0
        self.waiting: dict[int, Sequence] = {}
        self.turns: list[int] = []
        self.entry: _Entry | None = None

    def push(self, sequence: Sequence) -> None:
        """Stand in line, at the place of its turn."""
        self.waiting[sequence.turn] = sequence
        heapq.heappush(self.turns, sequence.turn)

    def remove(self, sequence: Sequence) -> None:
        """Leave the line, from any place."""
        del self.waiting[sequence.turn]
        if len(self.turns) > 2 * len(self.waiting) + _SLACK:
            self.turns = sorted(self.waiting)

    def head(self) -> Sequence | None:
        """The first in line."""
        turns, waiting = self.turns, self.waiting
        while turns:
            sequence = waiting.get(turns[0])
            if sequence is not None:
                return sequence
            heapq.heappop(turns)
        return None


class FairQueue:
    """The tenants of one priority, and before them those who were preempted."""

    __slots__ = ("_debts", "_floor", "_heap", "_serial", "lines", "num_waiting", "returned")

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.returned = Line(0)
        self.num_waiting = 0
        self._debts: OrderedDict[str, int] = OrderedDict()
        self._floor = 0
        self._heap: list[_Entry] = []
        self._serial = 0

    def join(self, sequence: Sequence) -> None:
        """Count a new sequence, and give it its tenant's account."""
        line = self.lines.get(sequence.tenant)
        if line is None:
            line = self.lines[sequence.tenant] = Line(self._debts.pop(sequence.tenant, 0))
        line.num_live += 1
        sequence.account = line.account

    def leave(self, sequence: Sequence) -> None:
        """Uncount one that ended."""
        line = self.lines[sequence.tenant]
        line.num_live -= 1
        if line.num_live == 0:
            del self.lines[sequence.tenant]
            line.entry = None
            if line.account.served > self._floor:
                self._debts[sequence.tenant] = line.account.served
                if len(self._debts) > MAX_DEBTORS:
                    self._debts.popitem(last=False)

    def push(self, sequence: Sequence, *, lift: bool) -> None:
        """Let a sequence wait. `lift` is for those who come from outside."""
        self.num_waiting += 1
        if sequence.num_preemptions:
            self.returned.push(sequence)
            return
        line = self.lines[sequence.tenant]
        if lift and not line.waiting:
            line.account.served = max(line.account.served, self._lowest())
        line.push(sequence)
        key = (line.account.served, sequence.turn)
        if line.entry is None or key < line.entry[:2]:
            self._enter(line, key)

    def remove(self, sequence: Sequence, *, admitted: bool) -> None:
        """Take a sequence out, because it is admitted or cancelled."""
        self.num_waiting -= 1
        if sequence.num_preemptions:
            self.returned.remove(sequence)
            return
        line = self.lines[sequence.tenant]
        line.remove(sequence)
        if admitted:
            self._floor = max(self._floor, line.account.served)

    def peek(self) -> Sequence | None:
        """The next: who was preempted, else of the tenant with the smallest account the one of the smallest turn."""
        return self.returned.head() or self._peek_lines()

    def _peek_lines(self) -> Sequence | None:
        heap = self._heap
        while heap:
            entry = heap[0]
            line = entry[3]
            head = line.head() if entry is line.entry else None
            if head is None:
                heapq.heappop(heap)
                if entry is line.entry:
                    line.entry = None
                continue
            key = (line.account.served, head.turn)
            if key == entry[:2]:
                return head
            line.entry = (*key, self._next_serial(), line)
            heapq.heapreplace(heap, line.entry)
        return None

    def _lowest(self) -> int:
        """The smallest account of those who wait, or the last one served while no one does."""
        first = self._peek_lines()
        if first is not None:
            self._floor = max(self._floor, first.account.served)
        return self._floor

    def _enter(self, line: Line, key: tuple[int, int]) -> None:
        line.entry = (*key, self._next_serial(), line)
        heapq.heappush(self._heap, line.entry)
        if len(self._heap) > 2 * len(self.lines) + _SLACK:
            self._heap = [entry for entry in self._heap if entry is entry[3].entry]
            heapq.heapify(self._heap)

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial


class WaitingQueue:
    """All that wait, over all priorities. A priority is remembered while one of its sequences lives."""

    def __init__(self) -> None:
        self.classes: dict[int, FairQueue] = {}
        self._num_live: dict[int, int] = {}
        self._backlogged: list[int] = []

    def __len__(self) -> int:
        return sum(self.classes[priority].num_waiting for priority in self._backlogged)

    def __bool__(self) -> bool:
        return bool(self._backlogged)

    def join(self, sequence: Sequence) -> None:
        """A new sequence, not in line yet."""
        priority = sequence.priority
        self._num_live[priority] = self._num_live.get(priority, 0) + 1
        self.classes.setdefault(priority, FairQueue()).join(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence ended, in line no more."""
        priority = sequence.priority
        self.classes[priority].leave(sequence)
        self._num_live[priority] -= 1
        if self._num_live[priority] == 0:
            del self.classes[priority], self._num_live[priority]

    def push(self, sequence: Sequence, *, lift: bool = False) -> None:
        """Stand in line; see `FairQueue.push`."""
        queue = self.classes[sequence.priority]
        if not queue.num_waiting:
            insort(self._backlogged, sequence.priority)
        queue.push(sequence, lift=lift)

    def remove(self, sequence: Sequence, *, admitted: bool = False) -> None:
        """Leave the line."""
        queue = self.classes[sequence.priority]
        queue.remove(sequence, admitted=admitted)
        if not queue.num_waiting:
            del self._backlogged[bisect_left(self._backlogged, sequence.priority)]

    def peek(self) -> Sequence | None:
        """Who is next."""
        return self.classes[self._backlogged[0]].peek() if self._backlogged else None

    def sequences(self) -> list[Sequence]:
        """All in line; for checks, since it is a list of everything."""
        queues = [queue for _, queue in sorted(self.classes.items())]
        lines = (line for queue in queues for line in (queue.returned, *(line for _, line in sorted(queue.lines.items()))))
        return [line.waiting[turn] for line in lines for turn in sorted(line.waiting)]
