"""The time of a step: its parts add up, bounds and overlap follow their rules, and communication is bytes over bandwidth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.model.presets import PRESETS, preset
from herd.plan.assumptions import Assumptions, default_assumptions
from herd.plan.flops import attention_flops_per_token, flops_per_token
from herd.plan.hardware import find_device
from herd.plan.mesh import Batch, Mesh
from herd.plan.network import link, mesh_links
from herd.plan.step_time import step_time
from herd.plan.train import train_plan

BIG, H100 = preset("llama-3.1-405b"), find_device("h100-80gb")
IDEAL = Assumptions(
    matmul=1.0,
    half_width=0.0,
    attention=1.0,
    memory=1.0,
    link=1.0,
    network=1.0,
    link_latency_us=0.0,
    network_latency_us=0.0,
    synchronisation=0.0,
)


def test_operations_of_a_token_are_the_reports() -> None:
    assert flops_per_token(BIG, 8192) == pytest.approx(2.537e12, rel=2e-4)
    assert flops_per_token(BIG, 131_072) == pytest.approx(4.059e12, rel=2e-4)
    assert 6 * BIG.num_parameters * 15.6e12 == pytest.approx(3.8e25, rel=1e-3)
    for config in PRESETS.values():
        looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
        assert flops_per_token(config, 4096) - config.training_flops_per_token(4096) == 6 * (looked_up + norms)


def test_one_ideal_device_takes_the_operations_over_its_peak() -> None:
    config = preset("llama-3.1-8b")
    step = step_time(config, Mesh(zero=0), Batch(sequence=4096, tokens=2**20), H100, IDEAL)
    products = config.training_flops_per_token(4096) - attention_flops_per_token(config, 4096)
    assert step.products == pytest.approx(products * 2**20 / 989.4e12)
    assert step.attention == pytest.approx(attention_flops_per_token(config, 4096) * 2**20 / 989.4e12)
    assert step.tensor == step.context == step.pipeline == step.bubble == step.data == step.synchronisation == 0.0
    assert step.bound == "products" and step.total == pytest.approx(sum(step.parts().values()))


def test_the_optimizer_reads_and_writes_its_state_once() -> None:
    config = preset("llama-3.1-8b")
    step = step_time(config, Mesh(zero=0), Batch(tokens=2**20), H100, IDEAL)
    assert step.optimizer == pytest.approx(config.num_parameters * (4 + 2 * 12 + 2) / 3350e9)


def test_tensor_parallel_moves_ten_gathers_a_layer_and_two_an_end() -> None:
    mesh, batch = Mesh(tp=8, zero=0), Batch(tokens=2**17)
    step = step_time(BIG, mesh, batch, H100, IDEAL)
    one = 8192 * 16_384 * 2 * 7 / 8 / 450e9
    assert step.tensor == pytest.approx((10 * 126 + 4) * one * batch.num_micro_batches(mesh))
    half = step_time(BIG, mesh, batch, H100, replace(IDEAL, tp_overlap=0.5))
    assert half.tensor == pytest.approx(step.tensor / 2)


def test_context_parallel_gathers_keys_and_values_three_times() -> None:
    mesh, batch = Mesh(tp=8, cp=16, zero=0), Batch(sequence=131_072, tokens=131_072)
    step = step_time(BIG, mesh, batch, H100, IDEAL)
    assert step.context == pytest.approx(126 * 3 * (2 * 128 * 131_072 * 2) * 15 / 16 / 50e9)


def test_the_bubble_is_the_reports_share_and_messages() -> None:
    mesh, batch = Mesh(tp=8, pp=16, dp=64, virtual_stages=8), Batch(recompute="elementwise")
    step = step_time(BIG, mesh, batch, H100, IDEAL)
    work = step.products + step.attention + step.elementwise + step.tensor
    message = 8192 / 8 * 16_384 * 2 / 50e9
    assert step.bubble == pytest.approx(work * 15 / (8 * 32) + 15 * 2 * message)


def test_gradients_hide_behind_work_unless_they_are_told_not_to() -> None:
    config, batch = preset("llama-3.1-8b"), Batch(tokens=2**20)
    mesh = Mesh(dp=8, zero=1)
    hidden = step_time(config, mesh, batch, H100, IDEAL)
    shown = step_time(config, mesh, batch, H100, replace(IDEAL, dp_overlap=False))
    whole = (4 + 2) * config.num_parameters * 7 / 8 / 400e9
    assert shown.data == pytest.approx(6 * config.num_parameters * 7 / 8 / 450e9, rel=1e-6) and shown.data < whole
    assert 0 < hidden.data < shown.data / 20


def test_a_slow_network_shows_and_becomes_the_bound() -> None:
    device = replace(find_device("rtx-4090"), network_gb_per_s=0.125)
    plan = train_plan("8b", device, mesh=Mesh(dp=64, zero=3), batch=Batch(tokens=2**20, sequence=2048))
    assert plan.step.bound == "data"


def test_sharing_parameters_costs_more_on_the_way() -> None:
    config, batch = preset("llama-3.1-70b"), Batch(tokens=2**22)
    slow = replace(H100, network_gb_per_s=1.0)
    two, three = (step_time(config, Mesh(dp=64, zero=zero), batch, slow, default_assumptions(slow)).data for zero in (2, 3))
    assert three > 1.5 * two


def test_recomputation_costs_what_is_done_again() -> None:
    config, batch = preset("llama-3.1-8b"), Batch(tokens=2**20)
    steps = [
        step_time(config, Mesh(zero=0), replace(batch, recompute=policy), H100, IDEAL)
        for policy in ("none", "elementwise", "selective", "full")
    ]
    assert steps[0].recomputation == steps[1].recomputation == 0.0 < steps[2].recomputation < steps[3].recomputation
    layers = 2 * config.num_hidden_layers * (config.num_parameters_attention + config.num_parameters_ffn) * 2**20 / 989.4e12
    assert steps[3].recomputation == pytest.approx(layers + steps[0].attention / 3)
    assert steps[0].elementwise < steps[1].elementwise


def test_narrow_products_reach_less() -> None:
    wide = step_time(BIG, Mesh(zero=0), Batch(tokens=8192), H100, replace(IDEAL, half_width=384.0))
    narrow = step_time(preset("cria-8m"), Mesh(zero=0), Batch(tokens=8192), H100, replace(IDEAL, half_width=384.0))
    ideal = [step_time(config, Mesh(zero=0), Batch(tokens=8192), H100, IDEAL).products for config in (BIG, preset("cria-8m"))]
    assert ideal[0] / wide.products > 0.9 and ideal[1] / narrow.products < 0.5


def test_a_group_within_a_node_uses_its_links_and_one_beyond_as_many_ports_as_it_has_members_there() -> None:
    def rate(ranks: int, stride: int) -> float:
        return link(H100, IDEAL, ranks=ranks, stride=stride).bytes_per_s / 1e9

    assert rate(8, 1) == 450.0 and rate(4, 2) == 450.0
    assert rate(16, 1) == 400.0 and rate(64, 4) == 100.0 and rate(64, 8) == 50.0 and rate(64, 128) == 50.0
    links = mesh_links(H100, Mesh(tp=8, cp=2, pp=4, dp=16), IDEAL)
    assert not links.tp.crosses_nodes and links.shard.ranks == 32 and links.shard.bytes_per_s == 50e9
    assert links.pp.send_s(50e9) == 1.0 and links.tp.reduce_s(8.0) == pytest.approx(2 * 7 / 450e9)


@given(
    name=st.sampled_from(["matmul", "attention", "memory", "link", "network"]),
    mesh=st.sampled_from([Mesh(dp=8), Mesh(tp=8, dp=4), Mesh(tp=8, pp=4, dp=2, virtual_stages=2), Mesh(tp=2, cp=2, dp=8, zero=3)]),
)
def test_more_of_the_nameplate_is_never_slower(name: str, mesh: Mesh) -> None:
    config, batch = preset("llama-3.1-8b"), Batch(tokens=2**20)
    usual = default_assumptions(H100)
    better = replace(usual, **{name: getattr(usual, name) * 1.1})
    assert step_time(config, mesh, batch, H100, better).total <= step_time(config, mesh, batch, H100, usual).total


def test_more_devices_than_a_cluster_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"32,768 devices are more than the 24,576 of meta-24k-roce"):
        train_plan("405b", "meta-24k-roce", mesh=Mesh(tp=8, pp=16, dp=256, virtual_stages=8))


def test_float8_products_are_faster_where_the_device_has_them() -> None:
    batch = Batch(tokens=2**20)
    plans = [train_plan("8b", "h100-80gb", mesh=Mesh(dp=8, zero=3), batch=replace(batch, precision=kind)) for kind in ("bf16", "fp8")]
    assert 1.3 < plans[1].tokens_per_s / plans[0].tokens_per_s < 2
    with pytest.raises(ConfigError, match="no matrix products in fp8"):
        train_plan("8b", "a100-80gb", batch=replace(batch, precision="fp8"))
