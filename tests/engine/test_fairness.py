"""The line: priority first, then the tenant that was served least, then the order of arrival; nobody saves up, nobody is forgotten."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from herd.engine.fairness import MAX_DEBTORS, WaitingQueue
from herd.engine.request import Sequence


class Door:
    """A queue, and the turns that the roster would give."""

    def __init__(self) -> None:
        self.queue = WaitingQueue()
        self.turn = 0

    def come(self, tenant: str = "a", priority: int = 0, *, in_line: bool = True) -> Sequence:
        self.turn += 1
        sequence = Sequence(id=self.turn, prompt=(1,), max_new_tokens=1, tenant=tenant, priority=priority, turn=self.turn)
        self.queue.join(sequence)
        if in_line:
            self.queue.push(sequence, lift=True)
        return sequence

    def preempt(self, sequence: Sequence) -> None:
        sequence.num_preemptions += 1
        self.queue.push(sequence)

    def serve(self, tokens: int = 10, *, stays: bool = False) -> Sequence:
        """Admit the next and compute tokens for it; it ends unless it stays."""
        sequence = self.queue.peek()
        assert sequence is not None
        self.queue.remove(sequence, admitted=True)
        sequence.account.served += tokens
        if not stays:
            self.queue.leave(sequence)
        return sequence


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    door = Door()
    come = [door.come() for _ in range(5)]
    assert [door.serve() for _ in range(5)] == come
    assert door.queue.peek() is None and not door.queue


def test_a_lower_number_goes_first() -> None:
    door = Door()
    late, normal, urgent = door.come(priority=5), door.come(priority=0), door.come(priority=-3)
    assert [door.serve() for _ in range(3)] == [urgent, normal, late]


def test_one_request_among_a_thousand_of_another_is_second() -> None:
    door = Door()
    for _ in range(1000):
        door.come("many")
    door.serve()
    one = door.come("one")
    assert [door.serve().tenant, door.serve()] == ["many", one]


def test_tenants_take_turns_by_tokens_not_by_requests() -> None:
    door = Door()
    for _ in range(40):
        door.come("short")
        door.come("long")
    served = [door.serve(10 if door.queue.peek().tenant == "short" else 30).tenant for _ in range(40)]  # type: ignore[union-attr]
    assert (served.count("short"), served.count("long")) == (30, 10)


def test_who_comes_back_is_no_further_ahead_than_those_who_wait() -> None:
    """While b was away, a was served 1,000 tokens; b does not get 1,000 of its own first."""
    door = Door()
    door.come("b")
    for _ in range(200):
        door.come("a")
    assert [door.serve().tenant for _ in range(101)] == ["b"] + ["a"] * 100
    for _ in range(100):
        door.come("b")
    served = [door.serve().tenant for _ in range(20)]
    assert served == ["a", "b"] * 10


def test_who_comes_while_no_one_waits_stands_where_the_last_was_served() -> None:
    door = Door()
    for _ in range(101):
        door.come("a")
    for number in range(101):
        door.serve(stays=number == 100)
    for _ in range(50):
        door.come("b")
        door.come("a")
    served = [door.serve().tenant for _ in range(20)]
    assert served.count("b") in (10, 11)


def test_a_debt_is_not_cancelled_by_leaving_for_a_moment() -> None:
    door = Door()
    for _ in range(60):
        door.come("b")
    door.come("a")
    assert [door.serve(10).tenant, door.serve(500).tenant] == ["b", "a"]
    door.come("a")
    assert [door.serve(10).tenant for _ in range(51)] == ["b"] * 50 + ["a"]


def test_who_was_preempted_comes_before_all_others_of_its_priority() -> None:
    door = Door()
    come = [door.come("a") for _ in range(4)]
    gone = [door.serve(1000, stays=True) for _ in range(2)]
    other, urgent = door.come("b"), door.come("c", priority=-1)
    for sequence in reversed(gone):
        door.preempt(sequence)
    assert [door.serve() for _ in range(6)] == [urgent, *gone, other, *come[2:]]


def test_the_accounts_of_two_priorities_are_apart() -> None:
    door = Door()
    door.come("a", priority=1)
    door.serve(10_000)
    first = door.come("a")
    door.come("b")
    assert door.serve() is first


def test_a_priority_without_sequences_is_forgotten() -> None:
    door = Door()
    for priority in range(100):
        door.come(priority=priority)
        door.serve()
    assert not door.queue.classes


def test_one_can_leave_from_the_middle() -> None:
    door = Door()
    come = [door.come() for _ in range(3)]
    door.queue.remove(come[1])
    door.queue.leave(come[1])
    assert [door.serve(), door.serve()] == [come[0], come[2]]


def test_nothing_is_kept_of_those_who_left() -> None:
    door = Door()
    door.come("stays")
    door.serve(stays=True)
    for number in range(MAX_DEBTORS + 200):
        sequence = door.come(f"t{number}")
        if number % 8:
            assert door.serve(1000 + number) is sequence
        else:
            door.queue.remove(sequence)
            door.queue.leave(sequence)
    (queue,) = door.queue.classes.values()
    assert list(queue.lines) == ["stays"]
    assert len(queue._debts) <= MAX_DEBTORS and len(queue._heap) < 100


def test_cancelled_ones_do_not_pile_up_in_a_line() -> None:
    door = Door()
    door.come()
    for _ in range(1000):
        sequence = door.come()
        door.queue.remove(sequence)
        door.queue.leave(sequence)
    (line,) = door.queue.classes[0].lines.values()
    assert len(line.turns) < 100


class LineMachine(RuleBasedStateMachine):
    """Against a list that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.door = Door()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.following: list[Sequence] = []

    @rule(tenant=st.sampled_from("abc"))
    def follow(self, tenant: str) -> None:
        """One of a group, which will wait in line when its leader has read the prompt."""
        self.following.append(self.door.come(tenant, in_line=False))

    @precondition(lambda self: self.following)
    @rule()
    def follower_comes(self) -> None:
        sequence = self.following.pop()
        self.door.queue.push(sequence)
        self.waiting.append(sequence)

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(0, 1))
    def come(self, tenant: str, priority: int) -> None:
        new = [sequence for sequence in self.waiting if sequence.priority == priority and not sequence.num_preemptions]
        mine = [sequence for sequence in new if sequence.tenant == tenant]
        others = [sequence.account.served for sequence in new]
        sequence = self.door.come(tenant, priority)
        if not mine and others:
            assert sequence.account.served >= min(others), "it saved up while away"
        self.waiting.append(sequence)

    @precondition(lambda self: self.waiting)
    @rule(tokens=st.integers(0, 20))
    def admit(self, tokens: int) -> None:
        sequence = self.door.serve(tokens, stays=True)
        self.waiting.remove(sequence)
        self.running.append(sequence)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 9))
    def compute(self, data: st.DataObject, tokens: int) -> None:
        data.draw(st.sampled_from(self.running)).account.served += tokens

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ends=st.booleans())
    def stop(self, data: st.DataObject, ends: bool) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        self.running.remove(sequence)
        if ends:
            self.door.queue.leave(sequence)
        else:
            self.door.preempt(sequence)
            self.waiting.append(sequence)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(sequence)
        self.door.queue.remove(sequence)
        self.door.queue.leave(sequence)

    @invariant()
    def the_next_is_the_first_of_all(self) -> None:
        def place(sequence: Sequence) -> tuple[int, bool, int, int]:
            account = 0 if sequence.num_preemptions else sequence.account.served
            return sequence.priority, not sequence.num_preemptions, account, sequence.turn

        queue = self.door.queue
        assert (len(queue), bool(queue)) == (len(self.waiting), bool(self.waiting))
        assert queue.peek() is min(self.waiting, key=place, default=None)
        assert sorted(sequence.turn for sequence in queue.sequences()) == sorted(sequence.turn for sequence in self.waiting)

    @invariant()
    def one_tenant_has_one_account(self) -> None:
        alive = [*self.waiting, *self.running, *self.following]
        names = {(sequence.tenant, sequence.priority) for sequence in alive}
        assert len({id(sequence.account) for sequence in alive}) == len(names)


LineMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLine = LineMachine.TestCase
