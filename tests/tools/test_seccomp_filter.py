"""The system-call filter, run by a small machine of its own: what it lets through on each processor; its numbers against the headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import HerdError
from herd.tools.jail.seccomp import ARCHITECTURES, NUMBERS, program

ALLOW, KILL = 0x7FFF0000, 0x80000000
HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}
BY_ARGUMENT = {"clone", "ioctl", "socket"}
GROUP = {"setsid", "setpgid"}


def verdict(code: bytes, audit: int, number: int, *arguments: int) -> int:
    """What the kernel would answer: classic BPF over `struct seccomp_data`, little-endian."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *(value & (1 << 64) - 1 for value in padded))
    steps = list(struct.iter_unpack("<HBBI", code))
    place = accumulator = 0
    while True:
        kind, yes, no, value = steps[place]
        place += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif kind == 0x06:
            return value
        else:
            true = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[kind]
            place += yes if true else no


def number_of(name: str, machine: str) -> int | None:
    return NUMBERS[name][ARCHITECTURES[machine].column]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_each_refused_call_is_refused_and_every_other_allowed(machine: str, group: bool) -> None:
    code, audit = program(machine, process_group=group), ARCHITECTURES[machine].audit
    refused = {number_of(name, machine) for name in NUMBERS if name not in BY_ARGUMENT and (group or name not in GROUP)} - {None}
    by_argument = {number_of(name, machine) for name in BY_ARGUMENT}
    for number in range(451):
        if number not in by_argument:
            answer = verdict(code, audit, number)
            assert (answer == ALLOW) == (number not in refused), number
            assert answer == ALLOW or answer & 0xFFFF0000 == 0x00050000
    assert len(code) % 8 == 0 and len(code) // 8 < 4096


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(number=st.integers(451, 2**32 - 1))
def test_calls_that_are_newer_or_of_x32_are_missing(machine: str, number: int) -> None:
    code = program(machine, process_group=False)
    assert verdict(code, ARCHITECTURES[machine].audit, number) == 0x00050000 | errno.ENOSYS


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(audit=st.integers(0, 2**32 - 1), number=st.integers(0, 500))
def test_another_architecture_ends_the_process(machine: str, audit: int, number: int) -> None:
    if audit != ARCHITECTURES[machine].audit:
        assert verdict(program(machine, process_group=False), audit, number) == KILL


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(family=st.integers(0, 2**64 - 1))
def test_only_sockets_of_the_machine_itself_are_allowed(machine: str, family: int) -> None:
    number = number_of("socket", machine)
    assert number is not None
    audit = ARCHITECTURES[machine].audit
    # The kernel reads the family as an int.
    assert (verdict(program(machine, process_group=False), audit, number, family) == ALLOW) == (family & 0xFFFFFFFF == 1)
    assert verdict(program(machine, process_group=True), audit, number, family) != ALLOW


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(flags=st.integers(0, 2**64 - 1))
def test_clone_makes_threads_and_processes_but_no_namespace(machine: str, flags: int) -> None:
    number = number_of("clone", machine)
    assert number is not None
    namespaces = 0x7E020000
    answer = verdict(program(machine, process_group=False), ARCHITECTURES[machine].audit, number, flags)
    assert (answer == ALLOW) == (not flags & namespaces)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x5401, 0x5413])
def test_terminal_input_cannot_be_faked_by_high_bits_either(machine: str, high: int, request_number: int) -> None:
    number = number_of("ioctl", machine)
    assert number is not None
    answer = verdict(program(machine, process_group=False), ARCHITECTURES[machine].audit, number, 0, request_number | high)
    assert (answer == ALLOW) == (request_number not in (0x5412, 0x541C))


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_those_of_the_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"needs the kernel's headers, which are not at {HEADERS[machine]} (package linux-libc-dev)")
    text = HEADERS[machine].read_text(encoding="utf-8")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", text, re.MULTILINE)}
    for name in NUMBERS:
        number = number_of(name, machine)
        if name not in ("_sysctl", "lookup_dcookie", "nfsservctl") or number is not None:
            assert known.get(name) == number or (number is None and name not in known), name


def test_another_machine_is_refused() -> None:
    with pytest.raises(HerdError, match="no system-call filter for riscv64"):
        program("riscv64", process_group=False)
