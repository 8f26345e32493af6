"""Steps for the tests of the executors: small pure functions that workers import by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.base.errors import FormatError
from herd.data.executor.plan import Plan, Shard, Step, Task


def shout(task: Task) -> Mapping[str, Any]:
    """Upper case of the shard's files. Counts its runs outside its output; refuses a file that says so."""
    text = "".join(Path(file).read_text() for file in task.files)
    if task.config.get("runs"):
        with open(task.config["runs"], "a") as log:
            log.write(task.name + "\n")
    if "refuse" in text:
        raise FormatError("it says refuse", hint="say something else")
    if "hang" in text and not Path(task.config["runs"] + ".go").exists():
        Path(task.output / "half").write_text("half a")
        Path(task.config["runs"] + ".hangs").write_text(str(os.getpid()))
        time.sleep(120)
    if "die" in text and not Path(task.config["runs"] + ".go").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    (task.output / "text").write_text(text.upper() * task.config.get("times", 1))
    return {"letters": len(text)}


def join(task: Task) -> Mapping[str, Any]:
    """All of `shout`, one after another."""
    parts = [(folder / "text").read_text() for folder in task.inputs["shout"]]
    (task.output / "joined").write_text("|".join(parts))
    return {"parts": len(parts)}


def plan_of(folder: Path, texts: list[str], **config: Any) -> Plan:
    """A plan of two steps over as many files as there are texts, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.in" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
    shards = tuple(Shard(name=f"{number:05d}", files=(str(file),)) for number, file in enumerate(files))
    module = __name__
    return Plan(
        steps=(
            Step(name="shout", function=f"{module}:shout", config=config, shards=shards),
            Step(name="join", function=f"{module}:join", shards=(Shard(name="all", after=("shout/*",)),)),
        )
    )


if __name__ == "__main__":
    import sys

    from herd.data.executor.local import run_local

    sys.path.insert(0, str(Path(__file__).parent))
    import executor_jobs  # pyright: ignore[reportMissingImports]

    inputs, output, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    texts = [path.read_text() for path in sorted(inputs.glob("*.in"))]
    run_local(executor_jobs.plan_of(inputs, texts, runs=str(inputs / "runs")), output, workers=workers)
