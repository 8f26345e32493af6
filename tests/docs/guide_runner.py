"""A reader who types the commands of a guide, one after another, in an empty folder; cria stands where the guide has a large model.

Understands what guides use of a shell: comments, a line that goes on after a backslash, `&&`, `< FILE`, `> FILE`, `>> FILE`, `export`. A
`herd` runs in this process; anything else is given to bash.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from herd.cli.app import run

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = DOCS / "guides"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(guide: str) -> list[tuple[str, str]]:
    """Every command of a guide's console blocks, with what the guide shows of its output."""
    found: list[tuple[str, str]] = []
    for body in BLOCK.findall((GUIDES / guide).read_text(encoding="utf-8")):
        for line in body.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((" ".join(re.sub(r"\s{2,}# .*$", "", line[2:]).split()), ""))
            elif line:
                found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


@dataclass
class Guide:
    """A guide and its reader.

    Attributes:
        swaps: what stands in a command, and what the reader types in its place.
        typed: what the reader types into a command, by its beginning; an empty line otherwise.
        codes: exit codes other than 0 that the guide tells of, by a command's beginning.
        not_run: commands that are not run here, each with the reason.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    swaps: Mapping[str, str] = field(default_factory=dict[str, str])
    typed: Mapping[str, str] = field(default_factory=dict[str, str])
    codes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    not_run: Mapping[str, str] = field(default_factory=dict[str, str])

    def follow(self, guide: str) -> dict[str, str]:
        """Run all of its commands; returns what each printed on stdout."""
        printed: dict[str, str] = {}
        lines = commands(guide)
        assert lines, f"{guide} has no commands"
        unused = set(self.not_run) - {line for line, _ in lines}
        assert not unused, f"not in {guide}: {unused}"
        for line, shown in lines:
            if line not in self.not_run:
                printed[line] = self.enter(line)
                assert not shown or printed[line].rstrip() == shown.rstrip(), line
        return printed

    def enter(self, line: str) -> str:
        """Run one line; returns what it printed on stdout."""
        typed = line
        for old, new in self.swaps.items():
            typed = typed.replace(old, new)
        wanted = next((codes for start, codes in self.codes.items() if line.startswith(start)), (0,))
        out = ""
        for part in typed.split(" && "):
            code, text, err = self._part(part, next((said for start, said in self.typed.items() if line.startswith(start)), "\n"))
            assert code in wanted, f"{part!r} ended with {code}:\n{err}"
            assert "Traceback" not in err, err
            out += text
        return out

    def _part(self, part: str, typed: str) -> tuple[int, str, str]:
        words = shlex.split(part)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.monkeypatch.setenv(name, value)
            return 0, "", ""
        if words[0] != "herd":
            done = subprocess.run(["bash", "-c", part], cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)
            return done.returncode, done.stdout, done.stderr
        words, source, target, mode = _redirected(words)
        data = (self.folder / source).read_text(encoding="utf-8") if source else typed
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode()), encoding="utf-8"))
            self.capsys.readouterr()
            code = run(words[1:])
        out, err = self.capsys.readouterr()
        if target:
            with (self.folder / target).open(mode, encoding="utf-8") as file:
                file.write(out)
            out = ""
        return code, out, err


def _redirected(words: list[str]) -> tuple[list[str], str, str, str]:
    """The words without redirections; what is read, what is written, and how."""
    kept: list[str] = []
    source = target = ""
    mode = "w"
    rest = iter(words)
    for word in rest:
        if word == "<":
            source = next(rest)
        elif word in (">", ">>"):
            target, mode = next(rest), "a" if word == ">>" else "w"
        else:
            kept.append(word)
    return kept, source, target, mode


def copy_model(source: Path, target: Path) -> Path:
    """A model under another name. The large file is linked, not copied, where that can be."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return target
