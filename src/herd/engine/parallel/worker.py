"""The process of a rank other than 0: `python -m herd.engine.parallel.worker`, started and spoken to by `workers`.

Its first frame is a spec; with a prefix cache on disk the next names every rank's share, and some say what to read. The others are what
rank 0's scheduler was told, and at each step which rows want scores. It ends with a frame that says so, or when its stdin closes, which
is how it learns that rank 0 is gone, whatever it is doing at the time.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from herd.base.errors import HerdError
from herd.engine.wire import LENGTH, frame, frame_size

_BEAT_EVERY_S = 0.25
_LISTEN_S = 2.0
"""A broken line is most often another rank's end: rank 0 gets so long to notice that first."""


class Line:
    """The two pipes to rank 0."""

    def __init__(self, received: BinaryIO, sent: BinaryIO) -> None:
        self._received, self._sent = received, sent
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def say(self, value: Mapping[str, Any]) -> None:
        """Send rank 0 a frame. Where there is no one to hear it, this process has no business any more."""
        try:
            with self._lock:
                self._sent.write(frame(value))
                self._sent.flush()
        except OSError:
            os._exit(0)

    def _listen(self) -> None:
        while len(head := self._received.read(LENGTH.size)) == LENGTH.size:
            size = frame_size(head)
            data = self._received.read(size)
            if len(data) < size:
                break
            self.inbox.put(json.loads(data))
        os._exit(0)

    def _beat(self) -> None:
        while True:
            self.say({})
            time.sleep(_BEAT_EVERY_S)


def follow(spec: Mapping[str, Any], line: Line) -> None:
    """Do as rank 0 does, until it says to stop."""
    from herd.base.log import configure
    from herd.engine.parallel.follower_disk import FollowerDisk
    from herd.engine.parallel.rank import RankSpec, make_follower, make_runner, open_share

    if spec["log_level"]:
        configure(spec["log_level"])
    own = RankSpec.from_dict(spec)
    line.say({"word": "up"})
    runner, follower = make_runner(own), make_follower(own)
    disk: FollowerDisk | None = None
    line.say({"word": "ready", "share": runner.share})
    while not (told := line.inbox.get()).get("stop"):
        if "shares" in told:
            folder = open_share(own, runner, told["shares"])
            follower.disk = disk = FollowerDisk(folder, follower.scheduler.pool, runner, say=lambda said: line.say({"disk": said}))
        elif "read" in told:
            assert disk is not None
            disk.read(*told["read"])
        elif (batch := follower.take(told)) is not None:
            runner.run(batch)
    if disk is not None:
        disk.close()


def main() -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What anyone prints goes to stderr: stdout is the line.
    sent = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    line = Line(sys.stdin.buffer, sent)
    code = 1
    try:
        follow(line.inbox.get(), line)
        code = 0
    except HerdError as error:
        line.say({"failed": error.to_dict()})
    except Exception as error:  # whatever it is, rank 0 has to hear of it
        time.sleep(_LISTEN_S)
        line.say({"failed": HerdError(f"{type(error).__name__}: {error}", hint="this is a bug: please report it").to_dict()})
    # Threads are not waited for: they listen to rank 0, which may never say anything again.
    os._exit(code)


if __name__ == "__main__":
    main()
