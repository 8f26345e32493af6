"""An orderly end on a signal: SIGTERM or SIGUSR1 lets the step in progress end, saves its state and leaves with a code of its own.

Slurm sends one before a job's time is up (`#SBATCH --signal=B:USR1@300`), Kubernetes sends SIGTERM, people use `kill`. The exit code tells
them from a failure: run the same command again and it goes on. Ctrl-C stays what it is, an interruption at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from herd.base.errors import HerdError
from herd.base.log import get_logger

log = get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PreemptedError(HerdError):
    """A signal asked the run to end; its state is saved."""

    code = "preempted"
    exit_code = 75


class StopRequest:
    """Whether a signal has asked for the end, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def stop_on_signal() -> Generator[StopRequest, None, None]:
    """Yield a request that becomes true on the first signal; a second one of the same kind does what it did before.

    Outside the main thread, where Python takes no signals, the request stays false.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, _frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name
        log.warning("%s: the step in progress is ended and saved; a second signal ends at once", request.signal_name)
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
