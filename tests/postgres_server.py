"""A real PostgreSQL for tests, on a Unix socket in a temporary folder: started once, a database of its own for each test.

Its programs are looked for on PATH and in Debian's folder. It refuses to run as root, so root starts it as another user.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count(1)


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return found
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(places[0]) if places else None


def _user() -> str | None:
    """Who runs it: None is ourselves."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), "")


@cache
def _started() -> tuple[str, str]:
    """The folder of its socket, or empty and why it cannot run."""
    try:
        import psycopg
    except ImportError:
        return "", "needs psycopg (pip install 'llama-herd[postgres]')"
    programs = [_program(name) for name in ("initdb", "postgres")]
    user = _user()
    if None in programs:
        return "", "needs PostgreSQL's initdb and postgres, which are not here"
    if user == "":
        return "", "PostgreSQL does not run as root, and there is no other user to run it as"
    folder = tempfile.mkdtemp(prefix="herd-pg-")
    who: dict[str, Any] = {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **who}
    initdb, postgres = programs
    words = [initdb, "-D", f"{folder}/data", "-U", "herd", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    done = subprocess.run(words, check=False, env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, **quiet)  # type: ignore[arg-type]
    if done.returncode:
        return "", "PostgreSQL's initdb fails here"
    server = subprocess.Popen([postgres, "-D", f"{folder}/data", "-k", folder, "-h", "", "-F"], **quiet)  # type: ignore[list-item]

    def stop() -> None:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        try:
            psycopg.connect(f"host={folder} user=herd dbname=postgres").close()
            return folder, ""
        except psycopg.OperationalError:
            time.sleep(0.1)
    return "", "PostgreSQL does not start here"


def fresh_database() -> str:
    """The URL of an empty database. Skips the test where PostgreSQL cannot run, saying why."""
    folder, why = _started()
    if why:
        pytest.skip(why)
    import psycopg

    name = f"herd_{next(_numbers)}"
    with psycopg.connect(f"host={folder} user=herd dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return f"postgresql://herd@/{name}?host={folder}"
