"""The catalogue: every row is whole and sourced, names are found, this machine is kept and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from herd.base.errors import ConfigError, NotFoundError
from herd.plan.assumptions import Assumptions, default_assumptions
from herd.plan.hardware import HERE, Device, catalogue, find_device, here_path, known_devices, load_here, save_here
from herd.plan.models import find_shape, preset_name

OWN = Device(
    name=HERE,
    title="a machine",
    kind="cpu",
    memory_gb=8.0,
    memory_gb_per_s=20.0,
    bf16_tflops=1.0,
    fp32_tflops=0.5,
    link_gb_per_s=10.0,
    devices_per_node=1,
    network_gb_per_s=0.1,
    watts=15.0,
    measured=True,
    sources=("measured",),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_HOME", str(tmp_path))


def test_the_devices_that_were_asked_for_are_there_with_sources() -> None:
    wanted = {"h100-80gb", "h200", "a100-80gb", "b200", "mi300x", "l40s", "rtx-4090", "meta-24k-roce"}
    assert wanted <= set(catalogue()) and sum(device.kind == "cpu" for device in catalogue().values()) >= 3
    for name, device in catalogue().items():
        assert device.name == name and device.sources and not device.measured
        assert device.price_per_hour is None or device.price_date


def test_rates_are_dense_ones() -> None:
    h100 = find_device("h100-80gb")
    assert (h100.bf16_tflops, h100.memory_bytes, h100.watts) == (989.4, 80_000_000_000, 700.0)
    assert h100.fp8_tflops == pytest.approx(2 * h100.bf16_tflops, rel=1e-3)
    assert find_device("a100-80gb").bf16_tflops == 312.0


def test_a_cluster_is_its_device_with_something_else_around_it() -> None:
    cluster, device = find_device("meta-24k-roce"), find_device("h100-80gb")
    assert cluster.bf16_tflops == device.bf16_tflops and cluster.num_devices == 24_576 and cluster.storage_gb_per_s == 2000.0
    assert set(device.sources) < set(cluster.sources)


def test_a_rate_that_a_device_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="a100-80gb has no matrix products in fp8"):
        find_device("a100-80gb").tflops("fp8")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="'h100-80g'") as caught:
        find_device("h100-80g")
    assert caught.value.hint == "did you mean 'h100-80gb'?"


def test_this_machine_is_unknown_until_it_was_measured() -> None:
    with pytest.raises(NotFoundError, match="not measured yet") as caught:
        find_device(HERE)
    assert caught.value.hint == "run: herd doctor --measure" and load_here() is None and HERE not in known_devices()
    assert save_here(OWN) == here_path()
    assert find_device(HERE) == OWN == known_devices()[HERE]


@pytest.mark.parametrize(
    ("text", "message"),
    [("not toml [", "is not TOML"), ('name = "here"', "is missing"), ("watt = 3", "unknown key"), ("watts = 0", "missing")],
)
def test_a_damaged_file_of_this_machine_is_refused_by_its_path(text: str, message: str) -> None:
    here_path().parent.mkdir(parents=True, exist_ok=True)
    here_path().write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_here()


def test_a_figure_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="memory_gb_per_s is 0"):
        replace(OWN, memory_gb_per_s=0.0)


def test_more_of_a_measured_rate_is_supposed_than_of_a_nameplate() -> None:
    for device in (find_device("h100-80gb"), find_device("cpu-laptop")):
        assert default_assumptions(replace(device, measured=True)).matmul > default_assumptions(device).matmul


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matmul": 1.2}, "matmul is 1.2"),
        ({"network": 0.0}, "network is 0"),
        ({"tp_overlap": 2.0}, "tp_overlap"),
        ({"reserve_gb": -1.0}, "reserve_gb"),
    ],
)
def test_an_assumption_that_cannot_be_is_refused_by_name(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Assumptions(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["405b", "405B", "llama-3.1-405b", "llama3.1:405b", "llama3.1:405b-base"])
def test_a_shape_has_many_names(name: str) -> None:
    found, config = find_shape(name)
    assert found == "llama-3.1-405b" and config.num_parameters == 405_853_388_800


def test_a_shape_that_is_not_known_is_refused_with_the_nearest() -> None:
    assert preset_name("gpt-2") is None
    with pytest.raises(NotFoundError, match="'406b'") as caught:
        find_shape("406b")
    assert caught.value.hint == "did you mean '405b'?"
