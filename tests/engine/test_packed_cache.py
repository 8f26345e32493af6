"""Packed weights on disk: the second start has the first one's bits without the checkpoint; what is damaged, stale or too much goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import CONFIG, answers, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, UsageError
from herd.checkpoint.load import load_model, save_model
from herd.engine.disk.identity import state_name
from herd.engine.packed import cache
from herd.engine.packed.digests import digests_of
from herd.engine.packed.file import Damaged, read, write
from herd.engine.packed.mapped import locate
from herd.engine.packed.names import target_of
from herd.engine.packed.weights import PackedModel, PackedWeights, pack_model
from herd.engine.runner import CpuRunner
from herd.kernels import dispatch
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.quant.run import quantise_checkpoint
from herd.quant.schemes import Settings

pytestmark = pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here")
REQUESTS = mixed_requests(12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_model(small_model(torch.bfloat16), folder / "whole")
    quantise_checkpoint(folder / "whole", folder / "int8", Settings(scheme="int8", method="rtn"))
    return folder / "int8"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HERD_PACKED_BYTES", raising=False)
    yield


def files() -> list[Path]:
    return sorted(cache.packed_dir().glob("*.herdpack"))


def key(folder: Path, dtype: str) -> str:
    return target_of(digests_of(folder), dtype).stem


def reading_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the checkpoint is read")

    monkeypatch.setattr(cache, "load_model", refuse)


def test_a_second_start_maps_what_the_first_one_packed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(small_engine(load_model(checkpoint)), REQUESTS, at_once=4)
    first = cache.load_for_engine(checkpoint)
    assert isinstance(first, PackedModel) and len(files()) == 1
    reading_is_forbidden(monkeypatch)
    second = cache.load_for_engine(checkpoint)
    assert isinstance(second, PackedModel) and len(files()) == 1
    for model in (first, second):
        engine = small_engine(model)
        assert isinstance(engine.stepper.runner, CpuRunner) and engine.stepper.runner._forward is not None
        assert answers(engine, REQUESTS, at_once=4) == expected


@pytest.mark.parametrize("scheme", ["fp8", "fp8-meta"])
def test_fp8_stays_8_bits_and_is_mapped(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = Transformer(replace(CONFIG, num_hidden_layers=3))  # Meta's recipe leaves the first and the last as they are
    save_model(initialise(model, seed=3, dtype=torch.bfloat16), tmp_path / "whole")
    quantise_checkpoint(tmp_path / "whole", tmp_path / scheme, Settings(scheme=scheme))
    expected = answers(small_engine(load_model(tmp_path / scheme)), REQUESTS[:4])
    cache.load_for_engine(tmp_path / scheme)
    reading_is_forbidden(monkeypatch)
    mapped = cache.load_for_engine(tmp_path / scheme)
    assert isinstance(mapped, PackedModel)
    gate_up = mapped.packed.blocks[1].gate_up
    padded = 2 * -(-gate_up.num_outputs // 32) * 32
    assert gate_up.size_bytes == padded * (gate_up.num_inputs + 4)
    engine = small_engine(mapped)
    assert engine.plans[0].weights_bytes == mapped.packed.size_bytes
    assert answers(engine, REQUESTS[:4]) == expected


def test_the_plan_counts_the_bytes_that_are_there(checkpoint: Path) -> None:
    model = cache.load_for_engine(checkpoint)
    assert isinstance(model, PackedModel)
    (plan,) = small_engine(model).plans
    assert plan.weights_bytes == model.packed.size_bytes < 1.05 * files()[0].stat().st_size


def test_a_changed_checkpoint_is_another_and_a_touched_one_the_same(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    digest = key(copy, "bfloat16")
    assert digest == key(checkpoint, "bfloat16") != key(checkpoint, "float32")
    weights = next(copy.glob("*.safetensors"))
    os.utime(weights)
    assert key(copy, "bfloat16") == digest
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert key(copy, "bfloat16") != digest


@pytest.mark.parametrize("harm", ["cut", "header", "magic", "layout", "section", "empty"])
def test_a_damaged_file_is_made_anew(
    checkpoint: Path, harm: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.load_for_engine(checkpoint)
    (path,) = files()
    whole = path.read_bytes()
    if harm == "layout":
        monkeypatch.setattr("herd.engine.packed.file.LAYOUT", "0.0")
        with pytest.raises(Damaged, match="layout"):
            read(path)
        return
    changed = bytearray(whole)
    places = {"header": 100, "magic": 3, "section": len(whole) - 8192}
    if harm in places:
        changed[places[harm]] ^= 4
    if harm == "section":
        changed[-4096 * 2 :] = bytes(4096 * 2)
    path.write_bytes({"cut": whole[:-4096], "empty": b""}.get(harm, bytes(changed)))
    with pytest.raises(Damaged):
        read(path)
    assert isinstance(cache.load_for_engine(checkpoint), PackedModel)
    assert files() == [path] and path.read_bytes() == whole
    assert "made anew" in caplog.text


def test_a_write_that_fails_leaves_nothing_and_the_model_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write", full)
    model = cache.load_for_engine(checkpoint)
    assert not isinstance(model, PackedModel) and not files()
    assert len(answers(small_engine(model), REQUESTS[:2])) == 2


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache.packed_dir().mkdir(parents=True)
    for number, name in enumerate("abc"):
        path = cache.packed_dir() / f"{name}.herdpack"
        path.write_bytes(bytes(1000))
        os.utime(path, (number, number))
    (cache.packed_dir() / "other.digests").write_bytes(bytes(1000))
    assert [path.name for path in cache.make_room(2000)] == ["a.herdpack"]
    assert [path.name for path in cache.make_room(10, keep=cache.packed_dir() / "b.herdpack")] == ["c.herdpack"]
    assert len(files()) == 1


def test_none_is_kept_where_none_is_wanted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_PACKED_BYTES", "0")
    assert not isinstance(cache.load_for_engine(checkpoint), PackedModel) and not cache.packed_dir().exists()
    monkeypatch.setenv("HERD_PACKED_BYTES", "much")
    with pytest.raises(ConfigError, match="HERD_PACKED_BYTES='much' is no number of bytes"):
        cache.load_for_engine(checkpoint)


def test_a_checkpoint_of_16_bits_is_loaded_as_ever_and_packed_for_a_start_without_torch(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint.parent / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(cache, "MOST_PLAIN_BYTES", 1000)
        assert not isinstance(cache.load_for_engine(whole), PackedModel) and not files()
    assert not isinstance(cache.load_for_engine(whole), PackedModel) and len(files()) == 1
    (path,) = files()
    assert locate(whole, None) == locate(whole, "bfloat16") == path and locate(whole, "float32") is None


def test_a_packed_model_does_nothing_but_generate(checkpoint: Path) -> None:
    model = cache.load_for_engine(checkpoint)
    with pytest.raises(UsageError, match="it generates, and does nothing else"):
        model(torch.zeros(1, 1, dtype=torch.long))


def test_states_of_cached_prefixes_know_the_weights(checkpoint: Path) -> None:
    """Of packed models by their digest, of others by every buffer too, as quantised matrices are buffers."""
    model, packed = load_model(checkpoint), cache.load_for_engine(checkpoint)
    assert isinstance(packed, PackedModel)
    name = state_name(model, runner="CpuRunner", layout="x")
    model.model.layers[0].self_attn.q_proj.scales[0, 0] *= 2  # pyright: ignore
    assert state_name(model, runner="CpuRunner", layout="x") != name
    other = PackedModel(packed.config, packed.packed, dtype=packed.dtype, digest="another")
    assert state_name(packed, runner="CpuRunner", layout="x") != state_name(other, runner="CpuRunner", layout="x")


def test_every_kind_of_matrix_comes_back(tmp_path: Path) -> None:
    from quant_models import QUANT_KINDS, Kind, quantise_model  # pyright: ignore[reportMissingImports]

    for number, kind in enumerate([*QUANT_KINDS, Kind(bits=8, floats=True, activation="fp8", bound=1200.0)]):
        if 48 % (kind.group or 8) or 112 % (kind.group or 8):
            continue
        weights = pack_model(quantise_model(small_model(torch.bfloat16), kind, head=True))
        write(tmp_path / f"{number}", weights, {"number": number})
        stored, facts = read(tmp_path / f"{number}")
        found = PackedWeights.of(stored)
        assert stored.size_bytes == found.size_bytes and facts == {"number": number}
        assert all(torch.equal(a, b) for a, b in zip(weights.tensors(), found.tensors(), strict=True))
        for old, new in zip(weights.blocks, found.blocks, strict=True):
            for name in ("qkv", "out", "gate_up", "down"):
                one, other = getattr(old, name), getattr(new, name)
                assert replace(one, data=other.data, columns=other.columns) is not None and one.quant == other.quant
                np.testing.assert_array_equal(one.weight().float().numpy(), other.weight().float().numpy())
