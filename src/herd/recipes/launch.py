"""How a recipe's processes are started: torchrun's command, a Slurm script, a Kubernetes JobSet. Knows text, starts nothing.

Every machine runs one torchrun, which starts a process a device; the first machine is where they meet. A run that a signal ends with its
state saved (exit code 75) or that hangs (76) is started again by the same script.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from herd.base.errors import ConfigError

PORT = 29_500


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A recipe with its overrides, on `nodes` machines of `per_node` processes.

    `restarts` is how often torchrun starts a failed process group again; `output` and `data` are folders that all machines see.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    world_size: int = 1
    per_node: int = 8
    restarts: int = 3
    output: str | None = None
    data: str | None = None
    device: str = "cuda"

    def __post_init__(self) -> None:
        for name in ("world_size", "per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint="8 devices a machine are usual")
        if self.restarts < 0:
            raise ConfigError(f"restarts is {self.restarts}, it must be 0 or more", hint="0 never starts again")
        if self.world_size > self.per_node and self.world_size % self.per_node:
            raise ConfigError(
                f"{self.world_size} processes do not fill machines of {self.per_node}",
                hint="set --per-node to a divisor of the mesh's size",
            )

    @property
    def num_nodes(self) -> int:
        """Machines."""
        return max(1, self.world_size // self.per_node)

    @property
    def arguments(self) -> list[str]:
        """Of `herd`, in each process."""
        options = [part for flag, value in (("--output", self.output), ("--data", self.data)) if value for part in (flag, value)]
        return ["train", self.recipe, *self.overrides, *options, "--device", self.device]

    def torchrun(self, *, head: str | None = None, python: Sequence[str] = ("torchrun",)) -> list[str]:
        """The command of one machine; `head` is the address of the first one, where there are several."""
        place = ["--standalone"]
        if self.num_nodes > 1:
            place = ["--nnodes", str(self.num_nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head}:{PORT}", "--rdzv-id", "herd"]
        each = ["--nproc-per-node", str(min(self.per_node, self.world_size)), "--max-restarts", str(self.restarts)]
        return [*python, *place, *each, "-m", "herd", *self.arguments]


def _quoted(words: Sequence[str], *, raw: Sequence[str] = ()) -> str:
    """For a shell; words in `raw` are its own variables."""
    return " ".join(word if word in raw else shlex.quote(word) for word in words)


def slurm_script(launch: Launch, *, time: str, name: str, partition: str | None = None, grace_s: int = 300) -> str:
    """A script for `sbatch`: asked to end before its time is up, the run saves its state and the job is queued again."""
    endpoint = f"$head:{PORT}"
    command = launch.torchrun(head="$head")
    gpus = [f"#SBATCH --gpus-per-node={min(launch.per_node, launch.world_size)}"] if launch.device == "cuda" else []
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name}",
        f"#SBATCH --nodes={launch.num_nodes}",
        "#SBATCH --ntasks-per-node=1",
        *gpus,
        f"#SBATCH --time={time}",
        *([f"#SBATCH --partition={partition}"] if partition else []),
        f"#SBATCH --signal=B:USR1@{grace_s}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}",
        "",
        f"srun --kill-on-bad-exit=1 {_quoted(command, raw=(endpoint,))} &",
        "step=$!",
        "# Before the time is up: every process ends its step and saves; then the job queues itself again.",
        "preempted=",
        "trap 'preempted=1; scancel --signal=USR1 \"$SLURM_JOB_ID.0\"' USR1",
        "wait $step",
        "code=$?",
        '[ -n "$preempted" ] && { wait $step; code=$?; scontrol requeue "$SLURM_JOB_ID"; }',
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def jobset_manifest(launch: Launch, *, image: str, name: str, volume_claim: str, mount: str = "/runs", grace_s: int = 300) -> str:
    """A Kubernetes JobSet, as JSON (which is YAML): one indexed job with a pod a machine, on one shared volume."""
    head = f"{name}-node-0-0.{name}"
    command = launch.torchrun(head=head)
    devices = {"nvidia.com/gpu": min(launch.per_node, launch.world_size)} if launch.device == "cuda" else {}
    container = {
        "name": "herd",
        "image": image,
        "command": command,
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "resources": {"limits": devices},
        "volumeMounts": [{"name": "runs", "mountPath": mount}, {"name": "memory", "mountPath": "/dev/shm"}],
        "ports": [{"containerPort": PORT}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": volume_claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    job = {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": launch.num_nodes,
        "parallelism": launch.num_nodes,
        "template": {"spec": pod},
    }
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": {"maxRestarts": launch.restarts},
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
        },
    }
    return json.dumps(manifest, indent=2) + "\n"
