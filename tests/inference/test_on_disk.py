"""What serving a model would take, from its headers alone: the engine's own figure, and offers that the engine's plan agrees with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.checkpoint.load import load_model
from herd.engine.build import plan_for
from herd.engine.memory import EngineConfig, plan_memory, with_context
from herd.inference import on_disk
from herd.inference.on_disk import DiskModel, fit_text, from_dict, models_on_disk, offer
from herd.model.presets import PRESETS

MIB, GIB = 2**20, 2**30
BIG = PRESETS["llama-3.1-8b"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of Hugging Face's that is empty, and no models that ship."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: tmp_path / "none")
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_guard", lambda: tmp_path / "none")
    return tmp_path / "hub"


def put(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_what_a_model_needs_is_what_the_engine_allocates(tiny_folder: Path, herd_home: Path) -> None:
    put(tiny_folder, herd_home / "models" / "mine")
    (found,) = models_on_disk()
    model = load_model(tiny_folder)
    plan = plan_for(model, with_context(model.config, EngineConfig(), dtype="float32"))
    size = sum(file.stat().st_size for file in tiny_folder.iterdir())
    assert (found.name, found.size_bytes, found.problem, found.num_parameters) == ("mine", size, None, model.config.num_parameters)
    assert (found.dtype, found.context, found.needs_bytes) == ("float32", 512, plan.total_bytes)
    assert model.dtype == torch.float32 and found.fixed_bytes == plan.total_bytes - plan.cache_bytes


def test_the_cache_of_hugging_face_is_listed_by_hub_name_and_what_is_no_llama_left_out(
    tiny_folder: Path, herd_home: Path, cache: Path
) -> None:
    put(tiny_folder, herd_home / "models" / "org" / "both")
    for name in ("org--both", "org--cached-model"):
        put(tiny_folder, cache / f"models--{name}" / "snapshots" / "abc")
    other = put(tiny_folder, cache / "models--org--bert" / "snapshots" / "abc")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"], "model_type": "bert"}))
    (cache / "models--org--unfetched" / "refs").mkdir(parents=True)
    assert [model.name for model in models_on_disk()] == ["org/both", "org/cached-model"]
    # What lies in herd's own folder and cannot be served is told of, with the reason.
    put(other, herd_home / "models" / "wrong")
    (herd_home / "models" / "damaged.gguf").write_bytes(b"12345")
    problems = {model.name: model.problem for model in models_on_disk() if model.problem}
    assert set(problems) == {"wrong", "damaged.gguf"} and "BertModel" in str(problems["wrong"])


def test_the_list_goes_to_another_process_as_json(tiny_folder: Path, herd_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tiny_folder, herd_home / "models" / "mine")
    on_disk.main()
    assert [from_dict(row) for row in json.loads(capsys.readouterr().out)] == models_on_disk()


def eight_billion() -> DiskModel:
    """The 8B in 16 bits, as it would be served with all of its context."""
    engine = EngineConfig(context=BIG.max_position_embeddings)
    plan = plan_memory(BIG, engine, dtype="bfloat16")
    return DiskModel(
        name="llama3.1:8b",
        path="/",
        size_bytes=16 * GIB,
        num_parameters=BIG.num_parameters,
        dtype="bfloat16",
        context=plan.context,
        needs_bytes=plan.total_bytes,
        fixed_bytes=plan.total_bytes - plan.cache_bytes,
        token_bytes=BIG.kv_bytes_per_token(2),
    )


@given(room=st.integers(0, 48 * GIB))
def test_what_is_offered_the_engine_grants(room: int) -> None:
    model = eight_billion()
    found = offer(model, room)
    assert model.needs_bytes is not None and model.fixed_bytes is not None
    if found is None:
        assert room < model.fixed_bytes + 2400 * BIG.kv_bytes_per_token(2)
        assert fit_text(model, room).startswith("no: ")
    elif not found.options:
        assert found.needs_bytes == model.needs_bytes <= room and fit_text(model, room) == "yes"
    else:
        options = dict(zip(found.options[::2], found.options[1::2], strict=True))
        limit, context = int(options["--memory"].removesuffix("MiB")) * MIB, int(options["--context"])
        plan = plan_memory(BIG, EngineConfig(memory_bytes=limit, context=context), dtype="bfloat16")
        assert plan.total_bytes <= limit == found.needs_bytes <= room and plan.context == found.context >= 2048
        assert fit_text(model, room) == "with " + " ".join(found.options)


def test_no_figure_is_made_up_where_none_is_known() -> None:
    assert offer(DiskModel(name="x", path="/", size_bytes=1, problem="it is damaged"), 48 * GIB) is None
    assert fit_text(DiskModel(name="x", path="/", size_bytes=1, problem="it is damaged"), None) == "it is damaged"
    assert fit_text(eight_billion(), None).startswith("unknown")
