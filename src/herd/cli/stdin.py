"""Text from standard input, for commands that take it there: UTF-8 or a refusal, and no waiting at a terminal."""

from __future__ import annotations

import sys

from herd.base.errors import FormatError, UsageError

_NOT_UTF8 = "convert it: iconv -t UTF-8"


def argument_or_stdin(argument: str | None, what: str, *, example: str, chomp: bool = False) -> str:
    """The argument; stdin for `-`, or for none when something is piped in.

    Args:
        argument: what the command line gave.
        what: its name, for messages.
        example: a command line that gives it, for the hint.
        chomp: the line end that closes what is piped in, as `echo` writes it, is not part of it.

    Raises:
        UsageError: no argument, and stdin is a terminal.
        FormatError: bytes that are not UTF-8.
    """
    if argument is not None and argument != "-":
        return utf8(argument, what)
    if argument is None and sys.stdin.isatty():
        raise UsageError(f"no {what} was given", hint=f"{example}, or pipe it in")
    text = read_stdin(what)
    return text.removesuffix("\n").removesuffix("\r") if chomp else text


def read_stdin(what: str) -> str:
    """All of stdin. Raises FormatError if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"the {what} on stdin is not UTF-8: {error.reason} at byte {error.start}", hint=_NOT_UTF8) from error


def utf8(argument: str, what: str) -> str:
    """An argument, unchanged. Raises FormatError if it is not UTF-8: Python carries such bytes of the command line as lone surrogates."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"the {what} is not UTF-8, from character {error.start} on", hint=_NOT_UTF8) from error
    return argument
