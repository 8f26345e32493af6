"""Row-wise float8: the quantiser's bounds, and that storing what was read gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import CheckpointError, UsageError
from herd.checkpoint.convert import convert
from herd.checkpoint.load import ModelSource, load_model, save_model
from herd.checkpoint.meta import MetaSource, write_meta
from herd.checkpoint.meta_fp8 import FP8_DTYPE, FP8_MAX, dequantise_rows, is_fp8_layer, quantise_rows, row_scales
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=4,
)


def tiny(config: ModelConfig = CONFIG) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    return initialise(model, seed=2, dtype=torch.bfloat16)


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def test_a_scale_survives_being_multiplied_out_for_every_significand() -> None:
    largest = torch.arange(2**23, dtype=torch.int32).add_(0x3F800000).view(torch.float32)
    assert largest[0] == 1 and largest[-1] < 2
    scales = row_scales(largest[:, None])
    assert torch.equal(row_scales((scales * FP8_MAX)[:, None]), scales)


def test_quantising_what_was_dequantised_gives_the_same_codes_and_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100_000, 8, generator=generator) * torch.logspace(-12, 6, 100_000)[:, None]
    codes, scales = quantise_rows(rows)
    again, scales_again = quantise_rows(dequantise_rows(codes, scales))
    assert same_bytes(codes, again) and same_bytes(scales, scales_again)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=4, max_size=4), min_size=1, max_size=4))
def test_quantisation_is_idempotent_for_any_finite_row(rows: list[list[float]]) -> None:
    codes, scales = quantise_rows(torch.tensor(rows))
    values = dequantise_rows(codes, scales)
    assert torch.isfinite(values).all()
    again, scales_again = quantise_rows(values)
    assert same_bytes(codes, again) and same_bytes(scales, scales_again)


def test_the_largest_value_of_a_row_takes_the_largest_code_and_the_error_is_bounded() -> None:
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    codes, scales = quantise_rows(rows)
    assert (codes.float().abs().amax(1) == FP8_MAX).all()
    torch.testing.assert_close(scales, rows.abs().amax(1) / FP8_MAX, rtol=1e-6, atol=0)
    values = dequantise_rows(codes, scales)
    # Three bits of mantissa: half a step is 1/16 of the value; below 2**-6 codes are 2**-9 apart.
    assert ((values - rows).abs() <= rows.abs() / 16 + scales[:, None] * 2**-10).all()


def test_a_row_of_zeros_stays_zero() -> None:
    codes, scales = quantise_rows(torch.zeros(2, 8))
    assert (scales > 0).all() and not dequantise_rows(codes, scales).any()


def test_first_and_last_layer_keep_their_dtype() -> None:
    assert [is_fp8_layer(CONFIG, layer) for layer in range(4)] == [False, True, True, False]


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_an_8_bit_folder_survives_float32_safetensors_byte_for_byte(tmp_path: Path, shards: int) -> None:
    save_model(tiny(), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "fp8", to="meta", shards=shards, fp8=True)
    convert(tmp_path / "fp8", tmp_path / "back", to="hf", dtype="float32")
    convert(tmp_path / "back", tmp_path / "again", to="meta", shards=shards, fp8=True)
    files = sorted(path.name for path in (tmp_path / "fp8").iterdir())
    assert f"fp8_scales_{shards - 1}.pt" in files and files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "fp8" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_names_dtypes_and_sizes_of_codes_and_scales_are_metas(tmp_path: Path) -> None:
    write_meta(ModelSource(tiny()), tmp_path, shards=2, fp8=True)
    shard = torch.load(tmp_path / "consolidated.01.pth", weights_only=True)
    scales = torch.load(tmp_path / "fp8_scales_1.pt", weights_only=True)
    eight_bit = {key for key, tensor in shard.items() if tensor.dtype == FP8_DTYPE}
    assert eight_bit == {f"layers.{layer}.feed_forward.w{i}.weight" for layer in (1, 2) for i in (1, 2, 3)}
    assert {tensor.dtype for key, tensor in shard.items() if key not in eight_bit} == {torch.bfloat16}
    assert set(scales) == {f"{layer}_feed_forward.w{i}_1" for layer in (1, 2) for i in (1, 2, 3)}
    assert scales["1_feed_forward.w1_1"].shape == (48,) and scales["1_feed_forward.w2_1"].shape == (64,)


def test_an_8_bit_folder_reads_as_float32_there_and_loads_as_bfloat16(tmp_path: Path) -> None:
    model = tiny()
    write_meta(ModelSource(model), tmp_path, shards=8, fp8=True)
    with MetaSource(tmp_path) as source:
        info = source.tensors["model.layers.1.mlp.down_proj.weight"]
        assert (info.stored, info.dtype, info.size_bytes) == ("F8_E4M3", torch.float32, 64 * 96)
        original = dict(model.named_parameters())
        for name in source.tensors:
            value, exact = source.read(name), original[name].float()
            assert (
                torch.equal(value.float(), exact) if source.tensors[name].stored == "BF16" else (value - exact).norm() < 0.04 * exact.norm()
            )
    assert load_model(tmp_path).dtype == torch.bfloat16


def test_a_model_without_inner_layers_and_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        write_meta(ModelSource(model), tmp_path, fp8=True)
    two = ModelConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=16, num_key_value_heads=8, head_dim=4
    )
    with pytest.raises(UsageError, match="2 layers"):
        write_meta(ModelSource(tiny(two)), tmp_path, fp8=True)
