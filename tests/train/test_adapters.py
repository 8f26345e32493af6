"""Adapters: the formulas, PEFT in both directions, merging bit by bit, and states that hold the adapters alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective_rows import columns_of, small_judged, small_reward_model  # pyright: ignore[reportMissingImports]
from small_run import as_batch, small_mixture, small_model, small_rows, small_stage  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.base.errors import CheckpointError, ConfigError, NotFoundError, UsageError
from herd.checkpoint.load import load_model, save_model
from herd.model.transformer import Transformer
from herd.train.adapters.config import TARGETS, LoraConfig
from herd.train.adapters.files import is_adapter, load_adapter, read_adapter_config, save_adapter
from herd.train.adapters.inject import adapted_layers, adapters_off, inject, merge, merged_copy, trained_parameters, unmerge
from herd.train.optimizer import build_adamw
from herd.train.step import train_step
from herd.train.trainer import Trainer

# PEFT asks transformers for a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TOKENS = torch.randint(0, 90, (2, 14), generator=torch.Generator().manual_seed(0))
KINDS = {
    "lora": LoraConfig(rank=4, alpha=8.0),
    "rslora": LoraConfig(rank=4, alpha=8.0, rslora=True, targets=("q_proj", "v_proj")),
    "dora": LoraConfig(rank=4, alpha=8.0, dora=True),
}
each_kind = pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))


def moved(model: Transformer, *, seed: int = 1) -> Transformer:
    """Trained parameters away from where they begin, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise if "magnitude" not in name else 0.2 * noise.abs())
    return model


def adapted(config: LoraConfig, *, seed: int = 3) -> Transformer:
    return moved(inject(small_model(seed).eval(), config, seed=5))


def bits(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@each_kind
@torch.no_grad()
def test_new_adapters_change_nothing(config: LoraConfig) -> None:
    model = small_model().eval()
    before = model(TOKENS)
    torch.testing.assert_close(inject(model, config)(TOKENS), before, rtol=1e-5, atol=1e-6)
    names = {name.rpartition(".")[2] for name, _ in adapted_layers(model)}
    assert names == set(config.targets) and not torch.equal(moved(model)(TOKENS), before)


def test_only_adapters_are_trained_and_their_start_depends_on_seed_and_name_alone() -> None:
    config = LoraConfig(rank=4, dora=True)
    model = inject(small_model(), config, seed=5)
    kinds = {name.split(".")[-2] if name.endswith("weight") else name.split(".")[-1] for name in trained_parameters(model)}
    assert kinds == {"lora_A", "lora_B", "lora_magnitude_vector"}
    fewer = inject(small_model(9), LoraConfig(rank=4, targets=("v_proj",)), seed=5)
    name = "model.layers.1.self_attn.v_proj.lora_A.weight"
    assert torch.equal(model.get_parameter(name), fewer.get_parameter(name))
    assert not torch.equal(model.get_parameter(name), inject(small_model(), config, seed=6).get_parameter(name))
    optimizer = build_adamw(model, small_stage())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained_parameters(model))


@each_kind
@torch.no_grad()
def test_merging_gives_the_same_outputs_and_unmerging_the_same_bits(config: LoraConfig) -> None:
    model = adapted(config)
    before, expected = bits(model), model(TOKENS)
    merge(merge(model))
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)
    changed = {name for name, value in bits(model).items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name, _ in adapted_layers(model)}
    unmerge(unmerge(model))
    assert all(torch.equal(value, before[name]) for name, value in bits(model).items())
    assert torch.equal(model(TOKENS), expected)


@each_kind
@torch.no_grad()
def test_a_merged_copy_is_a_plain_model_that_saves_and_loads(config: LoraConfig, tmp_path: Path) -> None:
    model = adapted(config)
    plain = merged_copy(model)
    assert not list(adapted_layers(plain)) and plain.state_dict().keys() == small_model().state_dict().keys()
    torch.testing.assert_close(plain(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-5)
    save_model(plain, tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    assert torch.equal(again(TOKENS), plain(TOKENS))
    in_place = merge(model)
    for name, layer in adapted_layers(in_place):
        assert torch.equal(layer.base_weight(), again.get_parameter(f"{name}.weight"))


@torch.no_grad()
def test_adapters_can_be_switched_off() -> None:
    model, plain = adapted(KINDS["dora"]), small_model().eval()
    with adapters_off(model) as off:
        assert torch.equal(off(TOKENS), plain(TOKENS))
    assert not torch.equal(model(TOKENS), plain(TOKENS))


def peft_model(base: Path, config: LoraConfig) -> Any:
    import peft
    from transformers import AutoModelForCausalLM

    made = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, use_rslora=config.rslora, use_dora=config.dora,  # pyright: ignore[reportArgumentType]
            target_modules=list(config.targets), task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@each_kind
@torch.no_grad()
def test_an_adapter_of_peft_is_read_and_gives_its_outputs_and_its_merged_weights(config: LoraConfig, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_model(small_model(), tmp_path / "base")
    theirs = peft_model(tmp_path / "base", config)
    theirs.save_pretrained(tmp_path / "adapter")
    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path / "base")
    ours = load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-5)
    merged = theirs.merge_and_unload().state_dict()
    for name, value in merged_copy(ours).state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-4, atol=1e-6)


@each_kind
@torch.no_grad()
def test_peft_reads_an_adapter_of_ours(config: LoraConfig, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    save_model(small_model(), tmp_path / "base")
    ours = moved(inject(load_model(tmp_path / "base"), config))
    save_adapter(ours, config, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-5)
    assert read_adapter_config(tmp_path / "adapter") == (config, str(tmp_path / "base"))


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_model(small_model(), tmp_path / "base")
    for config in KINDS.values():
        theirs = peft_model(tmp_path / "base", config)
        theirs.save_pretrained(tmp_path / "adapter")
        ours = load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
        weight = torch.randn(2, 14, 96, generator=torch.Generator().manual_seed(2))
        (ours(TOKENS) * weight).sum().backward()
        (theirs(TOKENS).logits * weight).sum().backward()
        expected = {
            name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight"): value.grad
            for name, value in theirs.named_parameters()
            if value.requires_grad
        }
        found = {name.removesuffix(".weight"): value.grad for name, value in trained_parameters(ours).items()}
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_a_reward_models_head_is_kept_with_its_adapter(tmp_path: Path) -> None:
    model = small_reward_model().eval()
    inject(model, KINDS["lora"])
    moved(model)
    assert "score.weight" in trained_parameters(model)
    save_adapter(model, KINDS["lora"], tmp_path / "adapter", base="x")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    again = small_reward_model().eval()
    again.score.weight.zero_()
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again.score_of(again.hidden(TOKENS)), model.score_of(model.hidden(TOKENS)))


def test_training_adapters_leaves_the_frozen_bits_and_lowers_the_loss() -> None:
    batch = as_batch(small_rows(60, seed=5), 0, 12)
    for config in (*KINDS.values(), LoraConfig(rank=4, nf4=True), LoraConfig(rank=4, dora=True, nf4=True, dropout=0.1)):
        model = inject(small_model(), config).train()
        frozen = {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}
        stage = small_stage(batch_size=12, micro_batch_size=4)
        optimizer = build_adamw(model, stage)
        losses = [train_step(model, optimizer, batch, stage, lr=2e-2).loss for _ in range(15)]
        assert losses[-1] < losses[0] - 0.2
        assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())


def test_a_state_holds_the_adapters_alone_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    stage, config = small_stage(num_steps=6), LoraConfig(rank=4)

    def trainer(folder: Path) -> Trainer:
        return Trainer(inject(small_model(), config), stage, small_mixture(stage), folder=folder, run="a")

    whole = trainer(tmp_path / "whole")
    whole.fit()
    trainer(tmp_path / "cut").fit(until_step=4)
    resumed = trainer(tmp_path / "cut")
    assert resumed.resume()
    resumed.fit()
    from safetensors.torch import load_file

    stored = load_file(next((tmp_path / "cut" / "states").glob("step-00000006/model.safetensors")))
    assert stored.keys() == trained_parameters(resumed.model).keys()
    assert all(torch.equal(value, bits(whole.model)[name]) for name, value in bits(resumed.model).items())


def test_a_preference_reference_without_adapters_is_the_base_models() -> None:
    from herd.train.objectives.reference import reference_logprobs

    columns = columns_of(small_judged(6, seed=21))
    with adapters_off(adapted(KINDS["lora"])) as off:
        np.testing.assert_array_equal(reference_logprobs(off, columns), reference_logprobs(small_model().eval(), columns))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    model = adapted(KINDS["lora"])
    with pytest.raises(UsageError, match="already"):
        inject(model, KINDS["lora"])
    with pytest.raises(UsageError, match="rank 0"):
        inject(small_model(), LoraConfig())
    with pytest.raises(UsageError, match="4-bit"):
        merge(inject(small_model(), LoraConfig(rank=2, nf4=True)))
    with pytest.raises(NotFoundError, match="is missing"):
        load_adapter(small_model(), tmp_path)
    save_adapter(model, KINDS["lora"], tmp_path / "a", base="b")
    with pytest.raises(UsageError, match="not empty"):
        save_adapter(model, KINDS["lora"], tmp_path / "a", base="b")
    path = tmp_path / "a" / "adapter_config.json"
    good = json.loads(path.read_text())
    for changes, fragment in (
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias 'all'"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
        ({"r": "four"}, "r 'four'"),
        ({"target_modules": 3}, "target_modules 3"),
        ({"r": 3}, "shape"),
        ({"target_modules": ["q_proj"]}, "no place"),
    ):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(CheckpointError, match=fragment):
            load_adapter(small_model(), tmp_path / "a")
    path.write_text(json.dumps({**good, "target_modules": ["q_porj"]}))
    with pytest.raises(ConfigError, match="q_porj") as refused:
        load_adapter(small_model(), tmp_path / "a")
    assert refused.value.hint == "did you mean 'q_proj'?"
    path.write_text(json.dumps(good))
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="safetensors"):
        load_adapter(small_model(), tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"rank": -1}, "rank is -1"),
        ({"rank": 2, "alpha": 0.0}, "alpha is 0.0"),
        ({"rank": 2, "dropout": 1.0}, "dropout is 1.0"),
        ({"rank": 2, "targets": ()}, "targets is empty"),
        ({"dora": True}, "dora needs adapters"),
        ({"nf4": True}, "nf4 needs adapters"),
    ],
)
def test_settings_of_adapters_are_checked(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        LoraConfig(**changes)
    assert LoraConfig(rank=16, alpha=32.0).scale == 2 and LoraConfig(rank=16, alpha=32.0, rslora=True).scale == 8
    assert set(LoraConfig().targets) == set(TARGETS)
