"""What the engine's process sends: nothing lost, each request's events in their order, and fewer frames the more streams there are."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import Tokens
from herd.engine.wire import LENGTH, event_from_list, event_to_list, frame_size
from herd.stack.worker import HOLD_S, Outbox


class Listener:
    """The other end: every frame as it came."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.outbox = Outbox(theirs)
        self.frames: list[Any] = []
        self.arrived = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        file = self.ours.makefile("rb")
        while head := file.read(LENGTH.size):
            value = json.loads(file.read(frame_size(head)))
            with self.arrived:
                self.frames.append(value)
                self.arrived.notify_all()

    def wait(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.frames) >= count, timeout=30)

    def events(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        for value in self.frames:
            for number, *data in value.get("events", ()):
                found[number].append(data)
        return found


def tokens(index: int, *ids: int, finish: Any = None) -> Tokens:
    return Tokens(index=index, ids=ids, finish=finish)


def test_a_lone_stream_is_never_kept_waiting() -> None:
    end = Listener()
    for number in range(5):
        end.outbox.tokens(1, tokens(0, number))
        end.outbox.flush()
        end.wait(number + 1)
    assert [data[2] for data in end.events()[1]] == [[0], [1], [2], [3], [4]]


def test_streams_that_share_the_engine_send_several_tokens_at_a_time() -> None:
    end = Listener()
    for step in range(40):
        for stream in range(40):
            end.outbox.tokens(stream, tokens(0, step))
        end.outbox.flush()
        time.sleep(HOLD_S)
    end.outbox.close()
    end.wait(1)
    time.sleep(0.05)
    assert len(end.frames) < 35
    for stream in range(40):
        ids = [token_id for data in end.events()[stream] for token_id in event_from_list(data).ids]  # pyright: ignore[reportAttributeAccessIssue]
        assert ids == list(range(40))


def test_what_waits_for_a_server_that_does_not_read_does_not_grow_with_every_step() -> None:
    ours, theirs = socket.socketpair()
    outbox, num_steps, n = Outbox(theirs), 5000, 16
    logprobs = [TokenLogprobs(token_id=step, logprob=-1.0, top=((step, -1.0),)) for step in range(num_steps)]
    for step in range(num_steps):
        for index in range(n):
            outbox.tokens(1, tokens(index, step))
            outbox.tokens(2, Tokens(index=index, ids=(step,), logprobs=(logprobs[step],)))
        outbox.flush()
    found: dict[tuple[int, int], list[Any]] = defaultdict(list)
    num_events = 0
    with ours, theirs, ours.makefile("rb") as file:
        while any(len(found[number, index]) < num_steps for number in (1, 2) for index in range(n)):
            for number, *data in json.loads(file.read(frame_size(file.read(LENGTH.size))))["events"]:
                event = event_from_list(data)
                assert isinstance(event, Tokens)
                found[number, event.index] += event.ids if number == 1 else event.logprobs
                num_events += 1
        outbox.close()
    assert all(found[1, index] == list(range(num_steps)) and found[2, index] == logprobs for index in range(n))
    assert num_events < num_steps * n


def test_an_event_that_cannot_wait_takes_what_is_held_of_its_request_along() -> None:
    end = Listener()
    for stream in range(30):
        end.outbox.tokens(stream, tokens(0, 1))
    end.outbox.flush()
    end.wait(1)
    end.outbox.tokens(3, tokens(0, 2))
    end.outbox.tokens(3, tokens(1, 5))
    end.outbox.tokens(3, tokens(1, 6))
    end.outbox.tokens(4, tokens(0, 2))
    end.outbox.event(3, event_to_list(tokens(0, 3, finish="stop")))
    end.outbox.flush()
    end.outbox.close()
    end.wait(2)
    told = [(data[1], data[2], data[3]) for data in end.events()[3]]
    assert told == [(0, [1], None), (0, [2], None), (1, [5, 6], None), (0, [3], "stop")]


def test_what_is_held_goes_out_when_the_box_is_closed() -> None:
    end = Listener()
    for stream in range(200):
        end.outbox.tokens(stream, tokens(0, 1))
    end.outbox.flush()
    end.wait(1)
    end.outbox.tokens(7, tokens(0, 2))
    end.outbox.close()
    end.wait(2)
    assert [data[2] for data in end.events()[7]] == [[1], [2]]


@pytest.mark.parametrize("finish", [None, "length"])
def test_tokens_read_back_as_they_were(finish: Any) -> None:
    event = tokens(2, 4, 5, finish=finish)
    assert event_from_list(json.loads(json.dumps(event_to_list(event)))) == event
