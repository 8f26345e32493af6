"""What herd writes as GGUF is what the gguf package reads, and comes back as it was."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from herd.base.errors import CheckpointError, TokenizerError, UsageError
from herd.checkpoint import gguf_read, gguf_write
from herd.checkpoint.gguf_read import GgufSource
from herd.checkpoint.gguf_tokenizer import gguf_tokenizer
from herd.checkpoint.gguf_write import QUANTISATIONS, write_gguf
from herd.checkpoint.source import Format, TensorInfo
from herd.model.config import ModelConfig, RopeScaling
from herd.model.presets import PRESETS
from herd.text.rank_file import read_ranks
from herd.text.specials import EOT, SPECIAL_TOKENS
from herd.text.tokenizer import Tokenizer

TINY = ModelConfig(
    vocab_size=520,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(),
)


class MemorySource:
    """A checkpoint of random weights in memory."""

    format: Format = "hf"

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> None:
        self.config = config
        self.path = Path("/somewhere/Llama-3.1-Tiny")
        generator = torch.Generator().manual_seed(5)
        self.weights = {
            name: (torch.randn(shape, generator=generator) * scale).to(dtype) for name, shape in config.parameter_shapes().items()
        }
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(shape=tuple(value.shape), dtype=value.dtype, stored="BF16", size_bytes=value.nbytes)
            for name, value in self.weights.items()
        }

    def read(self, name: str) -> Tensor:
        return self.weights[name]

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


def small_tokenizer() -> Tokenizer:
    longer = [b" t", b"he", b" the", "é".encode(), b"\xff\xfe"]
    tokens = [*(bytes([byte]) for byte in range(256)), *longer]
    return Tokenizer({token: rank for rank, token in enumerate(tokens)})


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's permutation of q and k, as its converter writes it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def peer_rope_factors(config: ModelConfig, scaling: RopeScaling) -> list[float]:
    """llama.cpp's factors, one pair at a time, as its converter computes them."""
    factors: list[float] = []
    for pair in range(config.head_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.head_dim)
        low = scaling.original_max_position_embeddings / scaling.low_freq_factor
        high = scaling.original_max_position_embeddings / scaling.high_freq_factor
        smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        middle = 1 / ((1 - smooth) / scaling.factor + smooth)
        factors.append(1.0 if wavelength < high else scaling.factor if wavelength > low else middle)
    return factors


def peer_tensors(path: Path) -> dict[str, gguf.gguf_reader.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32", "Q8_0", "Q4_0"])
def test_the_gguf_package_reads_names_shapes_kinds_and_bytes(tmp_path: Path, kind: str) -> None:
    source = MemorySource(TINY)
    write_gguf(source, tmp_path / "m.gguf", quantisation=kind)
    tensors = peer_tensors(tmp_path / "m.gguf")
    names = {f"blk.{layer}.{part}.weight" for layer in range(2) for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")}
    names |= {f"blk.{layer}.{part}.weight" for layer in range(2) for part in ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
    assert tensors.keys() == names | {"token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"}
    for name, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight"),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight"),
    ):
        tensor = tensors[theirs]
        wanted = source.weights[name].float().numpy()
        heads = {"blk.1.attn_q.weight": 4, "blk.0.attn_k.weight": 2}.get(theirs)
        wanted = wanted if heads is None else interleave(wanted, heads)
        assert tensor.tensor_type.name == kind
        assert tuple(tensor.shape[::-1].tolist()) == wanted.shape
        assert tensor.data.tobytes() == gguf.quants.quantize(wanted, gguf.GGMLQuantizationType[kind]).tobytes()
    norm = tensors["blk.0.ffn_norm.weight"]
    assert norm.tensor_type.name == "F32"
    np.testing.assert_array_equal(norm.data, source.weights["model.layers.0.post_attention_layernorm.weight"].float().numpy())


def test_the_gguf_package_reads_the_keys_that_llama_cpp_writes(tmp_path: Path) -> None:
    write_gguf(MemorySource(TINY), tmp_path / "m.gguf", quantisation="Q8_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    wanted = {
        "general.architecture": "llama",
        "general.name": "Llama-3.1-Tiny",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q8_0),
        "general.alignment": 32,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.block_count": 2,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": 520,
    }
    assert {key: keys[key] for key in wanted} == wanted
    assert keys["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    assert reader.fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["llama.rope.freq_base"].types == [gguf.GGUFValueType.FLOAT32]


def test_the_file_types_are_llama_cpps() -> None:
    special = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S"}
    assert {name: special.get(name, f"MOSTLY_{name}") for name in gguf_write.FILE_TYPES} == {
        name: gguf.LlamaFileType(number).name for name, number in gguf_write.FILE_TYPES.items()
    }


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rope_factors_are_those_of_llama_cpps_converter(tmp_path: Path, factor: float, head_dim: int) -> None:
    config = replace(TINY, head_dim=head_dim, num_hidden_layers=1, rope_scaling=RopeScaling(factor=factor))
    write_gguf(MemorySource(config), tmp_path / "m.gguf")
    factors = peer_tensors(tmp_path / "m.gguf")["rope_freqs.weight"].data
    np.testing.assert_allclose(factors, peer_rope_factors(config, RopeScaling(factor=factor)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_config_come_back_byte_for_byte(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    config = replace(TINY, tie_word_embeddings=tied, rms_norm_eps=1.23456789e-6, rope_theta=123456.789, initializer_range=0.006)
    source = MemorySource(replace(config, rope_scaling=RopeScaling(factor=3.7, high_freq_factor=5.0)), dtype)
    write_gguf(source, tmp_path / "m.gguf", quantisation="keep")
    with GgufSource(tmp_path / "m.gguf") as back:
        assert back.config == source.config
        assert list(back.tensors) == list(source.tensors)
        for name, weight in source.weights.items():
            read = back.read(name)
            assert read.dtype == back.tensors[name].dtype == dtype
            assert read.shape == back.tensors[name].shape
            assert torch.equal(read.view(torch.uint8), weight.view(torch.uint8))


def test_keep_writes_what_the_dtype_names(tmp_path: Path) -> None:
    for dtype, kind in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")):
        write_gguf(MemorySource(TINY, dtype), tmp_path / "keep.gguf", quantisation="keep")
        write_gguf(MemorySource(TINY, dtype), tmp_path / "named.gguf", quantisation=kind)
        assert (tmp_path / "keep.gguf").read_bytes() == (tmp_path / "named.gguf").read_bytes()


def test_a_gguf_file_written_from_a_gguf_file_is_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "Llama-3.1-Tiny.gguf"
    write_gguf(MemorySource(TINY), path)
    first = path.read_bytes()
    with GgufSource(path) as source:
        write_gguf(source, path, quantisation="keep")
    assert path.read_bytes() == first


def test_norms_of_mixed_dtypes_come_back_as_float32(tmp_path: Path) -> None:
    source = MemorySource(replace(TINY, num_hidden_layers=1))
    source.weights["model.norm.weight"] = source.weights["model.norm.weight"].float() + 1e-6
    source.tensors = {**source.tensors, "model.norm.weight": replace(source.tensors["model.norm.weight"], dtype=torch.float32)}
    write_gguf(source, tmp_path / "m.gguf")
    with GgufSource(tmp_path / "m.gguf") as back:
        assert torch.equal(back.read("model.norm.weight"), source.weights["model.norm.weight"])
        assert back.tensors["model.layers.0.input_layernorm.weight"].dtype == torch.float32


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(MemorySource(TINY), tmp_path / "whole.gguf", quantisation="Q4_0")
    with GgufSource(tmp_path / "whole.gguf") as source:
        whole = {name: source.read(name) for name in source.tensors}
    monkeypatch.setattr(gguf_write, "CHUNK_VALUES", 640)
    monkeypatch.setattr(gguf_read, "CHUNK_VALUES", 640)
    write_gguf(MemorySource(TINY), tmp_path / "chunks.gguf", quantisation="Q4_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "chunks.gguf").read_bytes()
    with GgufSource(tmp_path / "chunks.gguf") as source:
        assert all(torch.equal(source.read(name), values) for name, values in whole.items())


def test_temporary_memory_is_that_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, vocab_size=20_000, num_hidden_layers=1, tie_word_embeddings=True)
    monkeypatch.setattr(gguf_write, "CHUNK_VALUES", 8192)
    monkeypatch.setattr(gguf_read, "CHUNK_VALUES", 8192)
    source = MemorySource(config)
    write_gguf(source, tmp_path / "m.gguf", quantisation="Q4_0")
    with GgufSource(tmp_path / "m.gguf") as back:
        back.read("model.norm.weight")
        tracemalloc.start()
        try:
            back.read("model.embed_tokens.weight")
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 1_000_000 < 20_000 * 64 * 4


def test_rows_that_fill_no_blocks_are_refused_by_name(tmp_path: Path) -> None:
    config = replace(TINY, intermediate_size=100)
    with pytest.raises(UsageError, match=r"model\.layers\.0\.mlp\.down_proj\.weight has rows of 100 values.*blocks of 32") as caught:
        write_gguf(MemorySource(config), tmp_path / "m.gguf", quantisation="Q4_0")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "hint"), [("Q8", "did you mean 'Q8_0'?"), ("int3", "choose from BF16|choose from F32")])
def test_an_unknown_quantisation_is_refused_with_the_known_ones(tmp_path: Path, asked: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_gguf(MemorySource(TINY), tmp_path / "m.gguf", quantisation=asked)
    assert caught.value.hint is not None
    assert any(caught.value.hint.startswith(start) for start in hint.split("|"))


@pytest.mark.parametrize(("kind", "value"), [("F16", 7e4), ("Q8_0", 9e6), ("Q4_0", 6e5), ("Q8_0", math.nan), ("Q4_0", math.inf)])
def test_a_value_beyond_its_kind_is_refused_and_the_old_file_stays(tmp_path: Path, kind: str, value: float) -> None:
    (tmp_path / "m.gguf").write_bytes(b"old")
    source = MemorySource(TINY)
    source.weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    with pytest.raises(CheckpointError, match=r"up_proj\.weight holds .* " + kind) as caught:
        write_gguf(source, tmp_path / "m.gguf", quantisation=kind)
    assert caught.value.hint
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("m.gguf", b"old")]


def test_a_source_that_lacks_a_tensor_or_has_another_shape_is_refused(tmp_path: Path) -> None:
    source = MemorySource(TINY)
    source.tensors = {name: info for name, info in source.tensors.items() if name != "model.norm.weight"}
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.norm\.weight'"):
        write_gguf(source, tmp_path / "m.gguf")
    source = MemorySource(TINY)
    source.config = replace(TINY, vocab_size=521)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has shape \(520, 64\), the config says \(521, 64\)"):
        write_gguf(source, tmp_path / "m.gguf")
    source = MemorySource(TINY, torch.float64)
    with pytest.raises(CheckpointError, match=r"is torch\.float64"):
        write_gguf(source, tmp_path / "m.gguf")


def test_the_plan_of_every_preset_fits_the_format(tmp_path: Path) -> None:
    for preset in PRESETS.values():
        config = getattr(preset, "config", preset)
        source = MemorySource(TINY)
        source.config = config
        source.tensors = {
            name: TensorInfo(shape=shape, dtype=torch.bfloat16, stored="BF16", size_bytes=0)
            for name, shape in config.parameter_shapes().items()
        }
        plan = gguf_write._plan(source, "BF16")
        matrices = sum(2 * math.prod(tensor.shape) for tensor in plan.values() if len(tensor.shape) > 1)
        assert max(tensor.offset + tensor.size_bytes for tensor in plan.values()) >= matrices
        assert all(tensor.offset % 32 == 0 for tensor in plan.values())


def test_a_tokenizer_comes_back_as_it_was(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    write_gguf(MemorySource(TINY), tmp_path / "m.gguf", tokenizer=tokenizer)
    back = gguf_tokenizer(tmp_path / "m.gguf")
    assert back.ranks == tokenizer.ranks
    assert back.special_tokens == tokenizer.special_tokens
    assert back.encode("then the é\n", bos=True) == tokenizer.encode("then the é\n", bos=True)
    with GgufSource(tmp_path / "m.gguf") as source:
        assert source.config == TINY


def test_the_gguf_package_reads_the_tokenizer_as_llama_cpp_writes_it(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    write_gguf(MemorySource(TINY), tmp_path / "m.gguf", tokenizer=tokenizer)
    keys = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    assert len(tokens) == len(types) == TINY.vocab_size
    assert tokens[258:260] == ["Ġthe", "Ã©"]
    assert tokens[261 : 261 + 256] == list(SPECIAL_TOKENS)
    assert tokens[517:] == ["[PAD517]", "[PAD518]", "[PAD519]"]
    assert types == [int(gguf.TokenType.NORMAL)] * 261 + [int(gguf.TokenType.CONTROL)] * 256 + [int(gguf.TokenType.UNUSED)] * 3
    assert keys["tokenizer.ggml.merges"] == ["Ġ t", "h e", "Ġt he", "Ã ©", "ÿ þ"]
    ids = {"bos": 261, "eos": 262, "eot": tokenizer.special_tokens[EOT], "eom": 269, "padding": 265}
    assert {name: keys[f"tokenizer.ggml.{name}_token_id"] for name in ids} == ids
    assert keys["tokenizer.ggml.add_bos_token"] is True


def test_the_first_tokens_of_llama_3_come_back_as_they_were(tmp_path: Path, shared_data: Path) -> None:
    ranks = read_ranks(shared_data / "reference" / "llama3" / "tokenizer.model")
    tokenizer = Tokenizer({token: rank for token, rank in ranks.items() if rank < 20_000})
    config = replace(TINY, vocab_size=20_256, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=True)
    write_gguf(MemorySource(config), tmp_path / "m.gguf", tokenizer=tokenizer)
    back = gguf_tokenizer(tmp_path / "m.gguf")
    assert (back.ranks, back.special_tokens) == (tokenizer.ranks, tokenizer.special_tokens)


def test_a_tokenizer_over_the_models_rows_or_with_its_own_splitting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="517 tokens, the model 516 rows"):
        write_gguf(MemorySource(replace(TINY, vocab_size=516)), tmp_path / "m.gguf", tokenizer=small_tokenizer())
    foreign = Tokenizer(small_tokenizer().ranks, split_regex=r"\w+|\W+")
    with pytest.raises(TokenizerError, match="splits text in its own way"):
        write_gguf(MemorySource(TINY), tmp_path / "m.gguf", tokenizer=foreign)


def test_every_quantisation_is_offered() -> None:
    assert set(QUANTISATIONS) == {"BF16", "F16", "F32", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "keep"}
