"""Quantised files of other writers: packers written out again here, the reference package, and damaged files with named errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.base.errors import CheckpointError, HerdError
from herd.checkpoint.load import load_model, outline_of, save_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.quant_hf import QuantHfSource
from herd.checkpoint.quant_parts import AWQ_ORDER, decode, encode, written_parts
from herd.checkpoint.quant_scheme import MatrixScheme, linear_names, schemes_from_json, schemes_to_json
from herd.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.quant.rounding import round_matrix
from herd.quant.run import quantise_checkpoint
from herd.quant.schemes import Settings, int4_scheme

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    initializer_range=0.1,
)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    initialise(model, seed=1)
    folder = tmp_path_factory.mktemp("formats") / "plain"
    save_model(model.bfloat16(), folder)
    return folder


def words(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes in 32-bit words, lowest bits first, by arithmetic on Python's integers."""
    per = 32 // bits
    rows = []
    for row in codes.tolist():
        packed = [sum(code << (bits * place) for place, code in enumerate(row[begin : begin + per])) for begin in range(0, len(row), per)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in packed])
    return torch.tensor(rows, dtype=torch.int32)


def matrix(n: int = 16, k: int = 32, groups: int = 4, bits: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n + k + groups)
    return {
        "codes": torch.randint(0, 2**bits, (n, k), generator=generator),
        "zeros": torch.randint(1, 16, (n, groups), generator=generator) if bits == 4 else torch.full((n, groups), 128),
        "scales": (torch.rand(n, groups, generator=generator) + 0.1).half(),
        "g_idx": torch.arange(k, dtype=torch.int32) // (k // groups),
    }


def numbers(parts: dict[str, Tensor]) -> Tensor:
    """What a GPTQ matrix stands for, by its definition."""
    groups = parts["g_idx"].long()
    return (parts["codes"] - parts["zeros"][:, groups]) * parts["scales"].float()[:, groups]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gptq(version: Any, bits: int, shuffled: bool) -> None:
    parts = matrix(bits=bits)
    if shuffled:
        parts["g_idx"] = parts["g_idx"][torch.randperm(32, generator=torch.Generator().manual_seed(2))]
    stored = {
        "qweight": words_along_inputs(parts["codes"], bits),
        "qzeros": words((parts["zeros"] - (1 if version == "gptq" else 0)).t(), bits),
        "scales": parts["scales"].t().contiguous(),
        "g_idx": parts["g_idx"],
    }
    scheme = MatrixScheme(kind="int4" if bits == 4 else "int8", group=8, symmetric=False, layout=version)
    found = decode(stored, scheme, (16, 32), "layer.q_proj")
    assert (found.columns is not None) == shuffled
    assert torch.equal(found.dequantise(), numbers(parts))


def words_along_inputs(codes_NK: Tensor, bits: int) -> Tensor:
    """[K b/32, N]: a word holds successive inputs of one output."""
    return words(codes_NK, bits).t().contiguous()


def test_awq() -> None:
    parts = matrix()

    def pack(values_KN: Tensor) -> Tensor:
        shuffled = values_KN.view(len(values_KN), -1, 8)[:, :, list(AWQ_ORDER)].reshape(len(values_KN), -1)
        return words(shuffled, 4)

    stored = {"qweight": pack(parts["codes"].t()), "qzeros": pack(parts["zeros"].t()), "scales": parts["scales"].t().contiguous()}
    found = decode(stored, MatrixScheme(kind="int4", group=8, symmetric=False, layout="awq"), (16, 32), "layer.q_proj")
    assert torch.equal(found.dequantise(), numbers(parts))


def test_awq_nibble_order_is_the_published_one() -> None:
    codes = torch.zeros(8, 2, dtype=torch.int64)
    codes[2, 0] = 5  # output 2 of the word is its second nibble
    stored = {
        "qweight": torch.tensor([[5 << 4], [0]], dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8),
    }
    found = decode(stored, MatrixScheme(kind="int4", symmetric=False, layout="awq"), (8, 2), "w")
    assert torch.equal(found.dequantise(), codes.float())


WRITTEN = [
    MatrixScheme(kind="fp8", activation="fp8"),
    MatrixScheme(kind="fp8", activation="fp8", bound=1200.0),
    MatrixScheme(kind="int8", activation="int8"),
    MatrixScheme(kind="int8", layout="packed"),
    int4_scheme(8),
    int4_scheme(16, symmetric=False),
]


@pytest.mark.parametrize("scheme", WRITTEN, ids=lambda scheme: scheme.label)
def test_encoded_parts_are_those_declared_and_decode_to_the_same(scheme: MatrixScheme) -> None:
    weight = round_matrix(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), scheme)
    parts = encode(weight, scheme)
    assert {name: (tuple(part.shape), part.dtype) for name, part in parts.items()} == written_parts(scheme, (16, 32))
    found = decode(parts, scheme, (16, 32), "w")
    assert torch.equal(found.dequantise(), weight.dequantise())
    assert (found.activation, found.bound) == (scheme.activation, scheme.bound)


@pytest.mark.parametrize("scheme", WRITTEN, ids=lambda scheme: scheme.label)
def test_schemes_survive_their_json(scheme: MatrixScheme) -> None:
    names = linear_names(CONFIG)
    schemes = {name: scheme for name in names if name not in ("lm_head", names[3])}
    data = {"quantization_config": json.loads(json.dumps(schemes_to_json(schemes, CONFIG)))}
    assert schemes_from_json(data, CONFIG, "config.json") == schemes


def test_mixed_schemes_survive_their_json() -> None:
    names = linear_names(CONFIG)
    schemes = {name: WRITTEN[3 + place % 3] for place, name in enumerate(names[:-4])}
    data = {"quantization_config": schemes_to_json(schemes, CONFIG)}
    assert data["quantization_config"]["format"] == "pack-quantized"
    assert schemes_from_json(data, CONFIG, "config.json") == schemes


@pytest.mark.parametrize("scheme", WRITTEN, ids=lambda scheme: scheme.label)
def test_the_reference_package_reads_what_is_written(scheme: MatrixScheme) -> None:
    """compressed-tensors decompresses our parts to the very same numbers."""
    if scheme.bound is not None:
        pytest.skip("fbgemm_fp8 has the layout of float-quantized")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    weight = round_matrix(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), scheme)
    group = schemes_to_json({"model.layers.0.mlp.up_proj": scheme}, CONFIG)["config_groups"]["group_0"]
    theirs = BaseCompressor.get_value_from_registry(group["format"] if scheme.layout == "packed" else "naive-quantized")
    parts = {name: part.float() if name == "weight_scale" else part for name, part in encode(weight, scheme).items()}
    found = theirs.decompress(parts, QuantizationScheme.model_validate(group))
    assert torch.allclose(found["weight"].float(), weight.dequantise(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "wanted", [Settings(scheme="int8"), Settings(scheme="int4", group=32), Settings(scheme="w8a8"), Settings(scheme="fp8")]
)
def test_transformers_loads_what_is_written(wanted: Settings, plain_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    import warnings

    quantise_checkpoint(plain_folder, tmp_path / "out", wanted)
    tokens = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        with torch.no_grad():
            expected = theirs(tokens).logits
    with torch.no_grad():
        found = load_model(tmp_path / "out", dtype="float32")(tokens)
    # Rounded activations: compressed-tensors divides by 127.5 where w8a8 divides by 127, and one float32 bit can turn a code at its edge.
    allowed = 0.05 if wanted.scheme in ("w8a8", "fp8") else 0.02
    assert float((found - expected).abs().max()) < allowed * float(expected.abs().max())
    assert float((found - expected).abs().mean()) < 0.01 * float(expected.abs().max())


def rewritten(folder: Path, change: Any) -> None:
    """Change the tensors of a folder's file."""
    path = folder / "model.safetensors"
    file = SafetensorsFile(path)
    tensors = {name: file.read(name) for name in file.entries}
    file.close()
    change(tensors)
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    write_safetensors(path, [(name, tuple(tensors[name].shape), tensors[name].dtype) for name in names], (tensors[name] for name in names))


NAME = "model.layers.1.mlp.up_proj"


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_scale"][0, 0] = float("nan")


def _lying_shape(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_shape"] = torch.tensor([128, 32])


def _short(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_packed"] = tensors[f"{NAME}.weight_packed"][:, :-1].contiguous()


def _groups(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_scale"] = tensors[f"{NAME}.weight_scale"][:, :1].contiguous()


def _dtype(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_packed"] = tensors[f"{NAME}.weight_packed"].float()


def _missing(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{NAME}.weight_scale"]


def _extra(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight"] = torch.zeros(128, 64)


def _g_idx(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_g_idx"] = torch.full((64,), 7, dtype=torch.int32)


def _uneven(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_g_idx"] = torch.tensor([0] * 33 + [1] * 31, dtype=torch.int32)


def _plain(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        Settings(scheme="int4", group=32),
        Settings(scheme="int4", group=32, symmetric=False),
        Settings(scheme="int8"),
        Settings(scheme="fp8"),
    ],
    ids=["plain", "int4", "int4-asymmetric", "int8", "fp8"],
)
def test_an_outline_has_every_tensor_of_the_loaded_model_but_its_numbers(
    plain_folder: Path, tmp_path: Path, wanted: Settings | None
) -> None:
    folder = plain_folder
    if wanted is not None:
        folder = tmp_path / "out"
        quantise_checkpoint(plain_folder, folder, wanted)
    with open_checkpoint(folder) as source:
        outline = outline_of(source, torch.bfloat16)

    def tensors(model: Transformer) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {name: (part.dtype, part.shape) for name, part in (*model.named_parameters(), *model.named_buffers())}

    assert tensors(outline) == tensors(load_model(folder, dtype="bfloat16"))
    assert all(part.device.type == "meta" for part in (*outline.parameters(), *outline.buffers()))


@pytest.fixture(scope="module")
def int4_folder(plain_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4") / "model"
    quantise_checkpoint(plain_folder, folder, Settings(scheme="int4", group=32))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, "up_proj.weight_scale holds numbers that are NaN or infinite"),
        (_lying_shape, r"up_proj.weight_shape says \[128, 32\], the config \[128, 64\]"),
        (_short, r"up_proj.weight_packed is int32 \[128, 7\], it must be int32 \[128, 8\]"),
        (_groups, r"up_proj.weight_scale is bfloat16 \[128, 1\]"),
        (_dtype, "up_proj.weight_packed is float32"),
        (_missing, "up_proj.weight_scale, which INT4-G32 weights need"),
        (_extra, "has a tensor model.layers.1.mlp.up_proj.weight that its config has no place for"),
        (_g_idx, "up_proj.g_idx reaches from 7 to 7, there are groups 0 to 1"),
        (_uneven, "up_proj.g_idx puts 33 inputs into group 0, a group has 32"),
        (_plain, "model.norm.weight in model.safetensors is stored as I8"),
    ],
)
def test_damaged_files_are_named(change: Any, message: str, int4_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(int4_folder, tmp_path / "model")
    rewritten(tmp_path / "model", change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "model")


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["quantization_config"] |= changes
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
        ({"quantization_status": "frozen"}, "quantization_status 'frozen'"),
        ({"kv_cache_scheme": {"num_bits": 4}}, "kv_cache_scheme in config.json has 4 bits of type 'int'"),
        ({"ignore": "lm_head"}, "ignore in .* is no list of names"),
        ({"config_groups": {}}, "has no config_groups"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 3}}}}, "with 3 bits of type 'int'"),
        ({"config_groups": {"a": {"targets": ["re:("], "weights": {"num_bits": 4, "group_size": 32}}}}, r"the pattern 're:\('"),
        ({"quant_method": "gptq", "bits": 3}, "GPTQ with bits 3"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version 'gemv'"),
    ],
)
def test_configs_that_herd_does_not_read_are_named(changes: dict[str, Any], message: str, int4_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(int4_folder, tmp_path / "model")
    edited(tmp_path / "model", **changes)
    with pytest.raises(HerdError, match=message):
        load_model(tmp_path / "model")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_fuzzed_file_loads_or_is_refused_by_name(
    data: st.DataObject, int4_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(int4_folder, folder)
    name = data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    raw = bytearray((folder / name).read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little") if name.endswith("safetensors") else len(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(raw)
    try:
        load_model(folder)
    except HerdError as error:
        assert error.message


def test_convert_reads_a_quantised_folder_as_numbers(int4_folder: Path, tmp_path: Path) -> None:
    from herd.checkpoint.convert import convert

    convert(int4_folder, tmp_path / "plain", to="hf")
    with open_checkpoint(int4_folder) as one, open_checkpoint(tmp_path / "plain") as two:
        assert isinstance(one, QuantHfSource) and not isinstance(two, QuantHfSource)
        assert all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)
