"""One task of an array: every M-th shard of one step. What a Slurm task runs, and what Ray runs with one shard a task."""

from __future__ import annotations

from pathlib import Path

from herd.base.errors import ConfigError, HerdError, UsageError, from_dict
from herd.base.progress import track_steps
from herd.data.executor.local import claimed, clear_leftovers
from herd.data.executor.plan import Plan
from herd.data.executor.shard_run import is_done, run_shard


def run_task(plan: Plan, name: str, folder: Path, *, task: int, tasks: int) -> int:
    """Carry out shards `task`, `task` + `tasks`, ... of a step; returns how many were to do. Raises UsageError for a task out of range."""
    if tasks < 1 or not 0 <= task < tasks:
        raise UsageError(f"task {task} of {tasks} is none", hint="tasks are numbered from 0 to --tasks less one")
    numbers = range(task, len(plan.step(name).shards), tasks)
    return sum(run_shard(plan, name, number, folder) for number in numbers)


def run_ray(plan: Plan, folder: Path, *, address: str | None = None, workers: int | None = None) -> int:
    """Carry out a plan on a Ray cluster (`address`), or on one that is started here with `workers` processes; returns how many shards.

    Every machine has to see `folder` under the same path. Raises ConfigError where Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("Ray is not installed", hint="pip install 'llama-herd[ray]'") from error
    ray.init(address=address, num_cpus=None if address else workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        remote = ray.remote(_attempt_remote)
        plan_reference = ray.put(plan)
        count = 0
        with claimed(folder):
            for step in plan.steps:
                clear_leftovers(step, folder)
                pending = [number for number in range(len(step.shards)) if not is_done(plan, step, number, folder)]
                waiting = [remote.remote(plan_reference, step.name, number, str(folder)) for number in pending]
                count += len(pending)
                with track_steps(step.name, total=len(step.shards), done=len(step.shards) - len(pending)) as advance:
                    while waiting:
                        ended, waiting = ray.wait(waiting)
                        for failure in ray.get(ended):
                            if failure is not None:
                                raise from_dict(failure)
                        advance(len(step.shards) - len(waiting), "")
        return count
    finally:
        ray.shutdown()


def _attempt_remote(plan: Plan, name: str, number: int, folder: str) -> dict[str, str | None] | None:
    try:
        run_shard(plan, name, number, Path(folder))
    except HerdError as error:
        return error.to_dict()
    return None
