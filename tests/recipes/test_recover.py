"""Recovery from rounding: what is written is what was computed with, it is nearer to the original than before, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from herd.base.config_io import apply_overrides
from herd.base.errors import ConfigError, UsageError
from herd.checkpoint.load import load_model, save_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.quant_hf import QuantHfSource
from herd.checkpoint.quant_scheme import MatrixScheme
from herd.checkpoint.verify import verify
from herd.model.init import initialise
from herd.model.quant_linear import QuantLinear, quantised_matrices
from herd.model.transformer import Transformer
from herd.quant.quality import compare
from herd.quant.run import quantise_checkpoint
from herd.quant.schemes import Settings, int4_scheme
from herd.recipes.pipeline import run_recipe
from herd.recipes.registry import find_recipe
from herd.recipes.tune_config import TuneConfig
from herd.text.tokenizer import Tokenizer
from herd.train.fake_quant import convert_to_fake, levels_for, rounded, unpack_for_training
from tiny_model import tiny_config, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

QUICK = (
    *("epochs=0", "train.num_steps=12", "train.sequence_length=48", "train.batch_size=4", "train.micro_batch_size=4"),
    *("train.compute_dtype=float32", "train.lr=1e-3", "train.warmup_steps=2", "train.eval_every=1000", "train.save_every=1000"),
    *("sample_prompts=", "heldback_one_in=6", "quant.group=16", "num_threads=1"),
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:  # noqa: F811
    with torch.device("meta"):
        model = Transformer(replace(tiny_config(tiny_tokenizer.vocab_size), initializer_range=0.2))
    initialise(model, seed=5)
    folder = tmp_path_factory.mktemp("start") / "model"
    save_model(model, folder, tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [
        {"text": f"The {word} of number {number} walks up the hill and looks at the herd. " * 2}
        for number in range(12)
        for word in ("cria", "llama")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def tokens_BT(start: Path) -> Tensor:
    with open_checkpoint(start) as source:
        return torch.randint(0, source.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(1))


def recipe(name: str, start: Path, *overrides: str) -> TuneConfig:
    config = apply_overrides(find_recipe(name), [*QUICK, f"model={start}", *overrides])
    assert isinstance(config, TuneConfig)
    return config


@pytest.mark.parametrize(
    "scheme",
    [
        int4_scheme(16),
        int4_scheme(16, symmetric=False),
        MatrixScheme(kind="int8", activation="int8"),
        MatrixScheme(kind="fp8", activation="fp8"),
    ],
    ids=lambda scheme: scheme.label,
)
def test_training_computes_with_what_is_written(scheme: MatrixScheme, start: Path, tokens_BT: Tensor) -> None:
    model = load_model(start, dtype="float32")
    name = "model.layers.0.mlp.up_proj"
    convert_to_fake(model, levels_for(model, {name: scheme}))
    x = torch.randn(3, model.get_parameter(f"{name}.weight").shape[1], requires_grad=True)
    out = model.get_submodule(name)(x)
    written, weight = rounded(model)[name]
    assert written == scheme
    assert torch.allclose(out, QuantLinear(weight, torch.float32)(x.detach()), atol=1e-5)
    out.sum().backward()
    grad = model.get_parameter(f"{name}.weight").grad
    assert grad is not None and x.grad is not None and grad.any() and x.grad.any(), "gradients pass through the rounding"


@pytest.mark.parametrize("name", ["qat", "qat-lora"])
def test_recovery_is_nearer_to_the_original(name: str, start: Path, text: Path, tokens_BT: Tensor, tmp_path: Path) -> None:
    config = recipe(name, start)
    result = run_recipe(config, data=text, output=tmp_path)
    assert verify(result.model).ok
    report = result.stages[0]
    assert report.after["divergence"] < 0.9 * report.before["divergence"]  # pyright: ignore[reportAttributeAccessIssue]
    with open_checkpoint(result.model) as source:
        assert isinstance(source, QuantHfSource)
        assert {scheme.label for scheme in source.quantised.values()} == {"INT4-G16"}
    record = json.loads((result.model / "quantize.json").read_text())
    assert record["recovery"]["recipe"] == name and record["matrices"]
    figures = compare(load_model(start, dtype="float32"), load_model(result.model, dtype="float32"), tokens_BT)
    assert figures.mean_kl < 1.0


def test_a_quantised_model_is_gone_on_with(start: Path, text: Path, tokens_BT: Tensor, tmp_path: Path) -> None:
    quantise_checkpoint(start, tmp_path / "q", Settings(scheme="int4", group=16, method="gptq"), tokens_BT=tokens_BT)
    with pytest.raises(ConfigError, match="is quantised, and recovery learns from the model that it was made of"):
        run_recipe(recipe("qat", tmp_path / "q"), data=text, output=tmp_path / "none")
    config = recipe("qat", tmp_path / "q", f"teacher={start}", "train.warmup_steps=0", "train.num_steps=1", "train.lr=1e-9")
    result = run_recipe(config, data=text, output=tmp_path / "run")
    before, after = (quantised_matrices(load_model(path)) for path in (tmp_path / "q", result.model))
    assert before.keys() == after.keys()
    for name, module in before.items():
        assert torch.equal(module.values, after[name].values), f"{name}: a step of no size moves no code"
        assert torch.equal(module.scales, after[name].scales)


def test_groups_in_an_order_of_their_own_are_refused(start: Path) -> None:
    model = load_model(start, dtype="float32")
    name = "model.layers.0.mlp.up_proj"
    convert_to_fake(model, levels_for(model, {name: int4_scheme(16)}))
    weight = rounded(model)[name][1]
    columns = torch.arange(weight.num_inputs, dtype=torch.int32).flip(0)
    model.model.layers[0].mlp.up_proj = QuantLinear(replace(weight, columns=columns))
    with pytest.raises(UsageError, match=r"up_proj has groups in an order of its own \(g_idx\)"):
        unpack_for_training(model)


def test_what_does_not_go_together(start: Path) -> None:
    with pytest.raises(ConfigError, match="method preference does not train for rounding"):
        apply_overrides(find_recipe("dpo"), ["quant.scheme=int4"])
    with pytest.raises(ConfigError, match=r"lora\.nf4 and quant\.scheme both say"):
        recipe("qat-lora", start, "lora.nf4=true")
    with pytest.raises(ConfigError, match=r"quant\.group is 7, it must be even"):
        recipe("qat", start, "quant.group=7")
