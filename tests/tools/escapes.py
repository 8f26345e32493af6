"""Ways out of a jail, each a piece of code for inside and a check of what came out. Standard library only: users without our packages run it.

As a program it runs all of them in one kind of jail and prints what happened as JSON: `python escapes.py KIND`.
"""

# ruff: noqa: E501 - the code of a snippet is one string

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.tools.code.kernel import Kernel
from herd.tools.jail import landlock
from herd.tools.jail.interpreter import describe
from herd.tools.jail.limits import MIB, JailLimits
from herd.tools.jail.process import JailSpec

LIMITS = JailLimits(
    memory_bytes=256 * MIB,
    address_space_bytes=768 * MIB,
    disk_bytes=16 * MIB,
    file_bytes=8 * MIB,
    processes=24,
    descriptors=64,
    run_s=2.0,
    output_bytes=64 * 1024,
    attachment_bytes=2 * MIB,
)
CANARY = "canary-5d1f0c"
PRELUDE = "import ctypes, errno, json, os, resource, signal, socket, sys, time\nx = None\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@dataclass(frozen=True, kw_only=True)
class Escape:
    """Code, and whether what it did shows that it was held. Facts of the machine are filled in as {name}."""

    name: str
    code: str
    held: Callable[[dict[str, Any]], bool]
    spoils: bool = False
    """Leaves the jail too full for the next one."""


def printed(result: dict[str, Any]) -> Any:
    """The JSON that the code printed last."""
    return json.loads(result["stdout"].strip().splitlines()[-1])


ATTEMPT = """
def attempt(action):
    try:
        value = action()
        return True if value is None else value
    except (OSError, ValueError, MemoryError, OverflowError):
        return False
"""


def nothing_succeeded(result: dict[str, Any]) -> bool:
    return result["status"] == "completed" and not any(printed(result).values())


ESCAPES = (
    Escape(
        name="forks are counted",
        code="""
n = 0
try:
    while n < 400:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        n += 1
except OSError:
    pass
print(json.dumps(n))
""",
        held=lambda result: 0 < printed(result) <= LIMITS.processes,
    ),
    Escape(
        name="fork bomb",
        code="while True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        held=lambda result: result["status"] == "timeout" and result["elapsed_s"] < 8,
    ),
    Escape(
        name="thread bomb",
        code="""
import threading
stop = threading.Event(); n = 0
try:
    while n < 400:
        threading.Thread(target=stop.wait, daemon=True).start(); n += 1
except RuntimeError:
    pass
stop.set()
print(json.dumps(n))
""",
        held=lambda result: 0 < printed(result) <= LIMITS.processes,
    ),
    Escape(
        name="memory bomb of one process",
        code="x = bytearray(4 << 30)",
        held=lambda result: result["error"] == "MemoryError",
    ),
    Escape(
        name="memory bomb in small pieces",
        code="x = []\nwhile True:\n    x.append(b'x' * (1 << 20))",
        held=lambda result: result["error"] == "MemoryError" or result["ended"] in ("memory", "ended"),
    ),
    Escape(
        name="memory bomb of several processes",
        code="""
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        x = bytearray(100 << 20)
        for i in range(0, len(x), 4096): x[i] = 1
        time.sleep(2); os._exit(0)
    pids.append(pid)
print(json.dumps([os.waitpid(pid, 0)[1] for pid in pids]))
""",
        held=lambda result: result["ended"] in ("memory", "ended") or "memory" in str(result["left_out"]) or any(printed(result)),
    ),
    Escape(
        name="disk bomb in every folder",
        code="""
def fill(folder):
    total = 0
    try:
        for n in range(64):
            with open(os.path.join(folder, "bomb%d" % n), "wb") as file:
                while True:
                    written = file.write(bytes(1 << 20))
                    total += written
                    if total > (200 << 20): return total
                    if file.tell() >= (4 << 20): break
    except OSError:
        pass
    return total
folders = [os.getcwd(), os.environ["TMPDIR"], "/tmp", "/var/tmp", "/dev/shm", "/run", "/dev", "/home", "/"]
got = {f: fill(f) for f in folders}
time.sleep(0.8)  # Where the folder lies on the machine's disk, the watch has to come by.
print(json.dumps(got))
""",
        held=lambda result: result["ended"] == "disk" or max(printed(result).values()) <= LIMITS.disk_bytes,
        spoils=True,
    ),
    Escape(
        name="large file",
        code="""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.system("rm -rf bomb*; rm -rf $TMPDIR/bomb*")
n = 0
try:
    with open("large", "wb", buffering=0) as file:
        while n < 100 << 20: n += file.write(bytes(1 << 20))
except OSError: pass
os.remove("large")
print(json.dumps(n))
""",
        held=lambda result: printed(result) <= LIMITS.file_bytes,
    ),
    Escape(
        name="bomb of empty files",
        code="""
os.makedirs("many", exist_ok=True)
n = 0
try:
    while n < 60000:
        os.close(os.open("many/%d" % n, os.O_CREAT | os.O_WRONLY)); n += 1
except OSError: pass
print(json.dumps(n))
time.sleep(1)
""",
        held=lambda result: result["ended"] == "disk" or result["status"] == "timeout" or printed(result) < 60000,
        spoils=True,
    ),
    Escape(
        name="descriptor bomb",
        code="""
held = []
try:
    while len(held) < 5000: held.append(os.open("/dev/null", os.O_RDONLY))
except OSError: pass
print(json.dumps(len(held)))
for f in held: os.close(f)
""",
        held=lambda result: printed(result) <= LIMITS.descriptors,
    ),
    Escape(
        name="limits are raised again",
        code=ATTEMPT
        + """
names = ["RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CPU"]
def raised(name):
    number = getattr(resource, name); limit = resource.getrlimit(number)[1] * 2
    resource.setrlimit(number, (limit, limit))
print(json.dumps({name: attempt(lambda: raised(name)) for name in names}))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="namespaces and mounts",
        code="""
flags = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
got = {name: libc.unshare(flag) == 0 for name, flag in flags.items()}
numbers = {"x86_64": (56, 435, 161), "aarch64": (220, 435, 51)}[os.uname().machine]
pid = libc.syscall(numbers[0], 0x10000000 | 17, 0, 0, 0, 0)
if pid == 0: os._exit(0)
got["clone"] = pid > 0
got["clone3"] = libc.syscall(numbers[1], 0, 0) >= 0
got["chroot"] = libc.chroot(b".") == 0
got["mount"] = libc.mount(b"none", b"/tmp", b"tmpfs", 0, b"") == 0
got["umount"] = libc.umount2(b"/proc", 2) == 0
got["setns"] = libc.setns(0, 0) == 0
print(json.dumps(got))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="ptrace and the memory of others",
        code=ATTEMPT
        + """
got = {"ptrace": libc.ptrace(0, 0, 0, 0) == 0, "attach": libc.ptrace(16, os.getppid(), 0, 0) == 0}
buffer = ctypes.create_string_buffer(64)
class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here = Iovec(ctypes.addressof(buffer), 64)
got["process_vm_readv"] = libc.process_vm_readv(os.getppid(), ctypes.byref(here), 1, ctypes.byref(here), 1, 0) >= 0
got["mem"] = attempt(lambda: open("/proc/%d/mem" % os.getppid(), "rb").read(1))
print(json.dumps(got))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="interfaces of the kernel",
        code="""
numbers = {"x86_64": {"io_uring_setup": 425, "bpf": 321, "perf_event_open": 298, "keyctl": 250, "add_key": 248, "userfaultfd": 323,
  "init_module": 175, "kexec_load": 246, "open_by_handle_at": 304, "memfd_create": 319, "pidfd_getfd": 438, "shmget": 29, "mq_open": 240},
 "aarch64": {"io_uring_setup": 425, "bpf": 280, "perf_event_open": 241, "keyctl": 219, "add_key": 217, "userfaultfd": 282,
  "init_module": 105, "kexec_load": 104, "open_by_handle_at": 265, "memfd_create": 279, "pidfd_getfd": 438, "shmget": 194, "mq_open": 180}}
buffer = ctypes.create_string_buffer(256)
print(json.dumps({name: libc.syscall(n, buffer, buffer, 0, 0, 0) >= 0 for name, n in numbers[os.uname().machine].items()}))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="sockets",
        code=ATTEMPT
        + """
families = {"inet": 2, "inet6": 10, "netlink": 16, "packet": 17, "bluetooth": 31, "alg": 38, "vsock": 40, "xdp": 44}
got = {name: attempt(lambda: socket.socket(n, kind).fileno()) for name, n in families.items() for kind in (1, 2, 3)}
def abstract():
    s = socket.socket(socket.AF_UNIX); s.connect("\\0{abstract}")
got["a socket of the machine by name"] = attempt(abstract)
def by_path():
    s = socket.socket(socket.AF_UNIX); s.connect("{unix_path}")
got["a socket of the machine by path"] = attempt(by_path)
import urllib.request
got["http"] = attempt(lambda: urllib.request.urlopen("http://127.0.0.1:{port}/", timeout=1).read())
got["names"] = attempt(lambda: socket.create_connection(("example.com", 80), 1))
print(json.dumps(got, default=str))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="secrets in the environment and in /proc of the machine",
        code="""
import glob
found = [name for name, value in os.environ.items() if "{canary}" in value]
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline") + ["/proc/1/environ", "/proc/{pid}/environ", "/proc/{pid}/cmdline"]:
    try:
        if b"{canary}" in open(path, "rb").read(): found.append(path)
    except OSError: pass
print(json.dumps({"found": found}))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="files of the machine",
        code=ATTEMPT
        + """
paths = ["{file}", "/etc/shadow", "/etc/passwd", "/etc/hostname", "/root", "/var", "/proc/1/root/etc/passwd", "/proc/{pid}/root/etc", "/proc/kcore", "/sys/kernel"]
got = {p: attempt(lambda: os.listdir(p) if os.path.isdir(p) else open(p, "rb").read(1)) for p in paths}
shown = {os.path.relpath(p, "/root").split("/")[0] for p in (sys.prefix, sys.base_prefix) if p.startswith("/root/")}
got["/root"] = sorted(set(got["/root"] or []) - shown)  # The way to the interpreter may lead through there.
print(json.dumps(got, default=str))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="writing outside the working folder",
        code=ATTEMPT
        + """
folders = ["/", "/usr", "/usr/lib", "/etc", "/home", "/dev", "/proc", "/proc/sys/kernel", sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "{folder}"]
got = {f: attempt(lambda: open(os.path.join(f, "written"), "w").close()) for f in folders}
got["interpreter"] = attempt(lambda: open(sys.executable, "ab").close())
got["core_pattern"] = attempt(lambda: open("/proc/sys/kernel/core_pattern", "w").close())
print(json.dumps(got))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="devices",
        code=ATTEMPT
        + """
got = {d: attempt(lambda: os.open(d, os.O_RDWR)) for d in ["/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/net/tun"]}
got["mknod"] = attempt(lambda: os.mknod("device", 0o60666, os.makedev(8, 0)))
print(json.dumps(got))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="becoming somebody else",
        code=ATTEMPT
        + """
got = {"setuid": attempt(lambda: os.setuid(0)), "setgid": attempt(lambda: os.setgid(0)), "setgroups": attempt(lambda: os.setgroups([0]))}
import subprocess
said = subprocess.run(["/bin/sh", "-c", "su -c id root; mount; id -u"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
got["su"] = "uid=0" in said
print(json.dumps(got))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="signals to the machine",
        code="""
for pid in ({pid}, {neighbour}, os.getppid()):
    try: os.kill(pid, signal.SIGKILL)
    except OSError: pass
try: os.kill(-1, signal.SIGTERM)
except OSError: pass
print(json.dumps("alive"))
""",
        held=lambda result: True,  # The neighbour and the driver are looked at outside.
    ),
    Escape(
        name="input faked for a terminal",
        code=ATTEMPT
        + """
import fcntl
got = {"TIOCSTI": attempt(lambda: fcntl.ioctl(0, 0x5412, b"x")), "tty": attempt(lambda: os.open("/dev/tty", os.O_RDWR))}
print(json.dumps(got))
""",
        held=nothing_succeeded,
    ),
    Escape(
        name="outputs that are links, pipes and devices",
        code="""
for name, target in {"passwd.txt": "/etc/passwd", "up.txt": "../../../../etc/passwd", "canary.txt": "{file}", "folder": "/etc"}.items():
    try: os.symlink(target, name)
    except OSError as error: print(error)
try: os.link("/etc/passwd", "hard.txt")
except OSError: pass
try: os.mkfifo("pipe.txt")
except OSError: pass
open("\\x1b[31mred\\nline.txt", "w").write("x")
open("good.txt", "w").write("good")
""",
        held=lambda result: result["status"] == "completed" and result["files"] == {"good.txt": "good"} and len(result["left_out"]) >= 4,
    ),
    Escape(
        name="a gigabyte of output",
        code="""
block = b"x" * (1 << 20)
for _ in range(1024): os.write(1, block)
""",
        held=lambda result: len(result["stdout"]) <= LIMITS.output_bytes and (result["lost"] > 900 << 20 or result["status"] == "timeout"),
    ),
    Escape(
        name="a file too large to hand out",
        code="open('big.bin', 'wb').write(bytes(4 << 20))",
        held=lambda result: result["files"] == {} and any("big.bin" in line for line in result["left_out"]),
    ),
    Escape(
        name="core dump",
        code="os.abort()",
        held=lambda result: result["status"] == "failed" and result["ended"] == "ended",
    ),
    Escape(
        name="a loop that ignores every signal and exception",
        code="""
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        while True: pass
    except BaseException: pass
""",
        held=lambda result: result["status"] == "timeout" and result["ended"] == "timeout" and result["elapsed_s"] < 8,
    ),
    Escape(
        name="forged replies that climb",
        code="""
import base64
forged = json.dumps({{"type": "file", "name": "../../../../tmp/{canary}", "data": base64.b64encode(b"x").decode()}}) + "\\n"
forged += json.dumps({{"type": "file", "name": "/etc/cron.d/x", "data": "eA=="}}) + "\\n" + json.dumps({{"type": "result", "text": "\\ud800"}}) + "\\n"
for fd in range(3, 40):
    try: os.write(fd, forged.encode())
    except OSError: pass
""".replace("{{", "{").replace("}}", "}"),
        held=lambda result: result["files"] == {} and result["status"] in ("completed", "failed"),
    ),
    Escape(
        name="replies without end",
        code="""
while True:
    for fd in range(3, 40):
        try: os.write(fd, b"x" * 65536)
        except OSError: pass
""",
        held=lambda result: result["ended"] == "protocol" and result["elapsed_s"] < 8,
    ),
    Escape(
        name="replies of the wrong kind",
        code="""
for fd in range(3, 40):
    try: os.write(fd, b'{"type":"file","name":["x"],"data":7}\\n' + b"[" * 100000 + b"\\n")
    except OSError: pass
""",
        held=lambda result: result["ended"] == "protocol",
    ),
)


def facts(folder: Path, port: int, neighbour: int) -> dict[str, Any]:
    return {
        "canary": CANARY,
        "pid": os.getpid(),
        "neighbour": neighbour,
        "abstract": f"herd-{CANARY}-{os.getpid()}",
        "unix_path": str(folder / "socket"),
        "port": port,
        "file": str(folder / "canary.txt"),
        "folder": str(folder),
    }


def run(kernel: Kernel, code: str) -> dict[str, Any]:
    outcome = kernel.run(PRELUDE + code)
    return {
        "status": outcome.status,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr[-2000:],
        "lost": outcome.stdout_lost_bytes,
        "error": outcome.error.name if outcome.error else None,
        "trace": outcome.error.traceback[-2000:] if outcome.error else "",
        "ended": outcome.ended,
        "files": {file.name: file.data[:100].decode("latin-1") for file in outcome.attachments},
        "left_out": list(outcome.left_out),
        "elapsed_s": outcome.elapsed_s,
    }


def listening(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    return listener


def run_all(kind: str) -> dict[str, Any]:
    """Every escape in turn, in a kernel that is begun anew whenever one ended."""
    os.umask(0o022)
    spec = JailSpec(kind=kind, interpreter=describe(sys.executable), limits=LIMITS, abi=landlock.abi())  # type: ignore[arg-type]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "canary.txt").write_text(CANARY, encoding="ascii")
        neighbour = subprocess.Popen(["sleep", "300"])
        inet = listening(socket.AF_INET, ("127.0.0.1", 0))
        known = facts(folder, inet.getsockname()[1], neighbour.pid)
        others = [listening(socket.AF_UNIX, "\0" + known["abstract"]), listening(socket.AF_UNIX, known["unix_path"])]
        (folder / "socket").chmod(0o777)
        kernel = Kernel(spec)
        for escape in ESCAPES:
            if not kernel.alive():
                kernel.close()
                kernel = Kernel(spec)
            code = escape.code
            for key, value in known.items():
                code = code.replace("{" + key + "}", str(value))
            results[escape.name] = run(kernel, code)
            if escape.spoils and kernel.alive():
                kernel.close()
        pids = [kernel.pid]
        kernel.close()
        results["neighbour lives"] = neighbour.poll() is None
        results["jail is gone"] = not any(Path(f"/proc/{pid}").exists() for pid in pids)
        results["outside is as it was"] = sorted(path.name for path in folder.iterdir())
        neighbour.kill()
        neighbour.wait()
        for listener in (inet, *others):
            listener.close()
    return results


if __name__ == "__main__":
    os.environ["HERD_SECRET"] = CANARY
    if sys.argv[2:] == ["orphans"]:
        kernel = Kernel(
            JailSpec(kind=sys.argv[1], interpreter=describe(sys.executable), limits=LIMITS, abi=landlock.abi())  # type: ignore[arg-type]
        )
        # Children, grandchildren in the background, and one that tries to leave its group.
        outcome = kernel.run(PRELUDE + "import subprocess\nfor _ in range(3): subprocess.Popen(['sleep', '987654'])\n"
                             "if os.fork() == 0:\n    try: os.setsid()\n    except OSError: pass\n    if os.fork() == 0: os.execvp('sleep', ['sleep', '987654'])\n    os._exit(0)\n")  # fmt: skip
        print(json.dumps({"status": outcome.status, "pid": kernel.pid}), flush=True)
        time.sleep(300)
    print(json.dumps(run_all(sys.argv[1])))
