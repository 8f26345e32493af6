"""The numerics of a stage: recomputation with the same bits, float8, clipping, weights by seed and name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import (  # pyright: ignore[reportMissingImports]
    as_batch,
    log_of,
    small_model,
    small_rows,
    small_stage,
    small_trainer,
    tensors_of,
    whole_run,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from herd.model.init import initialise
from herd.model.transformer import Transformer, call_block
from herd.train.float8 import Float8Linear, Float8UnsupportedError, check_float8, convert_to_float8, quantise
from herd.train.numerics import prepare_model
from herd.train.recompute import _policy, set_recompute
from herd.train.replicas import differing_tensors, odd_replicas, parameter_hash, tensor_hash
from herd.train.step import batch_loss_sum
from herd.train.update import apply_update

BATCH = as_batch(small_rows(40, seed=3), 0, 4)


def gradients(model: Transformer, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    model.zero_grad()
    batch_loss_sum(model, BATCH, dtype).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


class Kept(TorchDispatchMode):
    """Counts the calls of an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] = self.calls.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_gives_the_same_bits(mode: Any, dtype: torch.dtype) -> None:
    plain, again = small_model(), small_model()
    set_recompute(again, mode)
    left, right = gradients(plain, dtype), gradients(again, dtype)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_computed_again_and_what_is_kept() -> None:
    calls = {}
    for mode in ("none", "selective", "full"):
        model = small_model()
        set_recompute(model, mode)  # type: ignore[arg-type]
        with Kept() as kept:
            gradients(model)
        calls[mode] = (kept.calls["aten.mm.default"], kept.calls.get("herd.rms_norm.default") or kept.calls["aten.rsqrt.default"])
    products, norms = calls["none"]
    assert norms == 2 * 2 + 1
    assert calls["selective"] == (products, norms + 4), "norms again, products not"
    assert calls["full"] == (products + 2 * 6, norms + 4), "all products of two blocks again but the last, whose result no gradient needs"


def test_recomputation_holds_less(tmp_path: Path) -> None:
    def held(mode: Any) -> int:
        model = small_model()
        set_recompute(model, mode)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor):
            batch_loss_sum(model, BATCH, torch.float32)
        return sum(sizes)

    assert held("full") < 0.5 * held("none")


def test_a_run_with_recomputation_is_the_run_without(tmp_path: Path) -> None:
    left = tensors_of(whole_run(tmp_path / "plain"))
    right = tensors_of(whole_run(tmp_path / "again", recompute="full"))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("clip", "limit"), [("norm", 0.01), ("value", 1e-4), ("norm", 0.0)])
def test_gradients_are_clipped_as_asked(clip: Any, limit: float) -> None:
    model = small_model()
    stage = small_stage(grad_clip=limit, clip=clip, lr=1.0, weight_decay=0.0)
    whole = gradients(model)
    exact = float(torch.stack([grad.norm() for grad in whole.values()]).norm())
    seen: dict[str, Tensor] = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(lambda *_: seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    norm, applied = apply_update(model, optimizer, stage, lr=1.0, loss=1.0)
    assert applied and norm == pytest.approx(exact, rel=1e-5)
    for name, grad in whole.items():
        expected = grad if not limit else grad.clamp(-limit, limit) if clip == "value" else grad * min(1.0, limit / (exact + 1e-6))
        torch.testing.assert_close(seen[name], expected, rtol=1e-4, atol=1e-9)


def test_a_refused_update_leaves_weights_and_rates_and_clears_gradients() -> None:
    model = small_model()
    gradients(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    asked: list[tuple[float, float]] = []
    norm, applied = apply_update(
        model, optimizer, small_stage(), lr=0.1, loss=3.5, accept=lambda loss, grad_norm: bool(asked.append((loss, grad_norm)))
    )
    assert not applied and asked == [(3.5, norm)] and optimizer.param_groups[0]["lr"] == 0.5
    assert all(torch.equal(left, right) for left, right in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_float8_is_refused_where_the_hardware_lacks_it(tmp_path: Path) -> None:
    with pytest.raises(Float8UnsupportedError, match=r"float8=true, and the device is cpu: .* compute capability 8.9") as caught:
        small_trainer(tmp_path, float8=True)
    assert caught.value.code == "float8_unsupported" and "float8=false" in str(caught.value.hint)


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False)])
def test_float8_asks_the_gpu_what_it_can(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    if refused:
        with pytest.raises(Float8UnsupportedError, match=rf"a GPU has compute capability {capability[0]}\.{capability[1]}, below 8\.9"):
            check_float8(torch.device("cuda"))
    else:
        check_float8(torch.device("cuda"))


def test_float8_refuses_sizes_that_cannot_be() -> None:
    model = small_model()
    model.model.layers[1].mlp.up_proj = type(model.model.layers[1].mlp.up_proj)(32, 40)
    with pytest.raises(Float8UnsupportedError, match=re.escape("layers.1.mlp.up_proj is (40, 32): both sizes have to be multiples of 16")):
        convert_to_float8(model)
    assert not any(isinstance(module, Float8Linear) for module in model.modules()), "all or none"


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_quantising_is_within_half_a_step_of_the_format(seed: int, scale: float) -> None:
    x = scale * torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    for dtype, bits in ((torch.float8_e4m3fn, 3), (torch.float8_e5m2, 2)):
        q, factor = quantise(x, dtype)
        bound = x.abs() * 2.0 ** -(bits + 1) + float(factor) * float(torch.finfo(dtype).smallest_normal)
        assert bool(((q.float() * factor - x).abs() <= bound).all())
    assert float(quantise(torch.zeros(4, 4), torch.float8_e4m3fn)[0].float().abs().max()) == 0.0


def test_float8_products_and_their_gradients_are_those_of_bfloat16_within_its_precision() -> None:
    plain, narrow = small_model(), small_model()
    assert convert_to_float8(narrow) == 14
    assert [name for name, _ in narrow.named_parameters()] == [name for name, _ in plain.named_parameters()]
    left, right = gradients(plain, torch.bfloat16), gradients(narrow, torch.bfloat16)
    for name, grad in left.items():
        assert right[name].dtype == torch.float32
        similarity = torch.cosine_similarity(grad.flatten(), right[name].flatten(), dim=0)
        assert float(similarity) > 0.98, name
        assert not torch.equal(grad, right[name])
    with torch.no_grad():
        assert torch.equal(batch_loss_sum(plain, BATCH, torch.float32), batch_loss_sum(narrow, BATCH, torch.float32))
    # A stage without float8 after one with it multiplies as ever.
    prepare_model(narrow, small_stage())
    assert not any(isinstance(module, Float8Linear) for module in narrow.modules())
    again = gradients(narrow, torch.bfloat16)
    assert all(torch.equal(grad, again[name]) for name, grad in left.items())


GRAPHS = """
import sys
from functools import partialmethod
sys.path[:0] = sys.argv[1:]
from dataclasses import replace
import torch
import torch._dynamo
from small_run import small_model, small_stage
from herd.model.init import initialise
from herd.model.transformer import Transformer, call_block
from herd.train.numerics import prepare_model, uncompiled
from herd.train.step import batch_loss_sum

graphs = []

def counting(graph, inputs):
    graphs.append(graph)
    return graph.forward

torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=counting)

def losses(num_layers, compiled):
    torch._dynamo.reset()
    graphs.clear()
    config = replace(small_model().config, num_hidden_layers=num_layers)
    with torch.device("meta"):
        model = Transformer(config)
    prepare_model(initialise(model, seed=1), small_stage(compile=compiled))
    found = []
    for length, cut in ((64, 20), (64, 40), (80, 33), (96, 50)):
        tokens = torch.randint(0, 90, (2, length), generator=torch.Generator().manual_seed(length + cut))
        documents = torch.zeros(2, length, dtype=torch.long)
        documents[:, cut:] = 1
        loss = batch_loss_sum(model, (tokens.numpy(), documents.numpy(), torch.ones(2, length, dtype=torch.bool).numpy()), torch.float32)
        loss.backward()
        found.append(float(loss.detach()))
    before, other = len(graphs), torch.zeros(3, 47, dtype=torch.long).numpy()
    with torch.no_grad(), uncompiled(model):
        batch_loss_sum(model, (other, other, other == 0), torch.float32)
    assert len(graphs) == before, "held-out rows are not compiled for"
    return found

plain = losses(10, False)
assert not graphs
compiled = losses(10, True)
assert max(abs(a - b) for a, b in zip(plain, compiled, strict=True)) < 1e-2, (plain, compiled)
of_ten = len(graphs)
losses(2, True)
assert 0 < len(graphs) == of_ten, (of_ten, len(graphs))
print("graphs", of_ten)
"""


def test_ten_layers_compile_to_the_graphs_of_two() -> None:
    # In a process of its own: without the checks of shapes, which the compiler would look through, and with what it sets gone afterwards.
    done = subprocess.run([sys.executable, "-c", GRAPHS, str(Path(__file__).parent)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "graphs" in done.stdout, done.stderr[-3000:]
    assert "recompile_limit" not in done.stderr and "lru_cache" not in done.stderr, done.stderr[-3000:]


COMPILED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from small_run import log_of, small_model, small_trainer
import torch._dynamo
names = [name for name, _ in small_model().named_parameters()]
losses = {}
for compiled in (False, True):
    trainer = small_trainer(Path(sys.argv[1]) / str(compiled), num_steps=6, heldout=False, compile=compiled, sequence_length=48)
    trainer.fit()
    assert [name for name, _ in trainer.model.named_parameters()] == names
    losses[compiled] = [record["loss"] for record in log_of(trainer.folder)]
counters = torch._dynamo.utils.counters
assert max(abs(a - b) for a, b in zip(*losses.values(), strict=True)) < 1e-3, losses
assert not counters["recompile_limit"], counters
print("frames", counters["frames"]["total"])
"""


@pytest.mark.skipif(os.environ.get("HERD_TEST_FULL") != "1", reason="compiles for half a minute; set HERD_TEST_FULL=1")
def test_compiled_blocks_keep_names_and_losses(tmp_path: Path) -> None:
    variables = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILED, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0 and "frames" in done.stdout, done.stderr[-3000:]


def test_a_first_value_depends_on_seed_and_name_alone() -> None:
    whole = dict(small_model(seed=11).named_parameters())
    # Another depth, another head, another vocabulary's order of construction: what has the same name and size has the same values.
    config = replace(small_model().config, num_hidden_layers=3, tie_word_embeddings=False)
    with torch.device("meta"):
        other = Transformer(config)
    values = dict(initialise(other, seed=11).named_parameters())
    scaled_by_depth = ("o_proj.weight", "down_proj.weight")
    shared = [name for name in whole if not name.endswith(scaled_by_depth)]
    assert len(shared) > 10 and all(torch.equal(whole[name], values[name]) for name in shared)
    assert not any(torch.equal(whole[name], value) for name, value in small_model(seed=12).named_parameters() if "norm" not in name)
    assert not torch.equal(values["lm_head.weight"], values["model.embed_tokens.weight"]), "two names, two values"


@given(st.integers(0, 10_000), st.integers(0, 31))
def test_one_flipped_bit_changes_the_hash(place: int, bit: int) -> None:
    tensor = torch.arange(300, dtype=torch.float32)
    before = tensor_hash(tensor)
    bits = tensor.view(torch.int32)
    bits[place % 300] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert tensor_hash(tensor) != before


def test_a_hash_sees_order_shape_dtype_and_name() -> None:
    model = small_model()
    whole = parameter_hash(model)
    assert parameter_hash(small_model()) == whole != parameter_hash(small_model(seed=4))
    assert parameter_hash(small_model().to(torch.bfloat16)) != whole
    swapped = small_model()
    with torch.no_grad():
        swapped.model.layers[0].mlp.gate_proj.weight[[0, 1]] = swapped.model.layers[0].mlp.gate_proj.weight[[1, 0]]
    assert parameter_hash(swapped) != whole
    assert differing_tensors(dict(model.named_parameters()), dict(swapped.named_parameters())) == ["model.layers.0.mlp.gate_proj.weight"]
    assert tensor_hash(torch.zeros(3)) != tensor_hash(torch.zeros(4))


def test_the_odd_replica_is_named_by_the_majority() -> None:
    assert odd_replicas(["a", "a", "a"]) == []
    assert odd_replicas(["a", "b", "a"]) == [1]
    assert odd_replicas(["a", "b"]) == [0, 1], "of two that differ neither can be trusted"


def test_hashes_go_into_the_log(tmp_path: Path) -> None:
    trainer = whole_run(tmp_path, hash_every=5)
    found = {record["step"]: record["parameter_hash"] for record in log_of(tmp_path) if "parameter_hash" in record}
    assert list(found) == [5, 10, 12] and found[12] == parameter_hash(trainer.model)


def test_what_a_compiled_block_keeps_is_told_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_args, **_rest: None)
    monkeypatch.setattr("herd.train.numerics._hide_attention_from_the_compiler", lambda: None)
    asked: list[bool] = []
    monkeypatch.setattr("herd.train.numerics.recompute_what_is_cheap", asked.append)
    seen = {}
    for compiled, recompute in ((True, "selective"), (False, "selective"), (True, "full"), (True, "none")):
        model = small_model()
        prepare_model(model, small_stage(compile=compiled, recompute=recompute))
        seen[compiled, recompute] = model.block_runner is call_block
    assert seen == {(True, "selective"): True, (False, "selective"): False, (True, "full"): False, (True, "none"): True}
    assert asked == [True, False, False], "once for each that is compiled"


KEPT_BY_COMPILER = """
import sys
from functools import partialmethod
sys.path[:0] = sys.argv[1:]
import torch
from torch.utils.flop_counter import FlopCounterMode
from small_run import as_batch, small_model, small_rows, small_stage
from herd.train.numerics import prepare_model
from herd.train.step import batch_loss_sum

torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager_decomp_partition")
batch = as_batch(small_rows(40, seed=3), 0, 4)
kept, flops, losses = {}, {}, {}
for mode in ("none", "selective"):
    torch._dynamo.reset()
    model = small_model()
    prepare_model(model, small_stage(compile=True, recompute=mode))
    batch_loss_sum(model, batch, torch.bfloat16).backward()
    sizes = {}
    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = batch_loss_sum(model, batch, torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    kept[mode], flops[mode], losses[mode] = sum(sizes.values()), counter.get_total_flops(), float(loss.detach())
assert flops["none"] == flops["selective"], flops
assert losses["none"] == losses["selective"], losses
assert kept["selective"] < 0.97 * kept["none"], kept
print("kept", kept)
"""


def test_selective_compiled_blocks_keep_less_and_repeat_no_product() -> None:
    # In a process of its own, as the test of graphs.
    command = [sys.executable, "-c", KEPT_BY_COMPILER, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "kept" in done.stdout, done.stderr[-3000:]


def test_selective_recomputation_keeps_the_attention_of_gpus_where_torch_has_it() -> None:
    pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no attention of variable lengths")
    rows = torch.zeros(2, 2)
    assert _policy(None, torch.ops.torch_attn._varlen_attn.default, rows) == CheckpointPolicy.MUST_SAVE
    assert _policy(None, torch.ops.aten.mm.default, rows, rows) == CheckpointPolicy.MUST_SAVE
    assert _policy(None, torch.ops.aten.mul.Tensor, rows, rows) == CheckpointPolicy.PREFER_RECOMPUTE


def test_float8_gives_the_same_whichever_way_a_gradient_lies() -> None:
    model = small_model()
    convert_to_float8(model)
    matrix = model.model.layers[0].mlp.up_proj
    x, upstream = torch.randn(32, 32), torch.randn(matrix.weight.shape[0], 32).t()
    found = [torch.autograd.grad(matrix(x.requires_grad_()), (x, matrix.weight), grad) for grad in (upstream, upstream.contiguous())]
    assert not upstream.is_contiguous()
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
