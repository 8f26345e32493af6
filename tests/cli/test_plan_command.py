"""`herd plan`: training, serving on other hardware, hardware, carbon and published figures, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from herd_command import HerdCommand, spawn  # pyright: ignore[reportMissingImports]

from herd.base.errors import UsageError
from herd.cli.plan import parse_count
from herd.plan.hardware import catalogue
from herd.plan.published import comparisons

PUBLISHED = ("--tp", "8", "--pp", "16", "--virtual-stages", "8", "--dp", "128", "--hardware", "h100-80gb")


def test_the_405b_on_16384_gpus_without_torch(tmp_path: Path) -> None:
    """The command of the guide, whole, in a process of its own: it takes no torch and no GPU."""
    words = ("plan", "train", "405b", "--gpus", "16384", "--hardware", "h100-80gb", "--json")
    result = spawn(*words, variables={"HERD_HOME": str(tmp_path)})
    assert (result.code, result.err) == (0, "")
    data = result.json
    assert data["mesh"]["devices"] == 16_384 and data["fits"] and data["batch"]["tokens"] == 16_777_216
    assert 400 < data["tflops_per_device"] < 520 and data["run"]["effective"]["share"] > 0.9
    assert len(data["ranking"]) == 5 and all("slower" in one["why"] for one in data["ranking"][1:])
    assert {"parameters", "gradients", "optimizer", "activations", "logits", "buffers", "reserve", "total"} < set(data["memory_bytes"][0])


def test_a_mesh_that_is_given_whole_is_planned_as_a_table(herd: HerdCommand) -> None:
    result = herd("plan", "train", "405b", *PUBLISHED)
    assert (result.code, result.err) == (0, "")
    for words in (
        "16,384 x NVIDIA H100",
        "TP 8, CP 1, PP 16 x 8, DP 128, ZeRO-2",
        "recomputation: elementwise",
        "stage 1 (fullest)",
        "activations",
        "matrix products (the bound)",
        "the pipeline bubble",
        "an unexpected one every 3.1 h",
        "effective time",
        "t CO2eq",
        "USD at 2.5",
    ):
        assert words in result.out, words
    data = herd("plan", "train", "405b", *PUBLISHED, "--json").json
    assert data["tflops_per_device"] == pytest.approx(400, rel=0.1) and data["bound"] == "products"
    assert max(rank["total"] for rank in data["memory_bytes"]) < 80e9


def test_what_does_not_fit_is_shown_and_ends_with_4(herd: HerdCommand) -> None:
    result = herd("plan", "train", "405b", *PUBLISHED, "--recompute", "none", "--zero", "1")
    message, hint = result.refusal(4)
    assert "needs 9" in message and "has 80 GB; most of it is activations" in message and "--recompute elementwise" in hint
    assert "does not fit" in result.out and "activations" in result.out
    message, _ = herd("plan", "train", "405b", "--gpus", "8").refusal(4)
    assert "llama-3.1-405b does not fit 8 x h100-80gb" in message


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("405c",), 3, "405c"),
        (("8b", "--hardware", "h300"), 3, "no hardware is named 'h300'"),
        (("8b", "--hardware", "here"), 3, "not measured yet"),
        (("8b", "--tokens", "many"), 2, "'many' is no number of tokens"),
        (("8b", "--assume", "matmul=2"), 1, "matmul is 2.0"),
        (("8b", "--assume", "magic=1"), 2, "unknown key 'magic'"),
        (("8b", "--precision", "fp4"), 1, "precision is 'fp4'"),
        (("8b", "--recompute", "most"), 1, "recompute is 'most'"),
        (("8b", "--tp", "2", "--cp", "1", "--pp", "1", "--dp", "2", "--gpus", "8"), 2, "--gpus 8 is not the 4"),
        (("8b", "--tp", "3"), 1, "tp 3 does not divide"),
        (("8b", "--gpus", "24", "--virtual-stages", "2", "--pp", "1"), 1, "no mesh of 24 devices"),
        (("405b", *PUBLISHED, "--restart-minutes", "1e6"), 1, "never end"),
        (("8b", "--pue", "0.5", "--tp", "8"), 1, "pue is 0.5"),
    ],
)
def test_what_means_nothing_is_refused(herd: HerdCommand, words: tuple[str, ...], code: int, message: str) -> None:
    assert message in herd("plan", "train", *words).refusal(code)[0]


def test_assumptions_and_prices_are_taken(herd: HerdCommand) -> None:
    words = ("plan", "train", "8b", "--tp", "8", "--tokens", "1T", "--batch-tokens", "1048576", "--json")
    plain = herd(*words).json
    better = herd(*words, "--assume", "matmul=0.8", "--assume", "link=0.9", "--price", "1", "--grid", "0.1", "--pue", "1.2").json
    assert better["tflops_per_device"] > plain["tflops_per_device"] and better["assumptions"]["matmul"] == 0.8
    used = better["run"]["account"]
    assert used["cost"] == pytest.approx(used["device_hours"])
    assert used["carbon_kg"] == pytest.approx(used["device_hours"] * 0.7 * 1.2 * 0.1)
    assert better["run"]["num_steps"] == -(-(10**12) // 1_048_576)


def test_a_small_model_and_a_folder_can_be_planned(herd: HerdCommand, tiny_folder: Path) -> None:
    words = ("--sequence", "64", "--batch-tokens", "4096", "--tokens", "1M", "--json")
    data = herd("plan", "train", tiny_folder, *words).json
    assert data["model"] == str(tiny_folder) and data["mesh"]["devices"] == 1 and data["step_s"]["total"] > 0
    assert herd("plan", "train", "cria-8m", *words).json["num_parameters"] > 8_000_000


def test_serving_on_hardware_of_the_catalogue(herd: HerdCommand) -> None:
    refused = herd("plan", "serve", "405b", "--hardware", "h100-80gb", "--gpus", "8")
    message, hint = refused.refusal(4)
    assert "811.7 GB of weights in bf16" in message and "needs 114.0 GB on each of 8 x h100-80gb" in message and "--gpus 16" in hint
    assert "811.71 GB in bf16" in refused.out
    fits = herd("plan", "serve", "405b", "--hardware", "h100-80gb", "--tp", "8", "--weights", "fp8")
    assert (fits.code, fits.err) == (0, "")
    for words in (
        "487.17 GB in fp8",
        "516,096 bytes a token",
        "554.93 GB",
        "1 of 131,072 tokens",
        "bound by memory bandwidth",
        "time to first token",
    ):
        assert words in fits.out, words
    data = herd("plan", "serve", "8b", "--hardware", "h100-80gb", "--kv-dtype", "fp8", "--context", "8192", "--json").json
    assert data["kv_bytes_per_token"] == 65_536 + 2_048 and data["max_sequences"] > 50 and len(data["decode"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tp", "8"), "--tp goes with --hardware"),
        (("--weights", "fp8"), "--weights goes with --hardware"),
        (("--hardware", "h200", "--memory", "8GiB"), "--memory is of herd's own engine"),
        (("--hardware", "h200", "--gpus", "8", "--tp", "8"), "--gpus chooses --tp and --pp itself"),
    ],
)
def test_options_of_the_other_kind_of_plan_are_refused(herd: HerdCommand, words: tuple[str, ...], message: str) -> None:
    assert message in herd("plan", "serve", "8b", *words).refusal(2)[0]


def test_the_engines_own_plan_stays_what_it_was(herd: HerdCommand, tiny_folder: Path) -> None:
    data = herd("plan", "serve", tiny_folder, "--memory", "1GiB", "--json").json
    assert data["total_bytes"] <= 2**30 and data["num_blocks"] > 0
    message, _ = herd("plan", "serve", tiny_folder, "--memory", "1MiB").refusal(4)
    assert "the limit is 1.0 MiB" in message


def test_a_gpu_that_is_not_here_is_planned_for_with_what_its_kernels_need(herd: HerdCommand) -> None:
    pytest.importorskip("triton", reason="needs triton, which is for Linux on x86_64")
    words = ("plan", "serve", "llama3.1:8b", "--memory", "24GiB", "--context", "16384", "--json")
    there, here = herd(*words, "--device", "cuda").json, herd(*words, "--device", "cpu").json
    scratch = there["activation_bytes"] - here["activation_bytes"]
    assert 50 * 2**20 < scratch < 2**30 and there["num_blocks"] < here["num_blocks"]
    assert there["weights_bytes"] == here["weights_bytes"]
    assert "unknown device 'gpu'" in herd(*words, "--device", "gpu").refusal(2)[0]
    assert "--device is of herd's own engine" in herd("plan", "serve", "8b", "--hardware", "h200", "--device", "cuda").refusal(2)[0]


def test_quantised_weights_count_as_they_are_stored(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    written = herd("quantize", tiny_folder, tmp_path / "fp8", "--scheme", "fp8", "--json").json
    wide = herd("plan", "serve", tmp_path / "fp8", "--dtype", "float32", "--json").json
    data = herd("plan", "serve", tmp_path / "fp8", "--json").json
    whole = herd("plan", "serve", tiny_folder, "--dtype", "bfloat16", "--json").json
    assert wide["weights_bytes"] == written["size_bytes"]
    assert data["dtype"] == "bfloat16" and data["weights_bytes"] < min(wide["weights_bytes"], whole["weights_bytes"])


def test_a_published_shape_needs_no_files(herd: HerdCommand) -> None:
    data = herd("plan", "serve", "llama3.1:8b", "--memory", "24GiB", "--context", "16384", "--json").json
    assert data["weights_bytes"] == 2 * 8_030_261_248 and data["dtype"] == "bfloat16"
    assert "absent" in herd("plan", "serve", "absent").refusal(3)[0]


def test_hardware_is_listed_and_shown_whole(herd: HerdCommand) -> None:
    listed = herd("plan", "hardware")
    assert all(name in listed.out for name in catalogue()) and "TFLOPs" in listed.err
    assert {row["name"] for row in herd("plan", "hardware", "--json").json} == set(catalogue())
    one = herd("plan", "hardware", "meta-24k-roce")
    assert "arXiv 2407.21783" in one.out and "assumed matmul" in one.out
    assert herd("plan", "hardware", "h100-80gb", "--json").json["assumptions"]["network"] == 0.85
    assert "no hardware is named 'h1'" in herd("plan", "hardware", "h1").refusal(3)[0]


def test_carbon_of_hours_and_of_cards(herd: HerdCommand) -> None:
    assert "62.44" in herd("plan", "carbon", "--card", "llama-2").out
    rows = herd("plan", "carbon", "--json").json
    assert len(rows) == 10 and rows[-1]["computed_tonnes"] == pytest.approx(133, rel=0.01)
    used = herd("plan", "carbon", "--hours", "30.84M", "--card", "llama-3.1", "--json").json
    assert used["carbon_kg"] == pytest.approx(8_930_000, rel=0.0005)
    told = herd("plan", "carbon", "--hours", "1000", "--hardware", "a100-80gb")
    assert "440.0 kWh with PUE 1.1" in told.out and "169.4 kg CO2eq" in told.out and "1,500.00 USD" in told.out
    assert "needs watts" in herd("plan", "carbon", "--hours", "10").refusal(2)[0]
    assert "needs --hours" in herd("plan", "carbon", "--hardware", "h200").refusal(2)[0]


def test_published_figures_are_shown_beside_ours(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    told = herd("plan", "published")
    assert told.code == 0 and "NO" not in told.out and "16,384 GPUs at 131,072: TFLOPs a GPU" in told.out
    assert [row["what"] for row in herd("plan", "published", "--json").json] == [one.what for one in comparisons()]
    from dataclasses import replace

    monkeypatch.setattr("herd.plan.published.comparisons", lambda: [replace(comparisons()[0], ours=1)])
    result = herd("plan", "published")
    assert "1 figures are off" in result.refusal(5)[0] and "NO" in result.out


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15.6T", 15.6e12), ("300M", 3e8), ("1e9", 1e9), ("16_777_216", 2**24), ("16Mi", 2**24), ("8ki", 8192), ("2k", 2000), ("7", 7)],
)
def test_numbers_of_tokens_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert parse_count(text) == expected
    with pytest.raises(UsageError, match="no number of tokens"):
        parse_count(text + "x")


def test_the_json_of_every_plan_is_json(herd: HerdCommand) -> None:
    for words in (("train", "8b", "--tp", "8"), ("serve", "8b", "--hardware", "h200"), ("hardware",), ("carbon",), ("published",)):
        json.loads(herd("plan", *words, "--json").out)
