"""The jails that work on this machine, for tests that run code."""

from __future__ import annotations

import sys
from functools import cache

import pytest

from herd.tools.code.choose import check
from herd.tools.jail import landlock
from herd.tools.jail.interpreter import describe
from herd.tools.jail.limits import MIB, JailLimits
from herd.tools.jail.process import KINDS, JailSpec, Kind

SMALL = JailLimits(run_s=2.0, output_bytes=50_000, disk_bytes=32 * MIB, file_bytes=16 * MIB, attachment_bytes=4 * MIB)


@cache
def _why_not(kind: Kind) -> str | None:
    report = check(kind, describe(sys.executable))
    return None if report.works else f"{kind} does not work here: {report.reason}"


def jail_spec(kind: Kind, limits: JailLimits = SMALL) -> JailSpec:
    """A jail of a kind; skips where that kind does not work."""
    if sys.platform != "linux":
        pytest.skip("jails are of Linux")
    reason = _why_not(kind)
    if reason is not None:
        pytest.skip(reason)
    return JailSpec(kind=kind, interpreter=describe(sys.executable), limits=limits, abi=landlock.abi())


def any_jail_spec(limits: JailLimits = SMALL) -> JailSpec:
    """The first kind that works."""
    for kind in KINDS:
        if sys.platform == "linux" and _why_not(kind) is None:
            return jail_spec(kind, limits)
    pytest.skip("no jail works here")
