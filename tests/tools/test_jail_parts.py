"""Parts of the jail that a machine may lack: cgroups of both versions, mapped users, odd interpreters, the watch's counting."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from herd.base.errors import NotFoundError
from herd.tools.code.choose import check
from herd.tools.jail import cgroup, identity
from herd.tools.jail.bubblewrap import command
from herd.tools.jail.interpreter import Interpreter, describe, system_paths
from herd.tools.jail.limits import JailLimits
from herd.tools.jail.watch import children_of_all, descendants, folder_size, private_bytes, threads_of_this_user


@pytest.fixture(autouse=True)
def _no_caches() -> None:
    cgroup.places.cache_clear()
    cgroup._sweep.cache_clear()


def version_two(root: Path, controllers: str = "cpu memory pids") -> Path:
    (root / "cgroup.subtree_control").write_text(controllers, encoding="ascii")
    return root


def version_one(root: Path) -> Path:
    for name in ("memory", "pids"):
        (root / name).mkdir()
        (root / name / "cgroup.procs").touch()
    return root


def test_version_two_is_used_where_it_hands_on_both_controllers(tmp_path: Path) -> None:
    assert cgroup.places(version_two(tmp_path)) == (tmp_path,)
    made = cgroup.create(JailLimits(), tmp_path)
    assert made is not None and len(made.folders) == 1
    assert made.folders[0].name.startswith(f"herd-jail-{os.getpid()}-")
    made.remove()
    assert not made.folders[0].exists()


def test_version_one_has_a_folder_for_each_controller(tmp_path: Path) -> None:
    made = cgroup.create(JailLimits(), version_one(tmp_path))
    assert made is not None and [folder.parent.name for folder in made.folders] == ["memory", "pids"]


@pytest.mark.parametrize("controllers", ["", "cpu", "memory"])
def test_without_the_controllers_there_is_none(tmp_path: Path, controllers: str) -> None:
    assert cgroup.create(JailLimits(), version_two(tmp_path, controllers)) is None
    assert cgroup.create(JailLimits(), tmp_path / "none") is None


def test_empty_cgroups_of_herds_that_are_gone_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    version_two(tmp_path)
    for name in (f"herd-jail-{gone.pid}-a", f"herd-jail-{os.getpid()}-b", "somebody-else"):
        (tmp_path / name).mkdir()
    cgroup.create(JailLimits(), tmp_path)
    assert not (tmp_path / f"herd-jail-{gone.pid}-a").exists()
    assert (tmp_path / f"herd-jail-{os.getpid()}-b").exists() and (tmp_path / "somebody-else").exists()


@pytest.mark.parametrize(("name", "text", "was"), [
    ("memory.events", "low 0\noom_kill 2\n", True), ("memory.events", "oom 3\noom_kill 0\n", False),
    ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", True), ("other", "oom_kill 1", False),
])  # fmt: skip
def test_out_of_memory_is_read_from_either_version(tmp_path: Path, name: str, text: str, was: bool) -> None:
    (tmp_path / name).write_text(text, encoding="ascii")
    assert cgroup.Cgroup(folders=(tmp_path,)).was_out_of_memory() is was


def test_a_uid_is_taken_from_where_the_namespace_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.tools.jail.identity.os.geteuid", lambda: 0)
    tables = {"all": "0 0 4294967295", "container": "0 100000 65536", "one": "0 1000 1"}
    for name, text in tables.items():
        (tmp_path / name).write_text(text + "\n", encoding="ascii")

    def uid(table: str) -> int | None:
        real = identity._is_mapped
        monkeypatch.setattr("herd.tools.jail.identity._is_mapped", lambda _, low, high: real(str(tmp_path / table), low, high))
        found = identity.own_uid()
        monkeypatch.setattr("herd.tools.jail.identity._is_mapped", real)
        return found

    assert 0x70000000 <= (uid("all") or 0) <= 0x7FFDFFFF
    assert 60578 <= (uid("container") or 0) <= 61183
    assert uid("one") is None
    monkeypatch.setattr("herd.tools.jail.identity.os.geteuid", lambda: 1000)
    assert identity.own_uid() is None


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_an_interpreter_installed_too_widely_is_refused(tmp_path: Path) -> None:
    for wide in ("/", "/home", os.path.expanduser("~")):
        says = f'[[3, 12], "x86_64", ["{wide}", "/usr"]]'
        with pytest.raises(NotFoundError, match="cannot show without showing what else is there"):
            describe(script(tmp_path / f"python{abs(hash(wide))}", f"echo '{says}'"))


def test_an_interpreter_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"is Python 3\.8"):
        describe(script(tmp_path / "python", """echo '[[3, 8], "x86_64", ["/usr"]]'"""))


def test_the_interpreters_folders_hold_it() -> None:
    found = describe(sys.executable)
    assert all(os.path.isdir(folder) for folder in found.folders)
    assert any(sys.base_prefix.startswith(folder) for folder in (*found.folders, "/usr"))
    assert "/usr" in system_paths() and "/etc" not in system_paths() and "/home" not in system_paths()


def test_the_command_line_of_bubblewrap_has_every_fence() -> None:
    words = command("bwrap", Interpreter(path="/usr/bin/python3", folders=()), JailLimits(), ["python3"], {"A": "1"}, filter_fd=9)
    for fence in ("--unshare-all", "--unshare-user", "--disable-userns", "--clearenv", "--new-session", "--die-with-parent"):
        assert fence in words
    text = " ".join(words)
    assert "--cap-drop ALL" in text and "--remount-ro /dev" in text and "--remount-ro / " in text and "--seccomp 9" in text
    assert text.count("--tmpfs") == text.count("--size"), "every file system that can be written to has a size"
    assert "--bind " not in text and "--dev-bind" not in text


def test_an_interpreter_below_a_folder_that_bubblewrap_empties_is_seen_all_the_same() -> None:
    if not shutil.which("bwrap"):
        pytest.skip("needs bubblewrap")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="herd-python-") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{folder}/venv"], check=True)
        report = check("bubblewrap", describe(f"{folder}/venv/bin/python"))
    if not report.works and "No such file" not in report.reason:
        pytest.skip(f"bubblewrap does not work here: {report.reason}")
    assert report.works, report.reason


def test_the_watch_counts_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to("/usr")
    size, count = folder_size(str(tmp_path), stop_at=1 << 30)
    assert 90_000 < size < 200_000 and count == 3
    child = subprocess.Popen(["sleep", "30"])
    try:
        assert child.pid in descendants(os.getpid(), children_of_all())
    finally:
        child.kill()
        child.wait()
    assert private_bytes(os.getpid()) > 1 << 20 and private_bytes(child.pid) == 0
    assert threads_of_this_user() >= 1
