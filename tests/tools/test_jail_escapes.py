"""The escape suite: every way out of the jail is closed, in each kind of jail that works here, as root and as a user without rights.

Where it can be both, each kind is tried as one of them; `HERD_TEST_FULL=1` tries all four.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from escapes import CANARY, ESCAPES  # pyright: ignore[reportMissingImports]

from herd.tools.code.choose import check
from herd.tools.jail.interpreter import describe
from herd.tools.jail.process import KINDS

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
NOBODY = 65534
FULL = bool(os.environ.get("HERD_TEST_FULL")) or os.geteuid() != 0
CASES = [(kind, user) for kind in KINDS for user in ("root", "user")] if FULL else [("bubblewrap", "root"), ("landlock", "user")]


@cache
def command(user: str) -> tuple[str, ...]:
    """A Python that runs as this user; skips where that cannot be."""
    if user == "root":
        if os.geteuid() != 0:
            pytest.skip("not root here")
        return (sys.executable,)
    if os.geteuid() != 0:
        return (sys.executable,)
    setpriv = shutil.which("setpriv")
    python = next((path for path in ("/usr/bin/python3", f"/usr/bin/python3.{sys.version_info[1]}") if as_nobody(path)), None)
    if setpriv is None or python is None:
        pytest.skip("needs setpriv and a system Python 3.11 that a user without rights can run on this checkout")
    return (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all", python)


def as_nobody(python: str) -> bool:
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import herd.tools.code.kernel; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([python, "-B", "-c", program], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{SOURCE}:{HERE}", "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}


@cache
def skip_reason(kind: str) -> str | None:
    report = check(kind, describe(sys.executable))  # type: ignore[arg-type]
    return None if report.works else f"{kind} does not work here: {report.reason}"


@cache
def results(kind: str, user: str) -> dict[str, Any]:
    """What happened to each escape."""
    reason = skip_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    done = subprocess.run([*command(user), str(HERE / "escapes.py"), kind], capture_output=True, text=True, env=environment(), timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: escape.name.replace(" ", "-"))
@pytest.mark.parametrize(("kind", "user"), CASES, ids=["-".join(case) for case in CASES])
def test_the_jail_holds(kind: str, user: str, escape: Any) -> None:
    result = results(kind, user)[escape.name]
    assert escape.held(result), result
    assert CANARY not in result["stdout"]


@pytest.mark.parametrize(("kind", "user"), CASES, ids=["-".join(case) for case in CASES])
def test_nothing_outside_was_touched(kind: str, user: str) -> None:
    got = results(kind, user)
    assert got["neighbour lives"]
    assert got["jail is gone"]
    assert got["outside is as it was"] == ["canary.txt", "socket"]


def sleepers() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"sleep\x00987654" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("kind", "user"), CASES, ids=["-".join(case) for case in CASES])
def test_a_killed_parent_leaves_no_orphans(kind: str, user: str) -> None:
    reason = skip_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    before, folders = sleepers(), set(Path(tempfile.gettempdir()).glob("herd-jail-*"))
    parent = subprocess.Popen([*command(user), str(HERE / "escapes.py"), kind, "orphans"], stdout=subprocess.PIPE, env=environment())
    assert parent.stdout is not None
    told = json.loads(parent.stdout.readline())
    assert told["status"] == "completed"
    deadline = time.monotonic() + 20
    while len(sleepers() - before) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(sleepers() - before) == 4
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    while (sleepers() - before or Path(f"/proc/{told['pid']}").exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleepers() - before
    assert not Path(f"/proc/{told['pid']}").exists()
    while set(Path(tempfile.gettempdir()).glob("herd-jail-*")) - folders and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(Path(tempfile.gettempdir()).glob("herd-jail-*")) - folders
