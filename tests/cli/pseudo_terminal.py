"""Drive `herd` as a person at a terminal does: a process of its own on a pseudo-terminal, keys in, screen out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

from herd_command import environment  # pyright: ignore[reportMissingImports]

# The pseudo-terminal becomes the controlling one, so that Ctrl-C reaches the process as a signal; a shell that started the tests in the
# background has them ignore it.
PROGRAM = (
    "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); from herd.cli import main; main()"
)
PATIENCE_S = 180.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")
ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_G, UP, TAB = "\r", "\x1b\r", "\x03", "\x04", "\x07", "\x1b[A", "\t"


def pasted(text: str) -> str:
    """What a terminal sends when text is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


class PseudoTerminal:
    """A running `herd`. `expect` waits for a pattern on the screen after the last one that was found.

    `answers` takes stdout away from the screen, into a file.
    """

    def __init__(self, *arguments: str | Path, answers: Path | None = None, **variables: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        stdout = slave if answers is None else os.open(answers, os.O_WRONLY | os.O_CREAT)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=slave,
            stdout=stdout,
            stderr=slave,
            start_new_session=True,
            env=environment(**{"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **variables}),
        )
        for descriptor in {slave, stdout}:
            os.close(descriptor)
        self._raw = b""
        self._seen = 0

    @property
    def screen(self) -> str:
        """Everything shown so far, without what moves the cursor and sets colours."""
        return ESCAPES.sub("", self._raw.decode("utf-8", "replace"))

    @property
    def raw(self) -> str:
        """Everything shown so far as it came."""
        return self._raw.decode("utf-8", "replace")

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def _read(self, seconds: float) -> bool:
        """Take in what is shown now; false when the terminal is closed."""
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self._raw += data
        return bool(data)

    def expect(self, pattern: str) -> str:
        """Wait for a pattern; returns what it matched. What was shown before it is not looked at again."""
        end = time.monotonic() + PATIENCE_S
        open_still = True
        while True:
            found = re.compile(pattern).search(self.screen, self._seen)
            if found is not None:
                self._seen = found.end()
                return found.group()
            assert open_still and time.monotonic() < end, f"no {pattern!r} in {self.screen[self._seen :]!r}"
            open_still = self._read(0.2)

    def prompt(self) -> None:
        """Wait until a message can be typed."""
        self.expect(">>>")

    def ends(self) -> int:
        """Wait for the end; returns the exit code."""
        while self._read(0.2) and self._process.poll() is None:
            pass
        return self._process.wait(timeout=PATIENCE_S)

    @property
    def running(self) -> bool:
        """Whether herd is still there."""
        return self._process.poll() is None

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.running:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=PATIENCE_S)
        os.close(self._master)
