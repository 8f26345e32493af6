"""What the system tells of the processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from herd.base import processor

INTEL = "processor\t: 0\nmodel name\t: Some (R) CPU @ 2.0GHz\nflags\t\t: fpu avx2\npower management:\n\nmodel name\t: Other\n"


def test_the_first_processor_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(INTEL, encoding="ascii")
    assert processor.processor_fields(path) == {
        "processor": "0",
        "model name": "Some (R) CPU @ 2.0GHz",
        "flags": "fpu avx2",
        "power management": "",
    }
    path.write_bytes(b"\n\xff\nFeatures\t: fp asimd\n")
    assert processor.processor_fields(path) == {"Features": "fp asimd"}


def test_a_system_that_tells_nothing_has_a_kind_of_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor.processor_fields(tmp_path / "missing") == processor.processor_fields(tmp_path) == {}
    assert processor.processor_name()
    monkeypatch.setattr(processor, "processor_fields", dict)
    assert processor.processor_name() == (platform.processor() or platform.machine())
