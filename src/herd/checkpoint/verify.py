"""Check a whole checkpoint and list everything that is wrong: structure, names, shapes, published hashes, and values that are not numbers.

Reads every byte once for the hashes and every tensor once for its values; memory of one tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herd.base.errors import CheckpointError, ConfigError, HerdError
from herd.checkpoint.hf import HfSource
from herd.checkpoint.hf_config import CONFIG_FILE
from herd.checkpoint.meta import MetaSource
from herd.checkpoint.open import PARAMS_FILE, open_checkpoint
from herd.checkpoint.problems import Problem
from herd.checkpoint.source import Format, TensorSource

__all__ = ["Problem", "VerifyReport", "verify"]

_LISTS = {"checklist.chk": "md5", "SHA256SUMS": "sha256"}
_LENGTHS = {32: "md5", 64: "sha256"}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What a checkpoint holds and what is wrong with it.

    `dtypes` counts tensors by what they are stored as, `sha256` has every file, `non_finite` counts values that are NaN or infinite.
    """

    path: Path
    format: Format
    num_tensors: int
    num_parameters: int
    size_bytes: int
    dtypes: dict[str, int]
    problems: tuple[Problem, ...]
    sha256: dict[str, str]
    non_finite: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        problems = [
            {"kind": problem.kind, "name": problem.name, "message": problem.message, "hint": problem.advice} for problem in self.problems
        ]
        return {
            "path": str(self.path),
            "format": self.format,
            "ok": self.ok,
            "num_tensors": self.num_tensors,
            "num_parameters": self.num_parameters,
            "size_bytes": self.size_bytes,
            "dtypes": self.dtypes,
            "problems": problems,
            "sha256": self.sha256,
            "non_finite": self.non_finite,
        }


def verify(path: Path | str) -> VerifyReport:
    """Check the checkpoint at `path`; everything that is wrong is in the report.

    Raises NotFoundError or UsageError only where there is no checkpoint to look at.
    """
    path = Path(path)
    problems: list[Problem] = []
    try:
        source = open_checkpoint(path, strict=False)
    except (CheckpointError, ConfigError) as error:
        problems.append(_as_problem(error, path))
        return _report(path, _format_at(path), None, problems, 0)
    with source:
        if isinstance(source, HfSource | MetaSource):
            problems += source.problems
        non_finite = 0
        for name in source.tensors:
            non_finite += _check_values(source, name, problems)
        return _report(path, source.format, source, problems, non_finite)


def _as_problem(error: HerdError, path: Path) -> Problem:
    kind = "config" if isinstance(error, ConfigError) else "damaged"
    return Problem(kind=kind, name=path.name, message=error.message, hint=error.hint)


def _format_at(path: Path) -> Format:
    if (path / CONFIG_FILE).is_file():
        return "hf"
    return "meta" if any((folder / PARAMS_FILE).is_file() for folder in (path, path / "original")) else "gguf"


def _check_values(source: TensorSource, name: str, problems: list[Problem]) -> int:
    """The number of values of one tensor that are not finite, told in `problems`."""
    try:
        tensor = source.read(name)
    except CheckpointError as error:
        problems.append(Problem(kind="damaged", name=name, message=error.message, hint=error.hint))
        return 0
    if not tensor.is_floating_point():
        return 0
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        message = f"{name} holds {bad:,} value{'s' if bad > 1 else ''} of {tensor.numel():,} that are NaN or infinite"
        problems.append(Problem(kind="values", name=name, message=message))
    return bad


def _report(path: Path, format: Format, source: TensorSource | None, problems: list[Problem], non_finite: int) -> VerifyReport:
    root = path if source is None else source.path
    files = _files(root)
    sha256 = {name: _digest(file, "sha256") for name, file in files.items()}
    problems = [*problems, *_check_hashes(root, files, sha256)]
    tensors = {} if source is None else source.tensors
    return VerifyReport(
        path=path,
        format=format,
        num_tensors=len(tensors),
        num_parameters=sum(math.prod(info.shape) for info in tensors.values()),
        size_bytes=sum(file.stat().st_size for file in files.values()),
        dtypes=dict(Counter(info.stored for info in tensors.values())),
        problems=tuple(problems),
        sha256=sha256,
        non_finite=non_finite,
    )


def _files(root: Path) -> dict[str, Path]:
    """The checkpoint's files by name: those of the folder itself, hidden ones left out."""
    found = [root] if root.is_file() else sorted(root.iterdir())
    return {file.name: file for file in found if file.is_file() and not file.name.startswith(".")}


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _check_hashes(root: Path, files: dict[str, Path], sha256: dict[str, str]) -> Iterator[Problem]:
    """Compare every file with the lists of hashes that lie in the folder."""
    for list_name in _LISTS:
        if list_name not in files or root.is_file():
            continue
        for number, line in enumerate(files[list_name].read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if line.strip():
                yield from _check_line(f"{list_name}, line {number}", line, files, sha256)


def _check_line(where: str, line: str, files: dict[str, Path], sha256: dict[str, str]) -> Iterator[Problem]:
    expected, _, name = line.strip().partition(" ")
    name = name.strip().removeprefix("*").removeprefix("./")
    algorithm = _LENGTHS.get(len(expected))
    if algorithm is None or not name:
        yield Problem(kind="hash", name=where, message=f"{where} is not a hash and a file name", hint="get the list of hashes again")
    elif name not in files:
        yield Problem(kind="missing", name=name, message=f"{name} is missing, {where} names it", hint="download the missing file")
    elif (found := sha256[name] if algorithm == "sha256" else _digest(files[name], algorithm)) != expected.lower():
        yield Problem(kind="hash", name=name, message=f"{name} has the {algorithm} {found}, {where} says {expected}")
