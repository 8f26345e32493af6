"""What one process of a mesh test does: reads cases from a file, runs each on the mesh, writes what rank 0 found.

Run as `python mesh_worker.py RANK WORLD FOLDER`; the processes of one group run many cases, since starting them is what takes time.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any


def run_group(rank: int, world: int, folder: Path) -> None:
    import torch.distributed as dist
    from mesh_cases import CASES

    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=90))
    found: dict[str, Any] = {}
    for case in json.loads((folder / "cases.json").read_text()):
        found[case["name"]] = CASES[case["run"]](folder=folder, **case["arguments"])
    dist.barrier()
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    try:
        run_group(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    except BaseException:
        traceback.print_exc()
        # Peers wait in a collective: leave at once, so that the launcher ends them.
        sys.stderr.flush()
        import os

        os._exit(1)
