"""The command line, one file per command group. Nothing heavy is imported before a command runs: `herd --help` has no torch."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `herd` command."""
    try:
        from herd.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
