"""What every benchmark shares: interleaved repeats, medians and ratios, a child's peak memory, and a JSON file that says where it ran.

A comparison is one run: the peers take turns, so that a machine that slows down slows all of them. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """The commit of the checkout, with `+changes` where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        name = git("rev-parse", "HEAD")
        return name + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "") if name else None
    except OSError:
        return None


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, commit, date and load average: what a figure means nothing without."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_average": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in packages}},
    }


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def interleave(tasks: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every task `repeats` times, in turns, and in the opposite order every second turn. A task returns its figure."""
    figures: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats):
        for name in list(tasks)[:: -1 if turn % 2 else 1]:
            figures[name].append(tasks[name]())
    return figures


def seconds(task: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def summary(figures: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest and every figure."""
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures), "all": list(figures)}


def ratios(medians: Mapping[str, float], *, of: str) -> dict[str, float]:
    """The median of `of` divided by every other's."""
    return {name: medians[of] / median for name, median in medians.items() if name != of and median}


def peak_rss_bytes() -> int:
    """The most memory this process has had in use. Linux's own count of it starts anew with each program; rusage may hold the parent's."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def child(module: str, *arguments: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS` in a fresh process and return the JSON object on the last line of its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: {module} {' '.join(arguments)} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, metavar="FILE", help="write every figure, machine, versions and commit")
    options.add_argument("--repeats", type=int, default=repeats, help=f"turns of every peer (default {repeats})")
    return options


def report(path: Path | None, name: str, packages: Sequence[str], results: Mapping[str, Any]) -> None:
    """Write the JSON file, if one was asked for."""
    if path is not None:
        data = {"benchmark": name, **surroundings(packages), "results": results}
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print()
