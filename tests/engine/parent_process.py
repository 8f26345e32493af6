"""A program with an engine over three processes: prints the pids of the others, then answers without end. Killed by the test."""

from __future__ import annotations

import sys
from pathlib import Path

from parallel_helpers import parallel_engine  # pyright: ignore[reportMissingImports]

from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest


def main() -> None:
    """Run."""
    engine = parallel_engine(Path(sys.argv[1]), pp=3)
    print(*engine.workers.pids.values(), flush=True)
    while True:
        list(engine.submit(TokenRequest(prompt=(1, 2, 3), params=TokenParams(max_tokens=200))))


if __name__ == "__main__":
    main()
