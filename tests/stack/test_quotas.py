"""Keys in a file, what each may use by the minute and at once, and what the server says when it is too much."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import ThreadServer, bearer, keys, thread_server, wait_for  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, NotFoundError
from herd.stack.keys import ApiKey, Quota, digest_of, find_key, new_key, read_keys

ASK = {"model": "tiny", "prompt": "The herd", "max_tokens": 4, "seed": 1}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def quota(clock: Clock, **limits: Any) -> Quota:
    return Quota(ApiKey(name="a", digest=b"", **limits), clock=clock)


def test_requests_by_the_minute() -> None:
    clock = Clock()
    used = quota(clock, rpm=3)
    for _ in range(3):
        assert used.wait_s(1) == 0
        used.take(1)
        used.end()
    assert used.wait_s(1) == pytest.approx(20)
    clock.now = 19.9
    assert used.wait_s(1) == pytest.approx(0.1)
    clock.now = 20.0
    assert used.wait_s(1) == 0
    clock.now = 10_000.0
    for _ in range(3):
        assert used.wait_s(1) == 0
        used.take(1)
    assert used.wait_s(1) == pytest.approx(20), "what was not used is not kept beyond a minute's worth"


def test_tokens_by_the_minute_and_a_debt() -> None:
    clock = Clock()
    used = quota(clock, tpm=600)
    used.take(100)
    used.spend(700)
    assert used.wait_s(100) == pytest.approx(30)
    clock.now = 30.0
    assert used.wait_s(100) == 0
    clock.now = 1000.0
    assert used.wait_s(10_000) == 0, "a prompt over the minute's worth is taken when all of it is there"


def test_at_once_and_what_is_given_back() -> None:
    clock = Clock()
    used = quota(clock, concurrent=2, rpm=2, tpm=100)
    used.take(50)
    used.take(50)
    assert used.wait_s(1) == 1.0
    used.give_back(50)
    assert used.num_open == 1 and used.wait_s(50) == 0
    used.take(50)
    used.end()
    used.end()
    assert used.num_open == 0 and used.wait_s(1) > 0


def test_a_clock_that_jumps_back_gives_nothing() -> None:
    clock = Clock()
    used = quota(clock, rpm=1)
    used.take(1)
    clock.now = -1000.0
    assert used.wait_s(1) == pytest.approx(60)


def test_a_key_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = new_key()
    file.write_text(f"# who may ask\nanna {key} rpm=60 tpm=1000 # an aside\n\n0123456789abcdef concurrent=2 priority=-5 admin=1\n")
    anna, other = read_keys(file)
    assert (anna.name, anna.rpm, anna.tpm, anna.concurrent) == ("anna", 60, 1000, None)
    assert (other.concurrent, other.priority, other.admin, anna.admin) == (2, -5, 1, 0) and other.name.startswith("key-")
    assert find_key((anna, other), key) is anna and find_key((anna, other), key[:-1]) is None
    assert key not in repr(anna) and anna.digest.hex() not in repr(anna) and digest_of(key) == anna.digest


@pytest.mark.parametrize(
    "text",
    ["", "# none", "short", "anna 0123456789abcdef rpm=0", "anna 0123456789abcdef rpm=x", "anna 0123456789abcdef rmp=5",
     "a b 0123456789abcdef", "anna 0123456789abcdef\nanna 0123456789abcdeg", "anna 0123456789abcdef\nbert 0123456789abcdef"],
)  # fmt: skip
def test_key_files_that_are_wrong(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(file)
    assert caught.value.hint and "0123456789abcdef" not in str(caught.value) + caught.value.hint


def test_a_key_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_keys(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        read_keys(tmp_path / "bytes")


def ask(server: ThreadServer, name: str, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + "/v1/completions", json={**ASK, **fields}, headers=bearer(name), timeout=60)


def told_to_wait(answer: httpx.Response) -> int:
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "rate_limit_exceeded", answer.text
    return int(answer.headers["Retry-After"])


def test_a_key_over_its_requests_waits_and_the_others_do_not() -> None:
    with thread_server(keys=keys(rpm=2, concurrent=2)) as server:
        assert [ask(server, "anna").status_code for _ in range(2)] == [200, 200]
        assert 1 <= told_to_wait(ask(server, "anna")) <= 30
        assert ask(server, "bert").status_code == 200
        assert httpx.get(server.url + "/v1/models", headers=bearer("anna")).status_code == 200
        wait_for(server.idle, within=5)
        # Anna's quota is set back by hand; at once she may have two.
        server.service.quotas["anna"]._requests.level = 100
        with ThreadPoolExecutor(3) as pool:
            long = [pool.submit(ask, server, "anna", max_tokens=2500, ignore_eos=True) for _ in range(2)]
            wait_for(lambda: server.service.quotas["anna"].num_open == 2, what="two at once")
            assert told_to_wait(ask(server, "anna")) == 1
            assert ask(server, "bert").status_code == 200
            assert [one.result().status_code for one in long] == [200, 200]
        wait_for(server.idle, within=5)


def test_tokens_of_an_answer_that_was_left_are_paid_for() -> None:
    with thread_server(keys=keys(tpm=600)) as server, server.client(headers=bearer("anna")) as client:
        with client.stream("POST", "/v1/completions", json={**ASK, "max_tokens": 10_000, "stream": True, "ignore_eos": True}) as answer:
            seen = sum(1 for _, line in zip(range(3000), answer.iter_lines(), strict=False) if line.startswith("data"))
            assert seen
        wait_for(server.idle, within=5)
        assert server.service.quotas["anna"]._tokens.level < 600 - 300
        refused = [ask(server, "anna", prompt="The herd " * 50) for _ in range(4)][-1]
        assert told_to_wait(refused) >= 1
