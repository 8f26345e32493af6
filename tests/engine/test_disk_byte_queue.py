"""The queue between two threads holds so many bytes and no more, and no one waits for ever."""

from __future__ import annotations

import threading

import pytest

from herd.engine.disk.byte_queue import ByteQueue


def test_it_gives_in_order_what_it_was_given() -> None:
    queue: ByteQueue[int] = ByteQueue(100)
    assert all(queue.put(number, 10) for number in range(10))
    assert [queue.get() for _ in range(11)] == [*range(10), None]


def test_what_does_not_fit_is_refused_until_there_is_room() -> None:
    queue: ByteQueue[str] = ByteQueue(10)
    assert queue.put("a", 6) and not queue.has_room(5) and not queue.put("b", 5)
    assert queue.put("c", 4)
    queue.get()
    assert queue.put("b", 5)


def test_what_is_larger_than_the_queue_goes_in_alone() -> None:
    queue: ByteQueue[str] = ByteQueue(10)
    assert queue.put("large", 50) and not queue.put("small", 1)


def test_a_put_that_waits_goes_on_when_there_is_room() -> None:
    queue: ByteQueue[int] = ByteQueue(1)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.extend(queue.put(number, 1, wait=True) for number in range(5)))
    thread.start()
    assert [queue.get(wait=True) for _ in range(5)] == list(range(5))
    thread.join(timeout=5)
    assert results == [True] * 5


def test_closing_wakes_whoever_waits() -> None:
    empty: ByteQueue[int] = ByteQueue(1)
    full: ByteQueue[int] = ByteQueue(1)
    full.put(1, 1)
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(empty.get(wait=True))),
        threading.Thread(target=lambda: results.append(full.put(2, 1, wait=True))),
    ]
    for thread in threads:
        thread.start()
    empty.close()
    full.close()
    for thread in threads:
        thread.join(timeout=5)
    assert sorted(results, key=str) == [False, None]
    assert full.get(wait=True) == 1, "what lay in it can still be taken"


@pytest.mark.parametrize("is_done", [False, True])
def test_join_waits_for_what_was_taken_too(is_done: bool) -> None:
    queue: ByteQueue[int] = ByteQueue(9)
    queue.put(1, 1)
    queue.get()
    if is_done:
        queue.done()
    assert queue.join(0.01) is is_done
