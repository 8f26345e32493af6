"""The command line, one file per command group. Nothing heavy is imported before a command runs: `herd --help` has no torch."""

from __future__ import annotations

import os
import sys


def _open_what_is_closed() -> None:
    """Python has None for a standard stream that was closed (`2>&-`, some daemons); what goes there is then nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open to the end of the process


def main() -> None:
    """Entry point of the `herd` command."""
    _open_what_is_closed()
    try:
        from herd.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
