"""What a run tells about itself: loss by source, speed, energy, TensorBoard, a profile, and the page that shows it all."""

from __future__ import annotations

import json
import math
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import as_batch, log_of, small_model, small_rows, small_sources, small_stage, small_trainer, tensors_of, whole_run  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, NotFoundError
from herd.train import speed
from herd.train.callback import Callback
from herd.train.energy import EnergyMeter, NameplateCounter, NvmlCounter, RaplCounter, carbon_kg, find_meter
from herd.train.mixing import stage_mixture
from herd.train.report import stage_folders, summarise, write_report
from herd.train.run_log import flat
from herd.train.step import batch_loss_sum, some_rows
from herd.train.trainer import Trainer


def test_each_sources_loss_is_that_of_its_rows(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, heldout=False)
    batch = trainer.mixture.batch(0, 4)
    numbers = trainer.mixture.source_numbers(0, 4)  # type: ignore[attr-defined]
    model = small_model()
    expected = {}
    for number, name in enumerate(("a", "b")):
        rows = [row for row in range(4) if numbers[row] == number]
        parts = [some_rows(batch, row, 1) for row in rows]
        counted = sum(int(part[2][:, 1:].sum()) for part in parts)
        if counted:
            with torch.no_grad():
                expected[f"loss/{name}"] = sum(float(batch_loss_sum(model, part, torch.float32)) for part in parts) / counted
    trainer.fit(until_step=1)
    (record,) = log_of(tmp_path)
    found = {name: value for name, value in record.items() if name.startswith("loss/")}
    assert found.keys() == expected.keys() and found == pytest.approx(expected, rel=1e-5)


def test_telling_the_loss_by_source_does_not_change_what_is_learned(tmp_path: Path) -> None:
    stage = small_stage()

    class Anonymous:
        """The same rows in the same order, without their sources."""

        batch = staticmethod(stage_mixture(small_sources(), stage, seed=7).batch)

    without = Trainer(small_model(), stage, Anonymous(), folder=tmp_path / "without", run="this run")
    without.fit()
    assert not any(name.startswith("loss/") for record in log_of(tmp_path / "without") for name in record)
    left, right = tensors_of(without), tensors_of(whole_run(tmp_path / "with", heldout=False))
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_the_machines_figures_are_in_every_logged_step(tmp_path: Path) -> None:
    whole_run(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    machines = [record["machine"] for record in records if "loss" in record]
    assert len(machines) == 12
    for machine in machines:
        assert 0 < machine["mfu"] < 10 and "mfu_nameplate" not in machine
        assert 2**20 < machine["peak_memory_bytes"] < 2**40
    energies = [machine["energy_j"] for machine in machines]
    assert energies == sorted(energies) and energies[-1] > 0
    assert all(machine["seconds"] > 0 for machine in machines)


def test_mfu_is_the_models_flops_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measured_peak", lambda *_: 1e12)
    assert speed.utilisation(500.0, 10**9, torch.device("cpu"), torch.float32) == {"mfu": 0.5}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 80GB HBM3")
    assert speed.utilisation(989.4, 10**12, torch.device("cuda"), torch.bfloat16)["mfu_nameplate"] == 1.0
    assert speed.nameplate_peak("some other part") is None


def test_the_measured_peak_is_some_flops_and_measured_once() -> None:
    peak = speed.measured_peak("cpu", torch.float32, 1)
    assert 1e8 < peak < 1e14 and speed.measured_peak("cpu", torch.float32, 1) == peak


def package(root: Path, name: str, energy: int, wraps_at: int = 1000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(str(energy))
    (folder / "max_energy_range_uj").write_text(str(wraps_at))
    return folder / "energy_uj"


def test_rapl_adds_packages_leaves_their_parts_out_and_counts_through_a_wrap(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 900), package(tmp_path, "intel-rapl:1", 5)
    package(tmp_path, "intel-rapl:0:0", 10)
    counter = RaplCounter(tmp_path)
    first.write_text("950")
    second.write_text("25")
    assert counter.joules() == pytest.approx(70e-6)
    first.write_text("49")  # 950 .. 1000, 0 .. 49
    assert counter.joules() == pytest.approx(170e-6)


def test_rapl_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no readable RAPL counter"):
        RaplCounter(tmp_path)


def test_nvml_adds_the_gpus_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    energies = {0: 5000, 1: 7000}
    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=energies.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert NvmlCounter((0, 1)).joules() == 12.0
    meter = find_meter(device="cuda", gpu_indices=(0,))
    assert meter.method.startswith("nvml")
    energies[0] += 2500
    if meter.method == "nvml":
        assert meter.lap() == pytest.approx(2.5)

    fake.nvmlDeviceGetHandleByUUID = {"GPU-2f": 1}.__getitem__
    for shown, joules in (("1", 7.0), ("GPU-2f, 0", 7.0), ("0", 7.5)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert NvmlCounter((0,)).joules() == joules, "the first GPU that CUDA shows"
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES shows 1 GPUs, and number 1 is asked for"):
        NvmlCounter((1,))

    def refuse() -> None:
        raise NVMLError("no driver")

    fake.nvmlInit = refuse
    with pytest.raises(ValueError, match="NVML counts no energy here: no driver"):
        NvmlCounter((0,))
    assert find_meter(device="cuda").method == "nameplate"


def test_the_nameplate_is_watts_times_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("herd.train.energy.time.monotonic", lambda: clock[0])
    meter = EnergyMeter([NameplateCounter(700.0)], "nameplate")
    clock[0] = 110.0
    assert meter.lap() == 7000.0 and meter.lap() == 0.0


@pytest.mark.parametrize(
    ("hours", "watts", "factor", "tonnes", "within"),
    [
        (184_320, 400, 0.4235, 31.22, 0.001),
        (368_640, 400, 0.4235, 62.44, 0.001),
        (1_720_320, 400, 0.4235, 291.42, 0.001),
        (1.46e6, 700, 0.4136, 420, 0.01),
        (7.0e6, 700, 0.4136, 2040, 0.01),
        (30.84e6, 700, 0.4136, 8930, 0.0005),
    ],
)
def test_carbon_reproduces_the_published_cards(hours: float, watts: float, factor: float, tonnes: float, within: float) -> None:
    joules = float(hours * 3600 * watts)
    assert carbon_kg(joules, pue=1.0, grid_kg_per_kwh=factor) / 1000 == pytest.approx(tonnes, rel=within)


def test_numbers_of_a_record_are_flattened_by_path() -> None:
    record = {"step": 3, "loss": 2.5, "heldout": {"en": 1.0, "de": 2}, "note": "text", "flag": True}
    assert dict(flat(record)) == {"step": 3.0, "loss": 2.5, "heldout/en": 1.0, "heldout/de": 2.0}


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    whole_run(tmp_path, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert {"loss", "lr", "grad_norm", "heldout/en", "loss/a", "machine/mfu"} <= set(accumulator.Tags()["scalars"])
    losses = [record["loss"] for record in log_of(tmp_path) if "loss" in record]
    assert [event.value for event in accumulator.Scalars("loss")] == pytest.approx(losses)


def test_wandb_that_is_not_installed_is_refused_and_one_that_is_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="the package wandb is not installed") as caught:
        whole_run(tmp_path / "without", wandb=True)
    assert "llama-herd[wandb]" in str(caught.value.hint)
    logged: dict[int, dict[str, float]] = {}
    run = types.SimpleNamespace(
        log=lambda values, step: logged.setdefault(step, {}).update(values), finish=lambda: logged.setdefault(-1, {})
    )
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    whole_run(tmp_path / "with", wandb=True)
    assert logged[5]["heldout/en"] > 0 and logged[12]["loss"] > 0 and -1 in logged


def test_a_profile_of_some_steps_is_a_trace_and_a_table(tmp_path: Path) -> None:
    whole_run(tmp_path, profile_steps=(2, 3))
    trace = json.loads((tmp_path / "profile" / "steps-2-3.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::mm" in names
    assert "aten::mm" in (tmp_path / "profile" / "steps-2-3.txt").read_text()


@pytest.mark.parametrize("steps", [(1,), (0, 3), (5, 4), (1, 2, 3)])
def test_profile_steps_that_are_no_stretch_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="it must be a first and a last step") as caught:
        small_stage(profile_steps=steps)
    assert "profile_steps=10,12" in str(caught.value.hint)


class Counting:
    """A callback that counts its calls."""

    name, every = "counted", 5

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        self.steps.append(step)
        return {"calls": float(len(self.steps))}


def test_a_callback_scores_in_its_interval_and_at_the_end(tmp_path: Path) -> None:
    callback = Counting()
    assert isinstance(callback, Callback)
    trainer = small_trainer(tmp_path, heldout=False)
    trainer.callbacks = (callback,)
    trainer.fit()
    assert callback.steps == [5, 10, 12]
    assert [record["counted"] for record in log_of(tmp_path) if "counted" in record] == [{"calls": 1.0}, {"calls": 2.0}, {"calls": 3.0}]


class Page(HTMLParser):
    """Collects tags and text, and refuses tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_of_a_run_holds_its_figures_and_needs_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "my <run>"
    whole_run(run / "pretrain")
    whole_run(run / "sft", num_steps=6)
    (run / "config.toml").write_text('name = "<b>"\n')
    target = tmp_path / "report.html"
    summaries = write_report(run, target, pue=1.5, grid_kg_per_kwh=0.4)
    text = target.read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and page.tags.count("svg") >= 2 * 6
    assert not re.search(r"(src|href)=|https?://|<script", text)
    assert "my &lt;run&gt;" in text and "&lt;b&gt;" in text
    assert [summary.name for summary in summaries] == ["pretrain", "sft"]
    first = summaries[0]
    losses = [record["loss"] for record in log_of(run / "pretrain") if "loss" in record]
    assert first.loss == pytest.approx(sum(losses[-10:]) / 10) and first.num_steps == 12
    assert first.carbon_kg == pytest.approx(first.energy_kwh * 1.5 * 0.4) and first.energy_kwh > 0
    assert first.heldout.keys() == {"en", "th"} and 0 < (first.effective or 0) <= 1
    shown = " ".join(page.text)
    for words in (
        "loss by source",
        "held-out bits per byte",
        "effective training time",
        "MFU by the measured peak",
        f"{first.num_counted:,}",
    ):
        assert words in shown


def test_a_page_of_a_run_that_diverged_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    records = [{"step": n, "num_counted": n, "loss": math.nan if n == 3 else 2.0, "grad_norm": 0.0, "lr": 1e-3} for n in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(folder, tmp_path / "report.html")
    assert "nan" not in re.findall(r'points="([^"]*)"', (tmp_path / "report.html").read_text())[0]
    assert summarise(folder).tokens_per_s is None


def test_a_folder_without_a_log_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no training log"):
        stage_folders(tmp_path)


def test_loss_rows_are_never_mixed_up() -> None:
    rows = small_rows(30, seed=9)
    batch = as_batch(rows, 0, 3)
    model = small_model()
    with torch.no_grad():
        parts = [float(batch_loss_sum(model, some_rows(batch, row, 1), torch.float32)) for row in range(3)]
        assert float(batch_loss_sum(model, batch, torch.float32)) == pytest.approx(sum(parts), rel=1e-5)
