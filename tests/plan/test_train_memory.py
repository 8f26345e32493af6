"""Training memory: activations against what autograd keeps, parameters against the model's own count, and what each choice saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from herd.base.errors import ConfigError, DoesNotFitError
from herd.model.config import ModelConfig
from herd.model.presets import PRESETS, preset
from herd.plan.activations import layer_bytes, working_bytes
from herd.plan.assumptions import Assumptions
from herd.plan.memory import stage_parameters, train_memory
from herd.plan.mesh import RECOMPUTE, Batch, Mesh, as_precision, as_recompute
from herd.plan.pipeline import stages
from herd.plan.precision import STATE_BYTES
from herd.plan.train import train_plan

SMALL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)
BIG = preset("llama-3.1-405b")
PUBLISHED = Mesh(tp=8, pp=16, dp=128, virtual_stages=8)


class FusedNorm(torch.autograd.Function):
    """A norm that keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.rms_norm(x, (x.shape[-1],), weight)


class FusedSwiGLU(torch.autograd.Function):
    """SwiGLU that keeps its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up


def kept_bytes(config: ModelConfig, tokens: int) -> int:
    """What autograd keeps of a layer made of fused ops, its weights apart; rotation is linear and keeps nothing of size."""
    dim, ffn, size = config.hidden_size, config.intermediate_size, config.head_dim
    query, keyvalue = config.num_attention_heads * size, config.num_key_value_heads * size
    shapes = {"a": (dim,), "q": (query, dim), "k": (keyvalue, dim), "v": (keyvalue, dim), "o": (dim, query)}
    shapes |= {"b": (dim,), "gate": (ffn, dim), "up": (ffn, dim), "down": (dim, ffn)}
    weights = {name: torch.randn(shape, dtype=torch.bfloat16).requires_grad_() for name, shape in shapes.items()}
    own = {weight.untyped_storage().data_ptr() for weight in weights.values()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    x = torch.randn(1, tokens, dim, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        normed = FusedNorm.apply(x, weights["a"])
        q, k, v = (F.linear(normed, weights[name]).view(1, tokens, -1, size).transpose(1, 2) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
        h = x + F.linear(mixed, weights["o"])
        normed = FusedNorm.apply(h, weights["b"])
        h + F.linear(FusedSwiGLU.apply(F.linear(normed, weights["gate"]), F.linear(normed, weights["up"])), weights["down"])
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("tokens", [32, 96])
def test_without_recomputation_a_layer_keeps_what_autograd_keeps(tokens: int) -> None:
    assert layer_bytes(SMALL, "none", tokens=tokens, tp=1, bytes_per_value=2) == kept_bytes(SMALL, tokens)


@given(tp=st.sampled_from([1, 2, 4, 8]), tokens=st.integers(8, 4096).map(lambda count: 8 * count))
def test_each_policy_keeps_less_than_the_one_before_and_works_with_more(tp: int, tokens: int) -> None:
    kept = [layer_bytes(BIG, policy, tokens=tokens, tp=tp, bytes_per_value=2) for policy in RECOMPUTE]
    working = [working_bytes(BIG, policy, tokens=tokens, tp=tp, bytes_per_value=2) for policy in RECOMPUTE]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
    assert working == sorted(working)
    assert len({one + other for one, other in zip(kept, working, strict=True)}) == 1


@pytest.mark.parametrize("name", ["llama-3.1-405b", "llama-3.1-70b", "llama-3.1-8b"])
@pytest.mark.parametrize(("tp", "pp", "virtual"), [(1, 1, 1), (8, 1, 1), (1, 4, 1), (2, 4, 2), (8, 16, 2)])
def test_the_stages_have_every_parameter_once_and_norms_on_every_tensor_rank(name: str, tp: int, pp: int, virtual: int) -> None:
    config, mesh = PRESETS[name], Mesh(tp=tp, pp=pp, virtual_stages=virtual)
    held = tp * sum(stage_parameters(config, stage, mesh) for stage in stages(config, mesh))
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert held == config.num_parameters + (tp - 1) * norms


def test_a_tied_matrix_is_on_both_ends_of_a_pipeline() -> None:
    config = preset("llama-3.2-1b")
    one, two = ([stage_parameters(config, stage, mesh) for stage in stages(config, mesh)] for mesh in (Mesh(), Mesh(pp=2)))
    assert sum(one) == config.num_parameters and sum(two) == config.num_parameters + config.vocab_size * config.hidden_size


def test_mixed_precision_takes_18_bytes_a_parameter_on_one_device() -> None:
    rank = train_memory(SMALL, Mesh(zero=0), Batch(sequence=64, tokens=64), Assumptions())[0]
    assert rank.parameters + rank.gradients + rank.optimizer == 18 * SMALL.num_parameters
    assert {name: state.total for name, state in STATE_BYTES.items()} == {"bf16": 18, "fp8": 18, "fp32": 16, "bf16-pure": 8}


def test_sharing_more_takes_less() -> None:
    config, batch = preset("llama-3.1-8b"), Batch(tokens=2**20)
    ranks = [train_memory(config, Mesh(dp=8, zero=zero), batch, Assumptions())[0] for zero in range(4)]
    totals = [rank.total for rank in ranks]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
    count = config.num_parameters
    assert ranks[0].optimizer == 12 * count and ranks[1].optimizer == ranks[3].optimizer == 12 * -(-count // 8)
    assert ranks[1].gradients == 4 * count and ranks[2].gradients < ranks[1].gradients / 3
    assert ranks[2].parameters == 2 * count and ranks[3].parameters == 0


@pytest.mark.parametrize(
    ("name", "largest"), [("llama-3.1-8b", 128_256 * 4096), ("llama-3.2-1b", 128_256 * 2048), ("llama-3.1-405b", 3_187_703_808)]
)
def test_gathering_takes_two_of_the_largest_parts(name: str, largest: int) -> None:
    config, batch = preset(name), Batch(tokens=2**20)
    two, three = (train_memory(config, Mesh(dp=8, zero=zero), batch, Assumptions())[0] for zero in (2, 3))
    assert three.buffers - two.buffers == 2 * 2 * largest
    assert two.gradients == 4 * (-(-config.num_parameters // 8) + 2 * largest)


def test_context_parallel_ranks_share_the_state_and_cut_activations() -> None:
    batch = Batch(sequence=131_072, recompute="elementwise")
    short = train_memory(BIG, PUBLISHED, Batch(recompute="elementwise"), Assumptions())
    long = train_memory(BIG, replace(PUBLISHED, cp=16, dp=8), batch, Assumptions())
    for one, other in zip(short, long, strict=True):
        assert (one.optimizer, one.parameters, one.gradients, one.activations) == (
            other.optimizer,
            other.parameters,
            other.gradients,
            other.activations,
        )
        assert other.buffers > one.buffers


@pytest.mark.parametrize(("dp", "cp", "sequence"), [(64, 1, 8192), (128, 1, 8192), (8, 16, 131_072)])
def test_the_405b_fits_80_gb_on_the_published_meshes_without_repeating_a_product(dp: int, cp: int, sequence: int) -> None:
    batch = Batch(sequence=sequence, recompute="elementwise")
    plan = train_plan(BIG, "h100-80gb", mesh=replace(PUBLISHED, dp=dp, cp=cp), batch=batch).require_fit()
    assert plan.fullest.total < 70e9 and plan.fullest.rank == 1
    assert plan.fullest.num_parameters == pytest.approx(BIG.num_parameters / 128, rel=0.01)
    whole = train_plan(BIG, "h100-80gb", mesh=replace(PUBLISHED, dp=dp, cp=cp, zero=0), batch=batch)
    with pytest.raises(DoesNotFitError, match=r"ZeRO-0 needs 1\d\d\.\d GB, h100-80gb has 80 GB; most of it is activations"):
        whole.require_fit()


def test_what_does_not_fit_names_the_item_and_the_remedy() -> None:
    with pytest.raises(DoesNotFitError, match=r"needs .* GB, h100-80gb has 80 GB; most of it is optimizer, 9\d\.\d GB") as caught:
        train_plan("8b", "h100-80gb", batch=Batch(tokens=2**20, recompute="full")).require_fit()
    assert "--tp" in str(caught.value.hint)
    with pytest.raises(DoesNotFitError, match="most of it is activations") as caught:
        train_plan("1b", "rtx-4090", batch=Batch(sequence=32_768, tokens=2**20)).require_fit()
    assert caught.value.hint == "recompute more (--recompute elementwise), or raise --cp or --tp"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": 0}, "sequence is 0"),
        ({"tokens": -1}, "tokens is -1"),
        ({"micro_batch": 0}, "micro_batch is 0"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Batch(**change)
    with pytest.raises(ConfigError, match="precision is 'int3'"):
        as_precision("int3")
    with pytest.raises(ConfigError, match="recompute is 'some'"):
        as_recompute("some")
    assert [as_recompute(name) for name in RECOMPUTE] == list(RECOMPUTE) and as_precision("fp8") == "fp8"


def test_a_batch_that_does_not_come_out_even_is_refused_with_what_would() -> None:
    with pytest.raises(ConfigError, match="no multiple of 3 replicas x 1 sequences of 8,192") as caught:
        Batch().num_micro_batches(Mesh(dp=3))
    assert "24,576" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="cannot be cut for CP 3"):
        Batch().num_micro_batches(Mesh(cp=3))
