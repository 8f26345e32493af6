"""The program between herd and a jail: it joins the cgroup, makes the interpreter reachable, becomes the jail's user, and closes the door.

Run as `python -I -S -c SOURCE CONFIG`, so it is one file that imports the standard library only. With `"jail": "bubblewrap"` it turns into
bubblewrap. With `"jail": "landlock"` it forks the jailed process and stays outside as its keeper: when herd goes, or the jailed process
ends, all that is in the jail ends with it. It is trusted; nothing that the jailed code says is ever read here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWNS, _CLONE_NEWNET, _CLONE_NEWIPC = 0x00020000, 0x40000000, 0x08000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_IOCTL_DEV = 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14) | _IOCTL_DEV
_FS_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_RIGHTS, _SCOPES = 3, 3


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *values: Any) -> None:
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    _check(_LIBC.prctl(option, *words), f"prctl {option}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(_LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def _join(groups: list[str]) -> None:
    for folder in groups:
        with open(os.path.join(folder, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write(str(os.getpid()))


def _closed_ancestor(folder: str) -> str | None:
    """The topmost folder above one that the jail's user may not pass through."""
    path = "/"
    for part in folder.strip("/").split("/")[:-1]:
        path = os.path.join(path, part)
        if not os.stat(path).st_mode & 0o001:
            return path
    return None


def _make_reachable(folders: list[str]) -> None:
    """In a mount namespace of our own, put an empty folder over what the jail's user may not pass, and the wanted folders back into it.

    A Python below root's home is the case. Nothing of the machine changes: the mounts are seen by the jail alone.
    """
    closed = {folder: ancestor for folder in folders if (ancestor := _closed_ancestor(folder)) is not None}
    held = {folder: os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in closed}
    for ancestor in sorted(set(closed.values())):
        _mount("tmpfs", ancestor, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,mode=0755")
    for folder, descriptor in held.items():
        os.makedirs(folder, mode=0o755, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", folder, "", _MS_BIND)
        os.close(descriptor)


def _private_mounts(config: dict[str, Any]) -> bool:
    """A mount namespace of our own, where that is allowed; whether it is."""
    if os.geteuid() != 0 or _LIBC.unshare(_CLONE_NEWNS) != 0:
        return False
    os.umask(0o022)
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _make_reachable(config["folders"])
    return True


def _become(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _landlock(config: dict[str, Any]) -> None:
    """Deny every path but these: read and run, read, and the working folder with all rights."""
    rights = _FS_RIGHTS_BY_ABI.get(config["abi"], _FS_RIGHTS_BY_ABI[5])
    ruleset = _Ruleset(rights, _NET_RIGHTS if config["abi"] >= 4 else 0, _SCOPES if config["abi"] >= 6 else 0)
    size = 8 if config["abi"] < 4 else 16 if config["abi"] < 6 else 24
    number = _check(
        _LIBC.syscall(ctypes.c_long(_LANDLOCK_CREATE), ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0)), "landlock"
    )
    reads = _READ_FILE | _READ_DIR
    allowed = [(path, reads | _EXECUTE) for path in config["run_paths"]] + [(path, reads) for path in config["read_paths"]]
    allowed += [(path, _READ_FILE | _WRITE_FILE) for path in config["write_devices"]] + [(config["work"], rights & ~_IOCTL_DEV)]
    for path, wanted in allowed:
        _allow(number, path, wanted & rights)
    _check(_LIBC.syscall(ctypes.c_long(_LANDLOCK_RESTRICT), ctypes.c_int(number), ctypes.c_uint32(0)), "landlock restrict")
    os.close(number)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= _FILE_RIGHTS
    rule = _PathRule(rights, descriptor)
    added = _LIBC.syscall(ctypes.c_long(_LANDLOCK_ADD), ctypes.c_int(ruleset), ctypes.c_int(1), ctypes.byref(rule), ctypes.c_uint32(0))
    _check(added, f"landlock rule {path}")
    os.close(descriptor)


def _seccomp(program: bytes) -> None:
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def _jailed(config: dict[str, Any], program: bytes) -> None:
    """Turn this process into the jailed interpreter."""
    os.setpgid(0, 0)
    os.chdir(config["work"])
    _become(config["uid"])
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for name in (signal.SIGTERM, signal.SIGPIPE, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    os.umask(0o077)
    _landlock(config)
    _seccomp(program)
    os.execve(config["argv"][0], config["argv"], config["env"])


def _kill(group: int, uid: int | None) -> None:
    """End the process group, and all of the jail's own user where there is one, until nobody is left to be waited for."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        if uid is not None and os.fork() == 0:
            # kill(-1) as that user reaches all of its processes at once, and nobody else's.
            try:
                os.setresuid(uid, uid, uid)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)
        except ChildProcessError:
            return


def _keep(config: dict[str, Any], program: bytes) -> int:
    """Fork the jailed process, wait for it or for herd's end, and leave nothing behind."""
    wake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGTERM, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            os.close(config["life"])
            _jailed(config, program)
        except BaseException as error:
            os.write(2, f"jail: {error}\n".encode())
        os._exit(127)
    for descriptor in (1, *config["inner"]):
        os.close(descriptor)
    child = os.pidfd_open(pid)
    waiting = [child, config["life"], wake]
    if os.getppid() == config["parent"]:
        select.select(waiting, [], [])
    status = 0
    try:
        if select.select([child], [], [], 0)[0]:
            status = os.waitpid(pid, 0)[1]
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
    _kill(pid, config["uid"])
    # herd removes the folder too, unless it was killed itself.
    _LIBC.umount2(config["work"].encode(), _MNT_DETACH)
    shutil.rmtree(config["work"], ignore_errors=True)
    return os.waitstatus_to_exitcode(status) & 0xFF


def main() -> None:
    """Read the configuration, and become what it says."""
    config = json.loads(sys.argv[1])
    os.chdir("/")
    _join(config["cgroups"])
    private = _private_mounts(config)
    if config["jail"] == "bubblewrap":
        _become(config["uid"])
        os.execve(config["argv"][0], config["argv"], {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})
    program = bytes.fromhex(config["filter"])
    if private:
        _mount("tmpfs", config["work"], "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={config['disk_bytes']},nr_inodes=16384,mode=0700")
        os.chown(config["work"], config["uid"], config["uid"])
        _LIBC.unshare(_CLONE_NEWNET)
        _LIBC.unshare(_CLONE_NEWIPC)
    sys.exit(_keep(config, program))


if __name__ == "__main__":
    main()
