"""What starts a recipe elsewhere: torchrun's command, a Slurm script that bash can read, a manifest that is whole."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.cli.app import run
from herd.recipes.launch import Launch, jobset_manifest, slurm_script

BIG = Launch(recipe="llama-405b", overrides=("parallel.tp=8", "pretrain.lr=1e-4"), world_size=16_384, output="/runs/my run", data="/data")


def test_one_machine_meets_itself() -> None:
    command = Launch(recipe="tiny", world_size=2, device="cpu").torchrun()
    expected = "torchrun --standalone --nproc-per-node 2 --max-restarts 3 -m herd train tiny --device cpu"
    assert shlex.join(command) == expected


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1), max_size=3))
def test_a_slurm_script_says_to_bash_what_it_was_told(overrides: list[str]) -> None:
    launch = Launch(recipe="llama-8b", overrides=tuple(overrides), world_size=16, output="/a b")
    text = slurm_script(launch, time="1:00:00", name="x")
    line = next(line for line in text.splitlines() if line.startswith("srun"))
    words = shlex.split(line)
    assert words[words.index("llama-8b") + 1 : words.index("--output")] == overrides
    assert words[words.index("--output") + 1] == "/a b"


def test_a_slurm_script_is_bash_and_asks_for_the_machines() -> None:
    text = slurm_script(BIG, time="24:00:00", name="herd", partition="long")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "--nodes=2048" in text
    assert "--gpus-per-node=8" in text
    assert "--signal=B:USR1@300" in text
    assert "--partition=long" in text
    assert "--rdzv-endpoint $head:29500" in text


def test_a_jobset_has_a_pod_a_machine_and_one_place_to_meet() -> None:
    manifest = json.loads(jobset_manifest(BIG, image="herd:1", name="herd-405b", volume_claim="disk"))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 2048
    pod = job["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[command.index("--rdzv-endpoint") + 1] == "herd-405b-node-0-0.herd-405b:29500"
    assert command[-6:] == ["--output", "/runs/my run", "--data", "/data", "--device", "cuda"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"


def test_processes_that_do_not_fill_machines_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 processes do not fill machines of 8"):
        Launch(recipe="tiny", world_size=12)
    with pytest.raises(ConfigError, match="restarts is -1"):
        Launch(recipe="tiny", restarts=-1)


def test_the_command_line_prints_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "llama-8b", "parallel.dp_shard=8", "--dry-run"]) == 0
    assert "--nproc-per-node 8" in capsys.readouterr().out
    assert run(["launch", "llama-8b", "parallel.dp_shard=16", "--kind", "jobset", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 2
    assert run(["launch", "llama-8b", "parallel.dp_shard=16"]) == 2
    assert run(["launch", "llama-8b", "--kind", "ray"]) == 2
    assert run(["launch", "lora"]) == 2
    assert run(["launch", "llama-8b", "parallel.tp=3"]) != 0


def test_a_rank_is_shown_beside_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = ["parallel.pp=2", "parallel.dp_shard=2", "pretrain.micro_batch_size=2"]
    assert run(["train", "tiny", *mesh, "--simulate", "all", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["rank"] for report in reports] == [0, 1]
    assert all(report["fits"] for report in reports)
    assert run(["train", "tiny", *mesh, "--simulate", "3"]) == 0
    out = capsys.readouterr().out
    assert "traced" in out
    assert "pipeline bubble over work" in out
    assert run(["train", "tiny", *mesh, "--simulate", "9"]) != 0
    assert run(["train", "tiny", "--simulate", "0", "--stage", "nothing"]) != 0
