"""The thread pool: every task once, whoever calls, awake or asleep, before and after a fork."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from kinds import c_library, running, same

from herd.base.errors import ConfigError
from herd.kernels import dispatch
from herd.kernels.library import Library
from herd.kernels.linear import linear, pack_linear

SPIN_NS = 50_000

FORK = """
import os, sys, torch
from herd.kernels import dispatch
from herd.kernels.linear import linear, pack_linear
dispatch.set_num_threads(3)
packed, x = pack_linear(torch.randn(600, 512)), torch.randn(40, 512)
before = linear(x, packed)
child = os.fork()
if child == 0:
    same = all(torch.equal(linear(x, packed), before) for _ in range(50))
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or not torch.equal(linear(x, packed), before))
"""


def at_once(*tasks: Callable[[], object]) -> None:
    """Run each in a thread of its own; an error in any is raised."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("spin_ns", [0, 2_000, SPIN_NS])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_of_many_short_jobs_runs_once(threads: int, spin_ns: int) -> None:
    with running("scalar", threads=threads) as library:
        assert library is not None
        library.set_spin(spin_ns)
        try:
            assert library.pool_stress(2_000, 9) == 0
        finally:
            library.set_spin(SPIN_NS)


@pytest.mark.parametrize("spin_ns", [0, SPIN_NS])
def test_two_callers_at_once(spin_ns: int) -> None:
    with running("scalar", threads=3) as library:
        assert library is not None
        library.set_spin(spin_ns)
        wrong: list[int] = []
        try:
            at_once(*(lambda: wrong.append(library.pool_stress(3_000, 7)) for _ in range(3)))
        finally:
            library.set_spin(SPIN_NS)
    assert wrong == [0, 0, 0]


def test_two_python_threads_get_the_results_of_one() -> None:
    with running("scalar", threads=3):
        packed, x = pack_linear(torch.randn(400, 300)), torch.randn(30, 300)
        expected = [linear(x[: 1 + i % 30], packed) for i in range(60)]

        def call() -> None:
            for i, before in enumerate(expected):
                assert same(linear(x[: 1 + i % 30], packed), before)

        at_once(call, call)


def test_the_number_of_threads_changes_while_others_work() -> None:
    with running("scalar", threads=2) as library:
        assert library is not None
        stop = threading.Event()

        def change() -> None:
            count = 0
            while not stop.is_set():
                count += 1
                library.num_threads = 1 + count % 4

        def work() -> None:
            try:
                assert library.pool_stress(5_000, 6) == 0
            finally:
                stop.set()

        at_once(change, work)


def test_a_forked_child_starts_threads_of_its_own() -> None:
    c_library()
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK], check=False, timeout=120)
    assert done.returncode == 0


def test_the_number_of_threads_is_set_and_told() -> None:
    library: Library = c_library()
    before = library.num_threads
    try:
        dispatch.set_num_threads(3)
        assert dispatch.num_threads() == library.num_threads == 3
        with pytest.raises(ConfigError, match="0 threads"):
            dispatch.set_num_threads(0)
    finally:
        library.num_threads = before
