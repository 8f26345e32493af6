"""Executors: a shard is done once, whole or not at all; the same bytes from any number of workers and after kill -9 anywhere."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_jobs import plan_of  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, FormatError, HerdError, NotFoundError, UsageError
from herd.data.executor.local import run_local
from herd.data.executor.plan import Plan, Shard, Step, read_plan, write_plan
from herd.data.executor.shard_run import file_identity, read_done, reports
from herd.data.executor.slurm import SlurmOptions, render, submit, write_scripts
from herd.data.executor.tasks import run_ray, run_task

TEXTS = ["the herd", "grazes", "on the", "mountain"]
HERE = Path(__file__).parent


def tree(folder: Path) -> dict[str, bytes]:
    """Every finished file of a run with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def runs_of(folder: Path) -> list[str]:
    path = folder / "runs"
    return sorted(path.read_text().split()) if path.exists() else []


def test_a_plan_is_carried_out_and_reported(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", TEXTS)
    assert run_local(plan, tmp_path / "out") == 5
    assert (tmp_path / "out" / "join" / "all" / "joined").read_text() == "THE HERD|GRAZES|ON THE|MOUNTAIN"
    assert [report["letters"] for report in reports(plan, "shout", tmp_path / "out")] == [8, 6, 6, 8]


def test_what_is_done_is_not_done_again_unless_config_or_input_differ(tmp_path: Path) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    runs = str(inputs / "runs")
    plan = plan_of(inputs, TEXTS, runs=runs)
    assert run_local(plan, output) == 5
    assert run_local(plan, output) == 0
    (inputs / "2.in").write_text("beside the")
    assert run_local(plan, output) == 2, "the shard that reads the file, and the step that reads the shard"
    assert runs_of(inputs) == ["00000", "00001", "00002", "00002", "00003"]
    assert run_local(plan_of(inputs, [*TEXTS[:2], "beside the", TEXTS[3]], runs=runs, times=2), output) == 5
    assert (output / "join" / "all" / "joined").read_text().startswith("THE HERDTHE HERD|")


def test_a_shard_with_a_missing_or_shortened_file_is_done_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", TEXTS)
    output = tmp_path / "out"
    run_local(plan, output)
    whole = tree(output)
    (output / "shout" / "00001" / "text").write_text("GRA")
    (output / "shout" / "00002" / "text").unlink()
    (output / "shout" / "00003" / "done.json").write_text("{")
    assert run_local(plan, output) == 3
    assert tree(output) == whole


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", TEXTS)
    for workers in (1, 2, 4):
        run_local(plan, tmp_path / str(workers), workers=workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "4")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_halfway_redoes_only_what_is_missing(tmp_path: Path, workers: int) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    texts = ["the herd", "grazes", "hang on the", "mountain"]
    plan = plan_of(inputs, texts, runs=str(inputs / "runs"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    child = subprocess.Popen([sys.executable, str(HERE / "executor_jobs.py"), str(inputs), str(output), str(workers)], env=environment)
    started, done = time.monotonic(), 2 if workers == 1 else 3
    hangs = inputs / "runs.hangs"
    while not (hangs.exists() and hangs.read_text() and len(list(output.glob("shout/0*/done.json"))) == done):
        assert child.poll() is None and time.monotonic() - started < 60
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    worker = int(hangs.read_text())
    while workers > 1 and Path(f"/proc/{worker}").exists() and b"Z" not in Path(f"/proc/{worker}/stat").read_bytes().split()[2:3]:
        assert time.monotonic() - started < 60, "a worker ends with the run that started it"
        time.sleep(0.02)
    assert list(output.glob("shout/.00002.partial-*"))
    (inputs / "runs.go").touch()
    before = len(runs_of(inputs))
    assert run_local(plan, output) == 5 - done
    assert len(runs_of(inputs)) - before == 4 - done
    assert not list(output.glob("shout/.*")), "what was half-written is gone"
    run_local(plan, tmp_path / "straight")
    assert tree(output) == tree(tmp_path / "straight")


def test_a_worker_that_is_killed_is_told_and_its_shard_done_the_next_time(tmp_path: Path) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    plan = plan_of(inputs, ["a", "die", "b"], runs=str(inputs / "runs"))
    with pytest.raises(HerdError, match="a worker was killed") as caught:
        run_local(plan, output, workers=2)
    assert "fewer --workers" in str(caught.value.hint)
    (inputs / "runs.go").touch()
    run_local(plan, output)
    assert (output / "join" / "all" / "joined").read_text() == "A|DIE|B"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_step_and_shard_and_spares_what_is_done(tmp_path: Path, workers: int) -> None:
    plan = plan_of(tmp_path / "in", ["a", "refuse", "b"])
    with pytest.raises(FormatError, match="step shout, shard 00001: it says refuse") as caught:
        run_local(plan, tmp_path / "out", workers=workers)
    assert caught.value.hint == "say something else"
    assert read_done(tmp_path / "out" / "shout" / "00000") is not None
    assert not (tmp_path / "out" / "shout" / "00001").exists()


def test_shards_that_the_plan_no_longer_has_are_removed(tmp_path: Path) -> None:
    run_local(plan_of(tmp_path / "in", TEXTS), tmp_path / "out")
    run_local(plan_of(tmp_path / "in", TEXTS[:2]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "shout").iterdir()) == ["00000", "00001"]
    assert (tmp_path / "out" / "join" / "all" / "joined").read_text() == "THE HERD|GRAZES"


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    from herd.data.executor.local import claimed

    with claimed(tmp_path / "out"), pytest.raises(UsageError, match="another run is at work"):
        run_local(plan_of(tmp_path / "in", TEXTS), tmp_path / "out")


@pytest.mark.parametrize("workers", [0, -1, 5000])
def test_a_number_of_workers_out_of_range_is_refused(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers is {workers}"):
        run_local(plan_of(tmp_path / "in", TEXTS), tmp_path / "out", workers=workers)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", TEXTS)
    (tmp_path / "in" / "3.in").unlink()
    with pytest.raises(NotFoundError, match=r"3\.in"):
        run_local(plan, tmp_path / "out")


def test_a_source_changed_in_size_time_or_content_is_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("abc")
    first = file_identity(str(path))
    assert file_identity(str(path)) == first
    path.write_text("xyz")
    os.utime(path, (0, 0))
    second = file_identity(str(path))
    os.utime(path, (1, 1))
    assert len({str(first), str(second), str(file_identity(str(path)))}) == 3


# Arrays


def test_tasks_take_every_mth_shard_and_need_the_steps_before(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", TEXTS)
    output = tmp_path / "out"
    assert run_task(plan, "shout", output, task=1, tasks=3) == 1
    with pytest.raises(NotFoundError, match="join needs shout/00000, which is not done"):
        run_task(plan, "join", output, task=0, tasks=1)
    assert run_task(plan, "shout", output, task=0, tasks=3) == 2
    assert run_task(plan, "shout", output, task=2, tasks=3) == 1
    assert run_task(plan, "join", output, task=0, tasks=1) == 1
    run_local(plan, tmp_path / "local")
    assert tree(output) == tree(tmp_path / "local")
    with pytest.raises(UsageError, match="task 3 of 3"):
        run_task(plan, "shout", output, task=3, tasks=3)


def test_a_script_asks_for_what_it_is_told_and_quotes_its_folder(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", TEXTS)
    options = SlurmOptions(partition="cpu", memory="2G", max_tasks=3, at_once=2, setup="module load python")
    scripts = render(plan, Path("/a b/run"), options)
    assert list(scripts) == ["shout", "join"]
    lines = scripts["shout"].splitlines()
    assert {"#SBATCH --array=0-2%2", "#SBATCH --partition=cpu", "#SBATCH --mem=2G", "#SBATCH --output='/a b/run/logs/shout-%a.log'"} <= set(
        lines
    )
    assert "--tasks 3" in lines[-1] and "'/a b/run/plan.json'" in lines[-1] and "module load python" in lines
    for bad in ({"partition": "a b"}, {"time": ""}, {"cpus": 0}, {"max_tasks": 0}):
        with pytest.raises(ConfigError):
            SlurmOptions(**bad)  # pyright: ignore[reportArgumentType]


def fake_sbatch(folder: Path, body: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / "sbatch"
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_scripts_are_submitted_in_a_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = write_scripts(plan_of(tmp_path / "in", TEXTS), tmp_path / "out", SlurmOptions())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    fake_sbatch(tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls; echo "$(wc -l < {tmp_path}/calls);cluster"')
    assert submit(scripts) == ["1", "2"]
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first == f"--parsable {scripts[0]}" and second == f"--parsable --dependency=afterok:1 {scripts[1]}"
    fake_sbatch(tmp_path / "bin", "echo no such partition >&2; exit 1")
    with pytest.raises(HerdError, match=r"sbatch refused 00-shout\.sbatch: no such partition"):
        submit(scripts)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="no sbatch"):
        submit(scripts)


def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "RAY_USAGE_STATS_ENABLED": "0"}
    program = (
        "import sys; from pathlib import Path; from executor_jobs import plan_of; from herd.data.executor.tasks import run_ray\n"
        "folder = Path(sys.argv[1]); texts = sys.argv[2:]\n"
        "assert run_ray(plan_of(folder / 'in', texts), folder / 'ray', workers=2) == 5\n"
        "assert run_ray(plan_of(folder / 'in', texts), folder / 'ray', workers=2) == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *TEXTS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run_local(plan_of(tmp_path / "in", TEXTS), tmp_path / "local")
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed") as caught:
        run_ray(plan_of(tmp_path / "in", TEXTS), tmp_path / "out")
    assert "llama-herd[ray]" in str(caught.value.hint)


# Plans as data


def test_a_plan_is_read_back_and_names_herds_functions_only(tmp_path: Path) -> None:
    plan = Plan(steps=(Step(name="a", function="herd.data.x:y", config={"k": [1]}, shards=(Shard(name="0", files=("f",)),)),))
    assert read_plan(write_plan(plan, tmp_path)) == plan
    data = json.loads((tmp_path / "plan.json").read_text())
    data["steps"][0]["function"] = "os:system"
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="os:system"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["", "[]", '{"version": 9}', '{"version": 1, "steps": [{"name": "a"}]}', '{"version": 1, "steps": [3]}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(FormatError):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(NotFoundError):
        read_plan(tmp_path / "none.json")


def test_steps_and_shards_that_cannot_be_are_refused() -> None:
    one = Step(name="a", function="herd.x:y", shards=(Shard(name="0"),))
    with pytest.raises(ConfigError, match="two steps"):
        Plan(steps=(one, one))
    for reference in ("b/*", "a/7", "c/0"):
        with pytest.raises(ConfigError, match="no earlier step makes"):
            Plan(steps=(one, Step(name="c", function="herd.x:y", shards=(Shard(name="0", after=(reference,)),))))
    for name in ("", "..", "a/b", ".x"):
        with pytest.raises(ConfigError, match="no name of a folder"):
            Step(name=name, function="f", shards=())
    with pytest.raises(ConfigError, match="two shards"):
        Step(name="a", function="f", shards=(Shard(name="0"), Shard(name="0")))
    with pytest.raises(UsageError, match="no step 'b'"):
        Plan(steps=(one,)).step("b")
    with pytest.raises(ConfigError, match="no function"):
        from herd.data.executor.shard_run import load_function

        load_function("herd.data.nowhere:f")
