"""Whatever ends a command early becomes an exit code and a message here, and never a traceback unless --debug asks for it.

Exit codes: 0 done, 1 failed, 2 usage, 3 missing model or file, 4 does not fit, 5 a gate failed, 75 a training run was
asked to end and is saved, 76 a training run hung, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import traceback
from typing import Any

import typer

from herd.base.errors import DoesNotFitError, HerdError, UsageError
from herd.base.paths import home
from herd.cli.output import line, note
from herd.cli.welcome import welcome

# Typer keeps the parser's exceptions to itself (its own copy of click, or click, by version); their base is found through a public one.
ParserError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

INTERRUPTED = 130


def exit_code(error: BaseException, *, debug: bool = False) -> int:
    """Tell what went wrong on stderr; returns the exit code. `debug` shows the trace as well."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        note()
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has enough; what is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if isinstance(error, ParserError):
        return _usage(error)
    if debug:
        note("".join(traceback.format_exception(error)))
    known = known_error(error)
    if known is None:
        report_crash(error)
        return 1
    report_error(known)
    return known.exit_code


def known_error(error: BaseException) -> HerdError | None:
    """An error that the user or the machine caused, in our words; None for what must be a bug of herd."""
    if isinstance(error, HerdError):
        return error
    if _out_of_memory(error):
        return DoesNotFitError(
            f"out of memory: {_first_line(error) or 'an allocation failed'}",
            hint="take a smaller model, --dtype bfloat16 or fewer --max-tokens; `herd doctor` names what fits",
        )
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UsageError("a path holds a null character", hint="check the names in settings, configs and arguments")
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename is not None else ""
        kind = DoesNotFitError if error.errno in (errno.ENOSPC, errno.EDQUOT) else HerdError
        return kind(f"{error.strerror}{place}", hint="check the path, its permissions and the free space of its disk")
    return None


def _out_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's own error for GPUs, and the RuntimeError of its CPU allocator."""
    by_name = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or by_name or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _usage(error: Any) -> int:
    """The parser's refusal in the form of every other error; a group without a command shows its help; `herd` alone offers what to do."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if context is None or context.parent is None:
            line(welcome())
            return 0
        error.show()
        return UsageError.exit_code
    text, _, suggestion = error.format_message().partition(" Did you mean ")
    text = text.partition(" (Possible options:")[0].rstrip(".")
    near = list(getattr(error, "possibilities", None) or ()) or [suggestion.rstrip("?")]
    command = context.command_path if context is not None else "herd"
    meant = f"did you mean {near[0]}? " if near[0] else ""
    report_error(UsageError(text[:1].lower() + text[1:], hint=f"{meant}`{command} --help` lists what it takes"))
    return UsageError.exit_code


def report_error(error: HerdError) -> None:
    """`error: what, with values`, a blank line, `hint: what to do` on stderr."""
    note(f"error: {error.message}")
    if error.hint:
        note()
        note(f"hint: {error.hint}")


def report_crash(error: BaseException) -> None:
    """A bug of ours: one line and where the whole trace is."""
    path = home() / "last-error.log"
    trace = "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(trace, encoding="utf-8", errors="backslashreplace")
        place = f"the trace is in {path}"
    except OSError:
        note(trace)
        place = "the trace is above"
    note(f"error: herd failed: {type(error).__name__}: {_first_line(error)}")
    note()
    note(f"hint: this is a bug in herd; {place}; run again with --debug to see it here")
