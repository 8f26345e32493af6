"""Which jail works on this machine, found by starting one and trying to get out; and the answer where none does.

The order is fixed: bubblewrap, then Landlock, then refusal. Code is never run outside a jail.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from herd.base import settings
from herd.base.errors import ConfigError, HerdError
from herd.tools.code.kernel import Kernel
from herd.tools.errors import JailError
from herd.tools.jail import cgroup, landlock
from herd.tools.jail.identity import own_uid
from herd.tools.jail.interpreter import Interpreter, chosen
from herd.tools.jail.limits import JailLimits
from herd.tools.jail.process import KINDS, JailSpec, Kind, require_linux

INSTALL = (
    "install bubblewrap: `apt-get install bubblewrap` (Debian, Ubuntu), `dnf install bubblewrap` (Fedora), `apk add bubblewrap` (Alpine)"
)
SETTING = ("auto", *KINDS, "off")
_TRY_TO_GET_OUT = """
import ctypes, json, socket
def attempt(action):
    try:
        action()
        return True
    except OSError:
        return False
libc = ctypes.CDLL(None, use_errno=True)
json.dumps({
    "reads a file of the machine": attempt(lambda: open(CANARY).read()),
    "opens a network socket": attempt(lambda: socket.socket()),
    "makes a namespace": libc.unshare(0x10000000) == 0,
    "traces a process": libc.ptrace(0, 0, 0, 0) == 0,
})
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class JailReport:
    """Whether a kind of jail works here, and if not, why and what helps."""

    kind: Kind
    works: bool
    reason: str
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, "works": self.works, "reason": self.reason, "hint": self.hint}


def check(kind: Kind, interpreter: Interpreter) -> JailReport:
    """Try one kind of jail."""
    missing = _missing(kind)
    if missing is not None:
        return missing
    try:
        escapes = _escapes(JailSpec(kind=kind, interpreter=interpreter, limits=JailLimits(), abi=landlock.abi()))
    except (HerdError, OSError) as error:
        return JailReport(kind=kind, works=False, reason=str(error), hint=_START_HINTS[kind])
    if escapes:
        return JailReport(kind=kind, works=False, reason=f"code in it {', '.join(escapes)}", hint="report this as a bug")
    held = "with" if cgroup.places() else "without"
    user = "a user of its own" if own_uid() is not None else "the user of herd"
    return JailReport(kind=kind, works=True, reason=f"runs as {user}, {held} a cgroup")


_START_HINTS: dict[Kind, str] = {
    "bubblewrap": "a container must allow user namespaces (Docker: --security-opt seccomp=unconfined or a profile that has unshare); "
    "Ubuntu 24.04 wants an AppArmor profile for bwrap",
    "landlock": "the interpreter must be readable by every user where herd runs as root: set HERD_CODE_PYTHON to one below /usr",
}


def _missing(kind: Kind) -> JailReport | None:
    if kind == "bubblewrap":
        found = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
        return None if found else JailReport(kind=kind, works=False, reason="bubblewrap is not installed", hint=INSTALL)
    abi, wanted = landlock.abi(), landlock.MIN_ABI_SAME_USER if own_uid() is None else landlock.MIN_ABI
    if abi >= wanted:
        return None
    has = f"has Landlock version {abi}" if abi else "has no Landlock"
    kernel = "6.12" if wanted == landlock.MIN_ABI_SAME_USER else "6.7"
    return JailReport(
        kind=kind,
        works=False,
        reason=f"the kernel {has}, and version {wanted} is needed",
        hint=f"Linux {kernel} or newer has it, or {INSTALL}",
    )


def _escapes(spec: JailSpec) -> list[str]:
    """What the jail fails to hold; empty for one that holds."""
    kernel = Kernel(spec)
    try:
        with tempfile.TemporaryDirectory(prefix="herd-canary-") as folder:
            canary = Path(folder, "canary")
            canary.write_text("canary", encoding="ascii")
            Path(folder).chmod(0o755)
            outcome = kernel.run(f"CANARY = {str(canary)!r}\n{_TRY_TO_GET_OUT}")
    finally:
        kernel.close()
    if outcome.status != "completed" or outcome.result is None:
        raise JailError(f"code in the {spec.kind} jail does not run: {outcome.text()[-300:]}")
    got = json.loads(outcome.result.strip("'"))
    return [name for name, happened in got.items() if happened]


@lru_cache(maxsize=16)
def _checked(kind: Kind, interpreter: Interpreter) -> JailReport:
    return check(kind, interpreter)


def survey(interpreter: Interpreter) -> list[JailReport]:
    """Every kind of jail, tried."""
    require_linux()
    return [_checked(kind, interpreter) for kind in KINDS]


def choose(limits: JailLimits | None = None, *, jail: str | None = None, python: str | None = None) -> JailSpec:
    """The jail to use, by the settings `code_jail` and `code_python`.

    Raises:
        JailError: none works here, or running code is switched off.
        ConfigError: a setting that names no jail.
    """
    wanted = settings.value("code_jail", jail)
    if wanted not in SETTING:
        raise ConfigError(f"code_jail is {wanted!r}", hint=f"one of {', '.join(SETTING)}")
    if wanted == "off":
        raise JailError("running code is switched off by code_jail = off", hint="set it to auto")
    require_linux()
    interpreter = chosen(python)
    reports: list[JailReport] = []
    for kind in KINDS:
        if wanted not in ("auto", kind):
            continue
        report = _checked(kind, interpreter)
        if report.works:
            return JailSpec(kind=kind, interpreter=interpreter, limits=limits or JailLimits(), abi=landlock.abi())
        reports.append(report)
    why = "; ".join(f"{report.kind}: {report.reason}" for report in reports)
    raise JailError(f"code is not run, since no jail works on this machine ({why})", hint=reports[0].hint)
