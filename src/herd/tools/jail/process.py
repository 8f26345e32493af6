"""One jail with an interpreter in it: started, spoken to over two pipes, and ended with all that it holds.

A jail is started from one thread that lives as long as this process: the kernel ends a jail with the *thread* that started it
(PR_SET_PDEATHSIG), and that thread must not be a worker of somebody's pool. Knows nothing of what is said over the pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from herd.tools.errors import JailError
from herd.tools.jail import bubblewrap, cgroup, seccomp
from herd.tools.jail.identity import own_uid
from herd.tools.jail.interpreter import Interpreter, system_paths
from herd.tools.jail.limits import JailLimits
from herd.tools.jail.watch import WATCH, threads_of_this_user

Kind = Literal["bubblewrap", "landlock"]
KINDS: tuple[Kind, ...] = ("bubblewrap", "landlock")

_BOOT = (
    "import os,sys;commands=os.fdopen(int(sys.argv[1]),'rb');replies=int(sys.argv[2]);"
    "exec(compile(commands.read(int(commands.readline())),'<kernel>','exec'))"
)
_READABLE = ("/dev/urandom", "/dev/zero", "/proc/cpuinfo", "/proc/meminfo")
_KILL_WAIT_S = 10.0
_RUNNING: set[Jail] = set()


@cache
def _launcher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="herd-jail")


@cache
def _stage_source() -> str:
    return Path(__file__).with_name("stage.py").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class JailSpec:
    """What a jail is made from."""

    kind: Kind
    interpreter: Interpreter
    limits: JailLimits
    abi: int = 0
    """Landlock's version; 0 for bubblewrap."""


class Jail:
    """A running jail. The pipes are plain descriptors: `commands` to write to, `replies`, `stdout` and `stderr` to read from."""

    def __init__(self, spec: JailSpec) -> None:
        self.spec = spec
        self.uid = own_uid()
        self.end_reason: str | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._cgroup = cgroup.create(spec.limits)
        self._work = self._work_folder() if spec.kind == "landlock" else None
        self._inner: list[int] = []
        self._outer: list[int] = []
        try:
            self._process = _launcher().submit(self._spawn).result()
            _RUNNING.add(self)
        except BaseException:
            self._release()
            raise
        finally:
            for descriptor in self._inner:
                os.close(descriptor)

    def _work_folder(self) -> str:
        folder = tempfile.mkdtemp(prefix="herd-jail-")
        if self.uid is not None:
            os.chown(folder, self.uid, self.uid)
        return folder

    def _pipe(self, *, inner_reads: bool) -> tuple[int, int]:
        """The jail's end and ours."""
        reader, writer = os.pipe()
        inner, outer = (reader, writer) if inner_reads else (writer, reader)
        self._inner.append(inner)
        self._outer.append(outer)
        return inner, outer

    def _spawn(self) -> subprocess.Popen[bytes]:
        inner_commands, self.commands = self._pipe(inner_reads=True)
        inner_replies, self.replies = self._pipe(inner_reads=False)
        inner_stdout, self.stdout = self._pipe(inner_reads=False)
        inner_stderr, self.stderr = self._pipe(inner_reads=False)
        life, _ = self._pipe(inner_reads=True)
        argv = [self.spec.interpreter.path, "-I", "-c", _BOOT, str(inner_commands), str(inner_replies)]
        passed = [inner_commands, inner_replies]
        program = seccomp.program(platform.machine(), process_group=self.spec.kind == "landlock")
        config: dict[str, Any] = {
            "jail": self.spec.kind,
            "uid": self.uid,
            "cgroups": [str(folder) for folder in self._cgroup.folders] if self._cgroup else [],
            "folders": list(self.spec.interpreter.folders),
        }
        if self.spec.kind == "bubblewrap":
            filter_fd, writer = os.pipe()
            self._inner.append(filter_fd)
            os.write(writer, program)
            os.close(writer)
            passed.append(filter_fd)
            bwrap = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin") or "bwrap"
            env = self._environment(bubblewrap.HOME, "/tmp")
            config["argv"] = bubblewrap.command(bwrap, self.spec.interpreter, self.spec.limits, argv, env, filter_fd=filter_fd)
        else:
            assert self._work is not None
            config |= self._landlock_config(argv, program, life)
            config["inner"] = passed[:]
            passed.append(life)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _stage_source(), json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=inner_stdout,
            stderr=inner_stderr,
            pass_fds=passed,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )

    def _landlock_config(self, argv: list[str], program: bytes, life: int) -> dict[str, Any]:
        work = self._work or ""
        system = system_paths()
        return {
            "argv": argv,
            "env": self._environment(work, f"{work}/.tmp"),
            "abi": self.spec.abi,
            "filter": program.hex(),
            "work": work,
            "disk_bytes": self.spec.limits.disk_bytes,
            "run_paths": [*(path for path in system if not path.startswith("/etc")), *self.spec.interpreter.folders],
            "read_paths": [*(path for path in system if path.startswith("/etc")), *_READABLE],
            "write_devices": ["/dev/null"],
            "life": life,
            "parent": os.getpid(),
        }

    @staticmethod
    def _environment(home: str, temporary: str) -> dict[str, str]:
        """All that the jail's environment holds: nothing of ours is in it."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS"), "1")
        names = {"HOME": home, "TMPDIR": temporary, "USER": "code", "LOGNAME": "code", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        figures = {"MPLBACKEND": "module://herd_figures", "MPLCONFIGDIR": f"{temporary}/matplotlib"}
        # Each thread would reserve 64 MiB of addresses for its own allocations, which the limit on addresses counts.
        threads |= {"MALLOC_ARENA_MAX": "2"}
        return {**names, **threads, **figures, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}

    @property
    def pid(self) -> int:
        """The outermost process of the jail, in our own process namespace."""
        return self._process.pid

    @property
    def work_folder(self) -> str | None:
        """The working folder on this machine's disk; None where the jail has a root of its own.

        Root's Landlock jail has a sized file system mounted over it that only the jail sees, so that it looks empty from here.
        """
        return self._work

    @property
    def has_cgroup(self) -> bool:
        """Whether the kernel holds memory and processes for all of the jail together."""
        return self._cgroup is not None

    def rlimits(self) -> dict[str, int]:
        """The limits that the jailed process sets on itself before any foreign code: none of them can be raised again."""
        limits = self.spec.limits
        # Without a namespace and a uid of its own, the kernel counts all that the user runs.
        others = threads_of_this_user() if self.spec.kind == "landlock" and self.uid is None else 0
        return {
            "RLIMIT_AS": limits.address_space_bytes,
            "RLIMIT_CPU": limits.cpu_s,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NPROC": limits.processes + others,
            "RLIMIT_NOFILE": limits.descriptors,
            "RLIMIT_MEMLOCK": 64 * 1024,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_SIGPENDING": 256,
            # 1 and not 0: a machine that pipes core dumps to a program does so at 0, and leaves it at 1.
            "RLIMIT_CORE": 1,
        }

    def watch(self) -> None:
        """Have the jail looked at from now on: once foreign code may come, and no earlier, since before that it is not yet shut."""
        WATCH.add(self)

    def alive(self) -> bool:
        """Whether the jail still runs."""
        return not self._closed and self._process.poll() is None

    def kill(self, reason: str) -> None:
        """End every process of the jail, at once. `reason` is kept if it is the first. May be called from any thread, and again."""
        with self._lock:
            if self._closed:
                return
            if self.end_reason is None:
                self.end_reason = reason
            self._end()

    def _end(self) -> None:
        if self._cgroup is not None and self.spec.kind == "bubblewrap":
            _quietly(self._cgroup.kill)
        if self.spec.kind == "landlock":
            # The keeper ends the jail and then itself; killed itself, it could not.
            _quietly(lambda: os.kill(self.pid, signal.SIGTERM))
        else:
            _quietly(lambda: os.killpg(self.pid, signal.SIGKILL))

    def wait(self) -> int:
        """Until the outermost process is gone; its exit code."""
        try:
            return self._process.wait(_KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            if self._cgroup is not None:
                _quietly(self._cgroup.kill)
            _quietly(lambda: os.killpg(self.pid, signal.SIGKILL))
            return self._process.wait()

    def close(self, reason: str = "closed") -> None:
        """Kill the jail, wait for its end and give back all that it had. May be called again."""
        self.kill(reason)
        with self._lock:
            if self._closed:
                return
            self._closed = True
        WATCH.remove(self)
        _RUNNING.discard(self)
        self.wait()
        if self._cgroup is not None and self._cgroup.was_out_of_memory():
            self.end_reason = "memory"
        self._release()

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for memory."""
        return self._cgroup is not None and self._cgroup.was_out_of_memory()

    def _release(self) -> None:
        for descriptor in self._outer:
            _quietly(lambda descriptor=descriptor: os.close(descriptor))
        self._outer.clear()
        if self._cgroup is not None:
            self._cgroup.kill()
            self._cgroup.remove()
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)


@atexit.register
def _end_all() -> None:
    """No jail outlives this process: the kernel sees to that too, and this also takes away their folders."""
    for jail in list(_RUNNING):
        jail.close()


def _quietly(action: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        action()


def require_linux() -> None:
    """Raises JailError where there is no Linux."""
    if sys.platform != "linux":
        raise JailError(
            f"code runs in a jail of Linux, and this is {sys.platform}", hint="run herd on Linux, in a virtual machine for example"
        )
