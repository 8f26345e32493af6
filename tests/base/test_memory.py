"""What the machine has: figures in bytes, and None rather than a guess."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from herd.base import memory
from herd.base.memory import GIB, available_memory, free_disk, gib, total_memory


def test_what_is_available_is_a_part_of_what_there_is() -> None:
    total, available = total_memory(), available_memory()
    assert total is not None
    assert available is not None
    assert 0 < available <= total


def test_a_machine_without_proc_gives_its_total(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / "absent")
    assert available_memory() == total_memory()


def test_a_machine_that_does_not_say_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", refuse)
    assert total_memory() is None


def test_the_disk_of_a_path_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet" / "there") > 0
    assert free_disk(tmp_path) > 0


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 MiB"), (1.5 * GIB, "1.5 GiB"), (GIB, "1.0 GiB"), (16.1 * 2**20, "16.1 MiB")])
def test_sizes_are_written_for_people(size: float, text: str) -> None:
    assert gib(size) == text
