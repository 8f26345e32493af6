"""`herd serve` in a process of its own, on any free port, over cria. Import the fixtures into a conftest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from herd.base.paths import bundled_model

LISTENS = re.compile(rb"listening on (http://\S+)/v1")
SIZES = ("--threads", "1", "--max-sequences", "16", "--no-access-log")


class LiveServer:
    """A server that runs. `url` has no path; `log` is what it said so far."""

    def __init__(self, *options: str, model: str = "cria", home: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
        if home is not None:
            environment["HERD_HOME"] = str(home)
        command = [sys.executable, "-m", "herd", "serve", model, "--port", "0", *SIZES, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True)
        self.log = b""
        self.url = ""
        self._ready = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        if not self._ready.wait(120) or not self.url:
            self.kill()
            raise AssertionError(self.log.decode())

    def _listen(self) -> None:
        stream = self.process.stderr
        assert stream is not None
        with stream:
            for line in stream:
                self.log += line
                found = LISTENS.search(line)
                if found:
                    self.url = found[1].decode()
                    self._ready.set()
        self._ready.set()

    def kill(self) -> None:
        """End it as a lost machine would: at once, without a word."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the code that it ends with."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


def needs_cria() -> None:
    """Skips the test where cria is not bundled."""
    if not (bundled_model() / "config.json").is_file():
        pytest.skip("needs cria, which is not bundled in this checkout")


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """One for all tests that only ask it."""
    needs_cria()
    with tempfile.TemporaryDirectory(prefix="herd-live-") as home:
        server = LiveServer(home=Path(home))
        yield server
        server.stop()
