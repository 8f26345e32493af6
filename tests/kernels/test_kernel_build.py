"""Building: once, whole, by the first of many; without a compiler the reference runs, and one line says so. The dispatcher's choices."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kinds import c_library

from herd.base.errors import ConfigError, HerdError
from herd.kernels import build, dispatch
from herd.kernels.library import _PROTOTYPES, ABI, Library
from herd.kernels.linear import linear, pack_linear

STUB = (
    "#pragma GCC visibility push(default)\n"
    + "\n".join(f"int {name}(void) {{ return 0; }}" for name in _PROTOTYPES if name != "herd_isa_supported")
    + f"\nint herd_abi(void) {{ return {ABI}; }}"
    + """
void herd_set_num_threads(int count) { (void)count; }
void herd_set_spin(long long ns) { (void)ns; }
int herd_isa_supported(int isa) {
    switch (isa) {
    case 0: return 1;
#ifdef HERD_HAVE_AVX2
    case 1: return 1;
#endif
#ifdef HERD_HAVE_AVX512
    case 2: return 1;
#endif
    }
    return 0;
}
"""
)

# A compiler that notes each call, takes its time, and refuses what $REFUSE names.
WRAPPER = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *--version*) echo "stub 1.0"; exit 0;; esac
for word in "$@"; do if [ "$word" = "$REFUSE" ]; then echo "unknown option $word" >&2; exit 1; fi; done
sleep 0.01
exec cc "$@"
"""

BUILD = """
import sys
from pathlib import Path
from herd.kernels import build
build.source_folder = lambda: Path(sys.argv[1])
print(build.build())
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sources in place of the real ones, a compiler that counts, and a home of its own; the folder of all that."""
    c_library()
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "herd.h").write_text("", encoding="ascii")
    for name in (*build.LEVEL_SOURCES, *build.COMMON_SOURCES):
        (sources / name).write_text(STUB if name == "dispatch.c" else "typedef int nothing;\n", encoding="ascii")
    compiler = tmp_path / "compiler"
    compiler.write_text(WRAPPER, encoding="ascii")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HERD_KERNELS_CACHE")
    monkeypatch.setattr(build, "source_folder", lambda: sources)
    return tmp_path


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A dispatcher that has chosen nothing yet, before and after."""
    monkeypatch.delenv("HERD_KERNELS", raising=False)
    monkeypatch.delenv("HERD_KERNELS_ISA", raising=False)
    dispatch.reload()
    yield
    monkeypatch.undo()
    dispatch.reload()


def links(folder: Path) -> int:
    """How often the stub's compiler linked a library."""
    calls = folder / "calls"
    return sum("-shared" in line for line in calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0


def test_it_builds_once(stub: Path) -> None:
    first = build.build()
    assert first == build.build() and links(stub) == 1
    assert first.parent == stub / "home" / "kernels" and Library(first).levels[0] == "scalar"


def test_other_sources_flags_or_compilers_are_another_library(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {build.build()}
    with (stub / "csrc" / "norm.c").open("a", encoding="ascii") as file:
        file.write("/* changed */\n")
    found.add(build.build())
    monkeypatch.setattr(build, "BASE_FLAGS", (*build.BASE_FLAGS, "-g"))
    found.add(build.build())
    (stub / "compiler").write_text(WRAPPER.replace("stub 1.0", "stub 2.0"), encoding="ascii")
    found.add(build.build())
    assert len(found) == links(stub) == 4


def test_only_the_newest_few_are_kept(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_KEEP", 2)
    for count in range(4):
        (stub / "csrc" / "norm.c").write_text(f"typedef int nothing{count};\n", encoding="ascii")
        newest = build.build()
        os.utime(newest, (time.time() + count, time.time() + count))
    kept = list(newest.parent.glob("*.so"))
    assert len(kept) == 2 and newest in kept


def test_processes_that_build_at_once_build_once(stub: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(stub / "csrc")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(paths) == 1 and links(stub) == 1
    assert not [path for path in Path(paths.pop()).parent.iterdir() if "partial" in path.name]


def test_a_level_that_the_compiler_does_not_know_is_left_out(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(build.machine_levels()) == 1:
        pytest.skip("this machine has the plain level only")
    monkeypatch.setenv("REFUSE", "-mavx512f")
    assert Library(build.build()).levels == ["scalar", "avx2"]


def test_levels_that_this_processor_does_not_run_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    cpuinfo, older = tmp_path / "cpuinfo", "fpu sse4_2 avx avx2 fma f16c"
    for flags, levels in (
        ("fpu sse4_2 avx", ("scalar",)),
        (older, ("scalar", "avx2")),
        (f"{older} avx512f avx512bw avx512vl avx512dq avx512_vnni", ("scalar", "avx2", "avx512", "avx512vnni")),
    ):
        cpuinfo.write_text(f"processor\t: 0\nvmx flags\t: amx_tile\nflags\t\t: {flags}\nbugs\t\t: amx_int8\n", encoding="ascii")
        assert build.levels_here(cpuinfo) == levels
    cpuinfo.write_text("Features\t: fp asimd\n", encoding="ascii")
    assert build.levels_here(cpuinfo) == build.levels_here(tmp_path / "missing") == tuple(build.machine_levels()), "it is not told"


def test_the_system_tells_of_the_levels_that_the_library_finds_by_itself(stub: Path) -> None:
    assert tuple(Library(build.build()).levels) == build.levels_here()


def test_a_cached_file_that_does_not_load_is_built_anew(stub: Path, anew: None) -> None:
    path = build.build()
    path.write_bytes(b"not a library")
    assert dispatch.choice().library is not None and links(stub) == 2


def test_a_compiler_that_fails_tells_why(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stub / "csrc" / "pool.c").write_text("this is no C\n", encoding="ascii")
    with pytest.raises(HerdError, match="failed with 1") as refused:
        build.build()
    assert "pool.c" in refused.value.message and refused.value.hint
    assert not list((stub / "home" / "kernels").glob("*.so"))
    monkeypatch.setenv("CC", str(stub / "nowhere"))
    with pytest.raises(HerdError, match="no C compiler works"):
        build.build()


def test_without_a_compiler_the_reference_runs_and_one_line_says_so(
    stub: Path, anew: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(stub / "nowhere"))
    x, w = torch.randn(3, 32), torch.randn(8, 32)
    with caplog.at_level(logging.INFO, "herd"):
        assert torch.allclose(linear(x, pack_linear(w)), x @ w.T, atol=1e-5)
        assert torch.allclose(linear(x, pack_linear(w)), x @ w.T, atol=1e-5)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "torch reference" in caplog.text and "install one" in caplog.text
    assert {row.runs for row in dispatch.table() if row.device == "cpu"} == {"torch reference"}
    assert "no C compiler" in dispatch.table()[0].why


def test_a_home_that_cannot_be_written_is_told(stub: Path, anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (stub / "file").write_text("", encoding="ascii")
    monkeypatch.setenv("HERD_HOME", str(stub / "file"))
    monkeypatch.delenv("HERD_KERNELS_CACHE", raising=False)
    assert dispatch.choice().library is None and "cannot write" in dispatch.choice().why


def test_a_shipped_library_of_the_same_sources_is_taken(stub: Path, anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build.build()
    package = stub / "package"
    (package / "lib").mkdir(parents=True)
    monkeypatch.setattr(build, "_HERE", package)
    shipped = package / "lib" / f"{build.digest(stub / 'csrc', None)}.so"
    shipped.write_bytes(built.read_bytes())
    monkeypatch.setenv("CC", str(stub / "nowhere"))
    library = dispatch.choice().library
    assert library is not None and library.path == shipped


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HERD_KERNELS", "referenz", "HERD_KERNELS='referenz' means nothing"),
        ("HERD_KERNELS_ISA", "avx3", "HERD_KERNELS_ISA='avx3' is no instruction set"),
    ],
)
def test_a_variable_that_names_nothing_is_refused(
    anew: None, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message) as refused:
        dispatch.choice()
    assert refused.value.hint


def test_a_level_that_the_processor_lacks_is_refused_and_never_run(stub: Path, anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_KERNELS_ISA", "avx512bf16")  # the stub claims less
    with pytest.raises(ConfigError, match="asks for what this processor does not run") as refused:
        dispatch.choice()
    assert "scalar" in (refused.value.hint or "")


@pytest.mark.parametrize("level", list(build.LEVELS))
def test_each_level_can_be_forced(anew: None, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    if level not in c_library().levels:
        pytest.skip(f"this processor does not run {level}")
    monkeypatch.setenv("HERD_KERNELS_ISA", level)
    dispatch.reload()
    x, w = torch.randn(3, 40), torch.randn(9, 40)
    assert torch.allclose(linear(x, pack_linear(w)), x @ w.T, atol=1e-5)
    assert all(f"C, {level}" in row.runs for row in dispatch.table() if row.device == "cpu")


def test_the_table_has_a_line_for_every_op() -> None:
    assert [row.op for row in dispatch.table()] == [*dispatch.OPS, "all of the engine", "all"]


def test_the_build_imports_no_torch() -> None:
    program = "import sys; import herd.kernels.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
