"""The one exception tree of herd.

    HerdError                  code "error"                exit 1
    |- UsageError              code "usage"                exit 2   a flag, an argument, a value on the command line
    |- ConfigError             code "config"               exit 1   a configuration that cannot be
    |- NotFoundError           code "not_found"            exit 3   a model, a file, a recipe that is not there
    |- DoesNotFitError         code "does_not_fit"         exit 4   memory, disk or context that is not enough
    |  `- ContextOverflowError code "context_overflow"     exit 4   a prompt over the model's context
    |- GateError               code "gate"                 exit 5   a check that was asked for and failed
    |- CheckpointError         code "checkpoint"           exit 1   a weights file that is damaged, hostile or of another shape
    |- TokenizerError          code "tokenizer"            exit 1   a tokenizer file, a token id, a special token
    |- FormatError             code "format"               exit 1   messages, tool calls, templates, data records
    `- DownloadError           code "download"             exit 1   the hub refused, or the line broke

A message names the value and the limit. `hint` says what to do: a command, a setting or a number to change.
The command line prints `error: MESSAGE`, a blank line and `hint: HINT`; servers send `code`, message and hint, never a traceback.
`assert` is for herd's own invariants; whatever a user can cause is one of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class HerdError(Exception):
    """Base of every error a user can cause. `code` is stable; `exit_code` is what the command line returns."""

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, str | None]:
        """The error as JSON sends it: code, message, hint."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(HerdError):
    """A command line, a flag or an argument that means nothing."""

    code = "usage"
    exit_code = 2


class ConfigError(HerdError):
    """A configuration that contradicts itself or holds an impossible value."""

    code = "config"


class NotFoundError(HerdError):
    """A model, file, alias or recipe that does not exist."""

    code = "not_found"
    exit_code = 3


class DoesNotFitError(HerdError):
    """Memory, disk or another limit that the request would exceed."""

    code = "does_not_fit"
    exit_code = 4


class ContextOverflowError(DoesNotFitError):
    """More tokens than the model's context holds. Nothing is ever truncated in silence."""

    code = "context_overflow"


class GateError(HerdError):
    """A check that the user asked for (verify, a quality gate) and that failed."""

    code = "gate"
    exit_code = 5


class CheckpointError(HerdError):
    """A weights file that is truncated, lies about its sizes, holds code, or does not match its config."""

    code = "checkpoint"


class TokenizerError(HerdError):
    """A tokenizer file that is malformed, an id out of range, or text that spells a refused special token."""

    code = "tokenizer"


class FormatError(HerdError):
    """A message, tool definition, template or data record of the wrong shape."""

    code = "format"


class DownloadError(HerdError):
    """A download that was refused or broke off; what had arrived is kept for the next try."""

    code = "download"


def _kinds(kind: type[HerdError]) -> Iterable[type[HerdError]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from _kinds(sub)


def from_dict(data: Mapping[str, Any]) -> HerdError:
    """The error that `to_dict` wrote, of the class that has its code; one of a class that is not loaded here is a plain HerdError."""
    code = data.get("code")
    kind = next((kind for kind in _kinds(HerdError) if kind.code == code), HerdError)
    error = kind(str(data.get("message")), hint=data.get("hint"))
    if error.code != code:
        error.code = str(code)
    return error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is close."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """A hint naming the nearest known name, else `otherwise`."""
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close is not None else otherwise
