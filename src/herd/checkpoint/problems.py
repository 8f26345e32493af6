"""What can be wrong with a checkpoint, as values: readers raise the first problem, `verify` lists every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from herd.base.errors import CheckpointError, did_you_mean

ProblemKind = Literal["config", "damaged", "missing", "unexpected", "shape", "dtype", "hash", "values"]

_HINTS: dict[ProblemKind, str] = {
    "config": "compare config.json or params.json with the one that was published",
    "damaged": "download the file again, or run `herd verify` for the whole list",
    "missing": "the checkpoint is incomplete, or its config belongs to another model; run `herd verify` for the whole list",
    "unexpected": "the config belongs to another model; run `herd verify` for the whole list",
    "shape": "the config belongs to another model; run `herd verify` for the whole list",
    "dtype": "herd reads F32, F16 and BF16 weights here; store the model in one of these",
    "hash": "the file differs from the one that was published; download it again",
    "values": "the file is damaged or its training diverged; use an earlier checkpoint",
}

_MAX_COMPARED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: its kind, the tensor or file, what it is in words, and what to do (None: the kind's usual advice)."""

    kind: ProblemKind
    name: str
    message: str
    hint: str | None = None

    @property
    def advice(self) -> str:
        """What to do about it."""
        return self.hint or _HINTS[self.kind]

    def to_error(self, others: int = 0) -> CheckpointError:
        """The problem as an error; `others` counts the problems that are not told."""
        more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
        return CheckpointError(self.message + more, hint=self.advice)


def raise_first(problems: Sequence[Problem]) -> None:
    """Raise CheckpointError for the first problem, if there is any."""
    if problems:
        raise problems[0].to_error(len(problems) - 1)


def compare_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> list[Problem]:
    """Missing, unexpected and mis-shaped tensors of the file or folder `where`, with the nearest name on the other side."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems: list[Problem] = []
    for rank, name in enumerate(missing):
        message = f"{where} has no tensor {name}, which its config asks for"
        problems.append(Problem(kind="missing", name=name, message=message, hint=_nearest_hint(rank, name, unexpected)))
    for rank, name in enumerate(unexpected):
        message = f"{where} has a tensor {name} that its config has no place for"
        problems.append(Problem(kind="unexpected", name=name, message=message, hint=_nearest_hint(rank, name, missing or list(expected))))
    for name, shape in expected.items():
        if name in found and shape != found[name]:
            message = f"{name} in {where} has shape {list(found[name])}, its config says {list(shape)}"
            problems.append(Problem(kind="shape", name=name, message=message))
    return problems


def _nearest_hint(rank: int, name: str, others: list[str]) -> str | None:
    """Comparing every name with every other takes minutes for a large model, and nobody reads more than a few."""
    return did_you_mean(name, others) if rank < _MAX_COMPARED else None
