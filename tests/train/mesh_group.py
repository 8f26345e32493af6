"""Starts groups of processes for mesh tests: no ports (a file is the store), one deadline, and no orphans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
WORKER = Path(__file__).with_name("mesh_worker.py")


def run_cases(folder: Path, world: int, cases: list[dict[str, Any]], *, timeout_s: float = 170) -> list[dict[str, Any]]:
    """Run cases in `world` processes; what each rank found, by case. A failure of one ends all, and is shown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    logs = [(folder / f"rank-{rank}.log").open("w") for rank in range(world)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    deadline, failed = time.monotonic() + timeout_s, None
    try:
        while failed is None and any(process.poll() is None for process in processes):
            failed = next((rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)), None)
            if time.monotonic() > deadline:
                failed = next(rank for rank, process in enumerate(processes) if process.poll() is None)
            time.sleep(0.05)
        failed = next((rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)), failed)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    if failed is not None:
        text = "\n".join((folder / f"rank-{rank}.log").read_text()[-6000:] for rank in range(world))
        raise AssertionError(f"rank {failed} of {world} failed:\n{text}")
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(world)]
