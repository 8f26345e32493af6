"""Compile the C kernels with the system's C compiler, once: `HERD_HOME/kernels/<digest>.so`.

The digest covers sources, flags, machine and the compiler's version, so a library is never stale. Each instruction set is its own set of
objects with its own `-m` flags; a level that the compiler does not know is left out, and so is one that this processor does not run, which
is half of the work on a processor without AVX-512. Processes that build at once wait for the first one. A wheel may carry a library built
beforehand (`hatch_build.py`), with every level: it is looked for by the digest of sources and flags alone.
No torch here: the wheel's build hook imports this file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from herd.base.atomic import atomic_file
from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.base.paths import home
from herd.base.processor import CPUINFO, processor_fields

_LOG = get_logger(__name__)
_HERE = Path(__file__).resolve().parent
_KEEP = 8
_TIMEOUT_S = 900

BASE_FLAGS = (
    "-std=c11",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-pthread",
)
LINK_FLAGS = ("-shared", "-pthread", "-lm")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_VNNI = ("-mavx512vnni", "-DHERD_USE_VNNI")
LEVELS: dict[str, tuple[str, ...]] = {
    "scalar": ("-DHERD_LEVEL=0",),
    "avx2": (*_AVX2, "-DHERD_LEVEL=1"),
    "avx512": (*_AVX512, "-DHERD_LEVEL=2"),
    "avx512vnni": (*_AVX512, *_VNNI, "-DHERD_LEVEL=2"),
    "avx512bf16": (*_AVX512, *_VNNI, "-mavx512bf16", "-DHERD_LEVEL=3"),
    "amx": (*_AVX512, *_VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-DHERD_USE_TILES", "-DHERD_LEVEL=3"),
    "neon": ("-march=armv8.2-a+dotprod", "-DHERD_LEVEL=0"),
}
"""In the order of `enum herd_isa`; on one machine, the plainest first."""
QUANTISED_ONLY = {"avx512vnni": "avx512", "amx": "avx512bf16", "neon": "scalar"}
"""Levels that have products of integers of their own, and whose other kernels they use."""
_KERNEL_NAMES = {"-mavx512vnni": "avx512_vnni", "-mavx512bf16": "avx512_bf16", "-mamx-tile": "amx_tile", "-mamx-int8": "amx_int8"}
"""What the kernel calls a compiler's flag, where it is another name."""
_MACHINES = {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm", "arm64": "arm"}
QUANTISED_SOURCES = ("qlinear.c",)
LEVEL_SOURCES = (
    "linear.c",
    "norm.c",
    "swiglu.c",
    "cross_entropy.c",
    "softmax.c",
    "rope.c",
    "attention.c",
    "draw.c",
    "read.c",
    "fp8.c",
    *QUANTISED_SOURCES,
)
COMMON_SOURCES = ("pool.c", "scratch.c", "dispatch.c", "forward.c", "qpack.c")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiler:
    """A C compiler: the command that runs it, and what it says it is."""

    command: tuple[str, ...]
    version: str


def source_folder() -> Path:
    """The C sources: `herd/kernels/csrc` in a wheel, `csrc` at the top of a checkout. Raises HerdError where they are missing."""
    for folder in (_HERE / "csrc", _HERE.parents[2] / "csrc"):
        if (folder / "herd.h").is_file():
            return folder
    raise HerdError("the C sources of the kernels are missing from this installation", hint="reinstall llama-herd")


def cache_folder() -> Path:
    """Where libraries are kept: `HERD_KERNELS_CACHE`, or below herd's home."""
    return Path(os.environ.get("HERD_KERNELS_CACHE") or home() / "kernels")


def find_compiler() -> Compiler:
    """The compiler that CC names, else cc, gcc or clang. Raises HerdError where none answers."""
    named = os.environ.get("CC")
    for command in [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            try:
                done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return Compiler(command=tuple(command), version=done.stdout.partition("\n")[0].strip())
    looked = f"CC={named!r}" if named else "cc, gcc or clang"
    raise HerdError(f"no C compiler works ({looked})", hint="install one (Debian: apt install gcc), or point CC at it")


def machine_levels() -> dict[str, tuple[str, ...]]:
    """The instruction sets that this kind of machine may have, with their flags."""
    kind = _MACHINES.get(platform.machine())
    if kind == "x86":
        return {level: flags for level, flags in LEVELS.items() if level != "neon"}
    return {level: LEVELS[level] for level in (("scalar", "neon") if kind == "arm" else ("scalar",))}


def levels_here(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of them that this processor runs, where the system tells (Linux on x86); else all, and the library itself looks."""
    levels = machine_levels()
    has = set(processor_fields(cpuinfo).get("flags", "").split())
    if not has:
        return tuple(levels)
    wanted = {level: [_KERNEL_NAMES.get(flag, flag[2:]) for flag in flags if flag.startswith("-m")] for level, flags in levels.items()}
    return tuple(level for level, names in wanted.items() if has.issuperset(names))


def _sources(level: str) -> tuple[str, ...]:
    return QUANTISED_SOURCES if level in QUANTISED_ONLY else LEVEL_SOURCES


def digest(folder: Path, compiler: Compiler | None, levels: Sequence[str] | None = None) -> str:
    """What names a library: sources, levels (all of this kind of machine, unless given), flags, and the compiler unless it is None."""
    parts = [platform.system(), platform.machine(), *BASE_FLAGS, *LINK_FLAGS]
    parts += [f"{name}:{' '.join(flags)}" for name, flags in machine_levels().items() if levels is None or name in levels]
    parts += [*compiler.command, compiler.version] if compiler else []
    found = hashlib.sha256("\0".join(parts).encode())
    for path in sorted(folder.glob("*.[ch]")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:32]


def shipped_library() -> Path | None:
    """The library that came with the wheel, if it was built from the very sources that are here."""
    path = _HERE / "lib" / f"{digest(source_folder(), None)}.so"
    return path if path.is_file() else None


def build() -> Path:
    """The library for this machine, compiled if it is not in the cache. Raises HerdError with the compiler's words."""
    folder, compiler, levels = source_folder(), find_compiler(), levels_here()
    target = cache_folder() / f"{digest(folder, compiler, levels)}.so"
    if target.is_file():
        return target
    with _lock(target.with_suffix(".lock")):
        if not target.is_file():
            _LOG.info("compiling the CPU kernels with %s, once: some seconds", compiler.version)
            with atomic_file(target) as temporary:
                compile_library(folder, compiler, temporary, levels)
            _forget_old(target)
    return target


@contextmanager
def _lock(path: Path) -> Generator[None, None, None]:
    """Hold a file lock; it goes with the process that holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise HerdError(
            f"cannot write below {path.parent}: {error.strerror}", hint="set HERD_HOME to a folder that can be written"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _forget_old(target: Path) -> None:
    """Keep this library and the newest few; earlier versions of the sources leave one each. Whatever the clock says, this one stays."""
    others = [path for path in target.parent.glob("*.so") if path != target]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_KEEP - 1 :]:
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def compile_library(folder: Path, compiler: Compiler, target: Path, levels: Sequence[str] | None = None) -> list[str]:
    """Compile levels (all, unless given) and link them into `target`; those in it. Raises HerdError if even the plain one fails."""
    with tempfile.TemporaryDirectory(prefix="herd-kernels-") as name:
        objects = Path(name)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            made = {
                level: [
                    pool.submit(_compile, compiler, folder / source, objects / f"{source}.{level}.o", level) for source in _sources(level)
                ]
                for level in machine_levels()
                if levels is None or level in levels
            }
            built = {level: [task.result() for task in tasks] for level, tasks in made.items()}
        whole = [level for level, results in built.items() if not any(isinstance(result, HerdError) for result in results)]
        kept = [level for level in whole if QUANTISED_ONLY.get(level, level) in whole]
        for level in built:
            if level not in whole:
                failure = next(result for result in built[level] if isinstance(result, HerdError))
                if level == "scalar":
                    raise failure
                _LOG.debug("without %s: %s", level, failure.message)
        paths = [path for level in kept for path in built[level] if isinstance(path, Path)]
        have = [f"-DHERD_HAVE_{level.upper()}" for level in kept]
        for source in COMMON_SOURCES:
            path = objects / f"{source}.o"
            _run([*compiler.command, *BASE_FLAGS, *have, "-c", str(folder / source), "-o", str(path)])
            paths.append(path)
        _run([*compiler.command, *map(str, paths), "-o", str(target), *LINK_FLAGS])
    return kept


def _compile(compiler: Compiler, source: Path, target: Path, level: str) -> Path | HerdError:
    flags = [*BASE_FLAGS, *LEVELS[level], f"-DHERD_NAME={level}"]
    try:
        _run([*compiler.command, *flags, "-c", str(source), "-o", str(target)])
    except HerdError as error:
        return error
    return target


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise HerdError(f"{command[0]} did not run: {error}", hint="point CC at a C compiler that works") from error
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[:12])
        raise HerdError(f"{command[0]} failed with {done.returncode}: {words}", hint="point CC at a newer gcc or clang")
