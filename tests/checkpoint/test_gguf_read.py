"""Files that others wrote: the gguf package's writer, every kind of block, and the metadata of llama.cpp's converter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import CheckpointError, ConfigError, NotFoundError
from herd.checkpoint.gguf_format import KINDS, SCALAR_CODES, Array, Typed, ValueType, pack_header
from herd.checkpoint.gguf_header import MAX_NAME_BYTES, parse_header
from herd.checkpoint.gguf_llama import gguf_name, interleaved_rows, rope_factors
from herd.checkpoint.gguf_read import GgufSource
from herd.checkpoint.source import TensorSource
from herd.model.config import ModelConfig, RopeScaling

SMALL = ModelConfig(
    vocab_size=48,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=4096,
)


def write_with_peer(
    path: Path,
    config: ModelConfig = SMALL,
    kind: str = "F32",
    *,
    factors: np.ndarray | None = None,
    architecture: str = "llama",
    without: tuple[str, ...] = (),
    **extra: Any,
) -> dict[str, np.ndarray]:
    """A model of random blocks by the gguf package's writer; the bytes of each tensor by its Hugging Face name."""
    writer = gguf.GGUFWriter(path, architecture)
    keys: list[tuple[Any, Any]] = [
        (writer.add_block_count, config.num_hidden_layers),
        (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_feed_forward_length, config.intermediate_size),
        (writer.add_head_count, config.num_attention_heads),
        (writer.add_head_count_kv, config.num_key_value_heads),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_rope_freq_base, config.rope_theta),
        (writer.add_rope_dimension_count, config.head_dim),
    ]
    for add, value in keys:
        if add.__name__ not in without:
            add(value)
    for key, (method, value) in extra.items():
        getattr(writer, f"add_{method}")(key.replace("__", "."), value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    written = _add_tensors(writer, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _add_tensors(writer: gguf.GGUFWriter, config: ModelConfig, kind: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(11)
    written: dict[str, np.ndarray] = {}
    for name, shape in config.parameter_shapes().items():
        used = KINDS["F32" if len(shape) == 1 else kind]
        row_bytes = used.size_bytes(shape[-1])
        data = generator.integers(0, 256, (*shape[:-1], row_bytes), dtype=np.uint8)
        writer.add_tensor(gguf_name(name), data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType(used.code))
        written[name] = data
    return written


def hugging_face_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of llama.cpp's permutation, from its own formula."""
    return values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_file_of_every_kind_reads_as_the_gguf_package_dequantises_it(tmp_path: Path, kind: str) -> None:
    written = write_with_peer(tmp_path / "m.gguf", kind=kind)
    with GgufSource(tmp_path / "m.gguf") as source:
        assert list(source.tensors) == list(SMALL.parameter_shapes())
        for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
            data = written[name]
            if kind in ("F32", "F16", "BF16"):
                wanted = data
            else:
                with np.errstate(all="ignore"):
                    wanted = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).view(np.uint8)
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
            wanted = wanted if heads is None else hugging_face_rows(wanted, heads)
            values, info = source.read(name), source.tensors[name]
            assert values.dtype == info.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
            assert values.shape == info.shape == SMALL.parameter_shapes()[name]
            assert (info.stored, info.size_bytes) == (kind, data.nbytes)
            np.testing.assert_array_equal(values.view(torch.uint8).numpy(), wanted)


def test_the_config_of_a_minimal_file_is_complete(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf")
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == SMALL
        assert source.format == "gguf"
        assert isinstance(source, GgufSource)
        seam: TensorSource = source
        assert seam.path == tmp_path / "m.gguf"


def test_a_file_without_an_output_matrix_is_tied(tmp_path: Path) -> None:
    config = replace(SMALL, tie_word_embeddings=True)
    write_with_peer(tmp_path / "m.gguf", config)
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == config
        assert "lm_head.weight" not in source.tensors


def test_a_head_size_of_its_own_is_taken_from_key_length(tmp_path: Path) -> None:
    config = replace(SMALL, head_dim=32)
    lengths: dict[str, Any] = {"llama__attention__key_length": ("uint32", 32), "llama__attention__value_length": ("uint32", 32)}
    write_with_peer(tmp_path / "m.gguf", config, **lengths)
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == config


@pytest.mark.parametrize("scaling", [RopeScaling(), RopeScaling(factor=32.0), RopeScaling(factor=16.0)])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_llama_3_1_scaling_is_recovered_from_the_factors(tmp_path: Path, scaling: RopeScaling, head_dim: int) -> None:
    config = replace(SMALL, num_attention_heads=256 // head_dim, num_key_value_heads=1, head_dim=head_dim, rope_scaling=scaling)
    factors = rope_factors(config, scaling)
    rounded_elsewhere = np.where((factors > 1) & (factors < scaling.factor), factors * np.float32(1 + 1e-6), factors)
    write_with_peer(tmp_path / "m.gguf", config, factors=rounded_elsewhere)
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == config


def test_scaling_is_recovered_where_no_wavelength_is_long_enough_to_show_the_factor(tmp_path: Path) -> None:
    config = replace(SMALL, num_attention_heads=64, num_key_value_heads=64, head_dim=4, rope_scaling=RopeScaling(factor=32.0))
    factors = rope_factors(config, RopeScaling(factor=32.0))
    assert 1 < factors.max() < 32
    write_with_peer(tmp_path / "m.gguf", config, factors=factors)
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == config


def test_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf", factors=np.ones(32))
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == SMALL


@pytest.mark.parametrize("factors", [np.linspace(1, 8, 32), np.full(32, np.nan), np.full(32, np.inf), np.zeros(32), np.full(32, -8.0)])
def test_factors_of_another_scaling_are_refused(tmp_path: Path, factors: np.ndarray) -> None:
    write_with_peer(tmp_path / "m.gguf", factors=factors)
    with pytest.raises(ConfigError, match=r"is no Llama 3\.1 rotary scaling") as caught:
        GgufSource(tmp_path / "m.gguf")
    assert caught.value.hint


def test_another_architecture_is_refused_with_the_known_one(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf", architecture="lama4")
    with pytest.raises(ConfigError, match=r"general\.architecture is 'lama4'") as caught:
        GgufSource(tmp_path / "m.gguf")
    assert caught.value.hint == "herd reads one architecture, 'llama'; did you mean 'llama'?"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama__expert_count": ("uint32", 8)}, "mixture of experts"),
        ({"split__count": ("uint16", 3)}, "one of 3 splits"),
        ({"llama__rope__scaling__type": ("string", "yarn")}, r"scaling\.type is 'yarn'"),
        ({"llama__attention__value_length": ("uint32", 32)}, "value_length is 32, the head size is 64"),
        ({"llama__vocab_size": ("uint32", 0)}, "vocab_size is 0"),
        ({"llama__vocab_size": ("string", "many")}, "vocab_size is 'many'"),
        ({"llama__vocab_size": ("bool", True)}, "vocab_size is True"),
        ({"llama__vocab_size": ("array", [48])}, "vocab_size is an array"),
        ({"llama__attention__layer_norm_rms_epsilon": ("uint32", 1)}, "epsilon is 1, it must be a finite number"),
        ({"llama__attention__layer_norm_rms_epsilon": ("float32", float("nan"))}, "epsilon is nan"),
        ({"llama__attention__head_count_kv": ("uint32", 3)}, "4 query heads cannot share 3 KV heads"),
        ({"herd__rms_norm_eps": ("float64", 1e-3)}, "herd.rms_norm_eps is 0.001 where llama.cpp's own key says 1e-05"),
        ({"herd__rope__scaling": ("array", [8.0, 1.0])}, "not three finite numbers"),
        ({"herd__norm_dtype": ("string", "F8")}, "norm_dtype is not one of F32, F16, BF16"),
    ],
)
def test_metadata_that_herds_llama_cannot_be_is_refused(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    skip = tuple(
        {"llama__attention__layer_norm_rms_epsilon": "add_layer_norm_rms_eps", "llama__attention__head_count_kv": "add_head_count_kv"}.get(
            key, ""
        )
        for key in extra
    )
    write_with_peer(tmp_path / "m.gguf", without=skip, **extra)
    with pytest.raises(ConfigError, match=message) as caught:
        GgufSource(tmp_path / "m.gguf")
    assert caught.value.hint


@pytest.mark.parametrize(
    "method", ["add_block_count", "add_context_length", "add_embedding_length", "add_head_count", "add_layer_norm_rms_eps"]
)
def test_a_missing_key_is_named(tmp_path: Path, method: str) -> None:
    write_with_peer(tmp_path / "m.gguf", without=(method,))
    with pytest.raises(ConfigError, match=r"the file has no key llama\.") as caught:
        GgufSource(tmp_path / "m.gguf")
    assert caught.value.hint


def test_a_config_of_other_shapes_is_refused_with_both(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf", llama__vocab_size=("uint32", 49))
    with pytest.raises(CheckpointError, match=r"token_embd\.weight has shape \(48, 256\), the config says \(49, 256\)"):
        GgufSource(tmp_path / "m.gguf")


def test_norms_that_do_not_fit_the_dtype_named_are_refused(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf", herd__norm_dtype=("string", "BF16"))
    with (
        GgufSource(tmp_path / "m.gguf") as source,
        pytest.raises(CheckpointError, match=r"model\.norm\.weight does not fit herd\.norm_dtype"),
    ):
        source.read("model.norm.weight")


def test_a_name_that_the_model_lacks_and_a_closed_source_are_refused(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf")
    source = GgufSource(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.norm\.bias'"):
        source.read("model.norm.bias")
    held = source.read("model.norm.weight")
    source.close()
    assert held.shape == (256,)
    with pytest.raises(CheckpointError, match="is closed"):
        source.read("model.norm.weight")


def test_a_path_that_is_no_file_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(NotFoundError, match="cannot read"):
            GgufSource(path)


def test_what_was_read_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "m.gguf", kind="Q8_0")
    before = (tmp_path / "m.gguf").read_bytes()
    with GgufSource(tmp_path / "m.gguf") as source:
        source.read("model.norm.weight").zero_()
        source.read("model.embed_tokens.weight").zero_()
    assert (tmp_path / "m.gguf").read_bytes() == before


def test_the_rows_of_q_and_k_are_interleaved_within_their_heads() -> None:
    config = replace(SMALL, num_attention_heads=2, num_key_value_heads=1, head_dim=6)
    rows = interleaved_rows("model.layers.0.self_attn.q_proj.weight", config)
    assert rows is not None
    assert rows.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleaved_rows("model.layers.0.self_attn.v_proj.weight", config) is None


@pytest.mark.parametrize("key_type", [kind for kind in gguf.GGUFValueType if kind != gguf.GGUFValueType.ARRAY])
def test_every_scalar_type_of_the_gguf_package_is_read(tmp_path: Path, key_type: gguf.GGUFValueType) -> None:
    value = {gguf.GGUFValueType.STRING: "grüße", gguf.GGUFValueType.BOOL: True}.get(key_type, 100)
    value = 0.25 if "FLOAT" in key_type.name else value
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_key_value("one", value, key_type)
    writer.add_key_value("many", [value, value], gguf.GGUFValueType.ARRAY, sub_type=key_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    header = parse_header((tmp_path / "m.gguf").read_bytes(), "m.gguf")
    assert header.metadata["one"] == Typed(type=ValueType(key_type), value=value)
    assert header.metadata["many"].value == Array(item=ValueType(key_type), values=(value, value))


def scalars(kind: ValueType) -> st.SearchStrategy[Any]:
    if kind is ValueType.STRING:
        return st.text(max_size=9)
    if kind is ValueType.BOOL:
        return st.booleans()
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return st.floats(width=32 if kind is ValueType.FLOAT32 else 64, allow_nan=False)
    bits = 8 * np.dtype(SCALAR_CODES[kind]).itemsize if kind not in (ValueType.UINT64, ValueType.INT64) else 64
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if "U" not in kind.name else st.integers(0, 2**bits - 1)


def arrays(item: ValueType, depth: int) -> st.SearchStrategy[Array]:
    values = st.lists(typed_values(item, depth + 1), max_size=4)
    return values.map(lambda found: Array(item=item, values=tuple(found)))


def typed_values(kind: ValueType, depth: int = 0) -> st.SearchStrategy[Any]:
    if kind is not ValueType.ARRAY:
        return scalars(kind)
    items = [item for item in ValueType if item is not ValueType.ARRAY or depth < 2]
    return st.sampled_from(items).flatmap(lambda item: arrays(item, depth))


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.sampled_from(list(ValueType)).flatmap(lambda kind: typed_values(kind).map(lambda value: Typed(type=kind, value=value))),
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_metadata_comes_back_as_it_was_packed(metadata: dict[str, Typed]) -> None:
    metadata.pop("general.alignment", None)
    assert parse_header(pack_header(metadata, []), "memory").metadata == metadata


@given(cut=st.integers(0, 400), at=st.integers(0, 399), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_cut_or_changed_header_parses_or_is_a_checkpoint_error(cut: int, at: int, byte: int) -> None:
    metadata = {
        "a": Typed(type=ValueType.STRING, value="x" * 40),
        "b": Typed(type=ValueType.ARRAY, value=Array(item=ValueType.STRING, values=("y",) * 9)),
    }
    header = bytearray(pack_header(metadata, []))
    header[at % len(header)] = byte
    try:
        parse_header(bytes(header[:cut]), "memory")
    except CheckpointError as error:
        assert error.hint


def test_the_name_limit_is_ggmls() -> None:
    assert all(len(gguf_name(name)) <= MAX_NAME_BYTES for name in replace(SMALL, num_hidden_layers=126).parameter_shapes())
