"""The GPU runner on a CPU, in Triton's interpreter: an engine over it answers as one over the reference runner does, and as itself however
requests are run.

Runs in a process of its own with TRITON_INTERPRET=1: see tests/kernels/test_triton.py; on a GPU: see on_gpu.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from on_gpu import ON_GPU, RUNS, WHY

if not RUNS:
    pytest.skip(WHY, allow_module_level=True)

from herd.base.errors import ConfigError
from herd.engine.batch import Piece, ragged
from herd.engine.build import build_engine, plan_for
from herd.engine.draw import RowNumbers
from herd.engine.engine import Engine
from herd.engine.gpu.graphs import Graphs, padded_parts, padded_size
from herd.engine.gpu.runner import GpuRunner
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.runner import CpuRunner
from herd.engine.sampler import draw_in_numpy
from herd.engine.stream import TokenRequest, Tokens
from herd.engine.torch_runner import TorchRunner
from herd.kernels import dispatch
from herd.kernels.quantised import QuantWeight, fp8_rows, int8_rows
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.quant_linear import QuantLinear
from herd.model.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
VOCAB = 96
CONFIG = ModelConfig(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    max_position_embeddings=128, initializer_range=0.15,
)  # fmt: skip


def tiny(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> Transformer:
    with torch.device("meta"):
        model = Transformer(replace(CONFIG, tie_word_embeddings=tied))
    return initialise(model, seed=4, dtype=dtype).eval()


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_KERNELS", "triton")
    dispatch.reload()


def requests(**changes: object) -> list[TokenRequest]:
    """Three with a beginning in common and one without, which ends at its first token."""
    shared = [(5 * place) % VOCAB for place in range(12)]
    prompts = [[*shared, 3], [*shared, 9], [*shared[:8], 1, 2, 3, 4, 5], [2]]
    params = TokenParams(max_tokens=4, temperature=0.0, logprobs=1)
    made = [TokenRequest(prompt=tuple(prompt), params=replace(params, **changes)) for prompt in prompts]  # type: ignore[arg-type]
    made[3] = replace(made[3], params=replace(made[3].params, max_tokens=1))
    return made


def engine(model: Transformer, **changes: object) -> Engine:
    sizes = EngineConfig(context=48, token_budget=24, max_sequences=4, num_blocks=40, block_size=4, score_rows=4)
    return build_engine(model, replace(sizes, **changes))  # type: ignore[arg-type]


def answers(made: Engine, asked: Sequence[TokenRequest], *, at_once: int) -> list[list[tuple[int, float]]]:
    found = []
    for first in range(0, len(asked), at_once):
        streams = [made.submit(request) for request in asked[first : first + at_once]]
        for stream in streams:
            events = [event for event in stream if isinstance(event, Tokens)]
            logprobs = [one.logprob for event in events for one in event.logprobs]
            ids = [token_id for event in events for token_id in event.ids]
            found.append(list(zip(ids, logprobs or [0.0] * len(ids), strict=True)))
    return found


CASES: list[tuple[torch.dtype, str | None]] = [(torch.float32, None), (torch.float32, "fp8")]
if os.environ.get("HERD_TEST_FULL") == "1":
    CASES += [(torch.bfloat16, "fp8"), (torch.float32, "int8")]


@pytest.mark.parametrize(("dtype", "cache_dtype"), CASES)
def test_an_engine_answers_as_by_the_reference_and_the_same_however_it_is_run(
    triton: None, dtype: torch.dtype, cache_dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(dtype)
    made = engine(model, cache_dtype=cache_dtype)
    assert isinstance(made.stepper.runner, GpuRunner)
    together = answers(made, requests(), at_once=4)
    assert made.scheduler.pool.num_hit_tokens > 0
    # In chunks of 8, without prefixes, and fewer at once.
    crowded = engine(model, cache_dtype=cache_dtype, num_blocks=13, token_budget=8, max_sequences=3)
    assert answers(crowded, [replace(one, reuse_prefix=False) for one in requests()], at_once=4) == together
    if cache_dtype is not None:
        return  # a number next to the middle between two bytes may go either way
    monkeypatch.setenv("HERD_KERNELS", "reference")
    dispatch.reload()
    plain = engine(model)
    assert isinstance(plain.stepper.runner, CpuRunner)
    for one, other in zip(together, answers(plain, requests(), at_once=4), strict=True):
        assert [token for token, _ in one] == [token for token, _ in other]
        assert [value for _, value in one] == pytest.approx([value for _, value in other], abs=1e-4)


def in_numpy(scores_RV: NDArray[np.float32], numbers_R: NDArray[Any]) -> list[int]:
    """Stands in for the draw in C."""
    names = ("temperature", "top_p", "min_p")
    params = [TokenParams(max_tokens=1, top_k=int(one["top_k"]), **{name: float(one[name]) for name in names}) for one in numbers_R]
    return [draw_in_numpy(*row) for row in zip(scores_RV, params, numbers_R["uniform"].tolist(), strict=True)]


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.02}], ids=["greedy", "drawn"]
)
def test_what_is_drawn_on_the_device_is_what_is_drawn_here(triton: None, changes: dict[str, float]) -> None:
    model, calls = tiny(), list[RowNumbers]()
    there, here = engine(model), engine(model)
    runner = there.stepper.runner
    assert isinstance(runner, GpuRunner)
    run = runner.draw_later
    runner.draw_later = lambda numbers: (calls.append(numbers), run(numbers))[1]  # type: ignore[method-assign]
    for one in (there, here):
        one.stepper._drawer._kernel = in_numpy
    here.stepper._drawer._there = here.stepper._drawer._ahead = None
    asked = [replace(one, params=replace(one.params, max_tokens=4)) for one in requests(logprobs=None, **changes)[:2]]
    found = answers(there, asked, at_once=2)
    assert calls and [len(one) for one in found] == [4, 4]
    assert there.stepper.ahead.num_taken > 0, "its second token was launched before the first was read"
    assert answers(here, asked, at_once=2) == found
    assert here.stepper.ahead.num_taken == 0


def scores(runner: CpuRunner | GpuRunner | TorchRunner, tokens: list[int], cuts: Sequence[int]) -> torch.Tensor:
    found, begin = [], 0
    for end in cuts:
        piece = Piece(tokens=tokens[begin:end], first=begin, blocks=[3, 1, 6, 2, 5], rows=range(begin, end), hidden=range(begin, end))
        batch = ragged([piece])
        found += [torch.from_numpy(part.copy()) for _, part in runner.run(batch)]
        begin = end
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["float32", "tied", "fp8", "int8", "mixed"])
def test_scores_are_the_models(triton: None, kind: str) -> None:
    """Whole, in chunks and token by token the same bits; within the kinds' bounds what the model says."""
    model = tiny(tied=kind == "tied")
    quantise(model, kind)
    tokens = [(11 * place + 3) % VOCAB for place in range(9)]
    made = {"num_blocks": 8, "block_size": 4, "max_tokens": 16, "score_rows": 5, "vocab_size": VOCAB - 6}
    with torch.inference_mode():
        wanted = model(torch.tensor([tokens]))[0, :, : VOCAB - 6]
    runner = GpuRunner(model, max_sequences=4, context=20, **made)  # type: ignore[arg-type]
    whole = scores(runner, tokens, [9])
    assert torch.equal(scores(runner, tokens, [5, 6, 9]), whole) and torch.equal(scores(runner, tokens, [7, 8, 9]), whole)
    torch.testing.assert_close(whole, wanted, rtol=1e-3, atol=2e-3)
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([tokens]))[0, :, : VOCAB - 6], wanted)  # the model reads what was stacked of it


def quantise(model: Transformer, kind: str) -> None:
    """Every matrix of the blocks, or for `mixed` a k of the first and a gate of the second, which cannot be stacked then."""
    for number, block in enumerate(model.model.layers):
        for parent in (block.self_attn, block.mlp):
            for name, module in list(parent.named_children()):  # pyright: ignore[reportAttributeAccessIssue]
                if kind in ("fp8", "int8") or (kind == "mixed" and (number, name) in ((0, "k_proj"), (1, "gate_proj"))):
                    setattr(parent, name, QuantLinear(weight_of(module.weight, "int8" if kind == "mixed" else kind), torch.float32))


def weight_of(weight: torch.Tensor, kind: str) -> QuantWeight:
    values, scales = (fp8_rows if kind == "fp8" else int8_rows)(weight.detach())
    activation = "fp8" if kind == "fp8" else "int8"
    return QuantWeight(kind=kind, values=values, scales=scales[:, None].contiguous(), activation=activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["float32", "fp8", "int8", "mixed"])
def test_the_runner_allocates_what_was_planned(triton: None, kind: str) -> None:
    """To the byte: arenas and scratch, scores and states, cache; and so from the shapes alone, before there is a model."""
    model = tiny()
    quantise(model, kind)
    outline = tiny()
    quantise(outline, kind)
    outline = outline.to("meta")
    sizes = EngineConfig(context=48, token_budget=24, max_sequences=4, num_blocks=40, block_size=4, score_rows=4)
    made = build_engine(model, sizes)
    [plan], runner = made.plans, made.stepper.runner
    assert isinstance(runner, GpuRunner)
    assert plan.activation_bytes == runner.buffers.size_bytes + runner._states.nbytes
    assert plan.score_bytes == runner._scores.nbytes
    assert plan.cache_bytes == runner._keys.nbytes + runner._values.nbytes
    assert plan_for(outline, sizes, device=torch.device("cuda")) == plan
    assert plan_for(outline, sizes, device=torch.device("cpu")).activation_bytes != plan.activation_bytes


def test_hidden_states_blocks_and_copies(triton: None) -> None:
    model, tokens = tiny(), list(range(9))
    made = {"num_blocks": 8, "block_size": 4, "max_tokens": 16, "score_rows": 5}
    gpu, cpu = (
        GpuRunner(model, max_sequences=4, context=20, **made),
        TorchRunner(model, **{k: v for k, v in made.items() if k != "max_tokens"}),
    )  # type: ignore[arg-type]
    batch = ragged([Piece(tokens=tokens, first=0, blocks=[3, 1, 6], rows=range(8, 9), hidden=range(9))])
    found = []
    for runner in (gpu, cpu):
        list(runner.run(batch))
        found.append(torch.cat([torch.from_numpy(part.copy()) for _, part in runner.hidden(batch)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    content = gpu.copy_out(1)
    assert gpu.block_layout == cpu.block_layout and len(content) == gpu.block_bytes
    gpu.copy_in(7, content)
    again = ragged([Piece(tokens=[4], first=9, blocks=[3, 7, 0], rows=range(9, 10))], copies=[(6, 0)])
    same = ragged([Piece(tokens=[4], first=9, blocks=[3, 1, 6], rows=range(9, 10))])
    first, second = (torch.from_numpy(next(gpu.run(one))[1].copy()) for one in (again, same))
    assert torch.equal(first, second)


def test_the_plan_is_what_is_allocated(triton: None) -> None:
    model, config = tiny(), EngineConfig(context=48, token_budget=24, max_sequences=4, block_size=4, score_rows=4, cache_dtype="fp8")
    plan = plan_for(model, config)
    runner = build_engine(model, config).stepper.runner
    assert isinstance(runner, GpuRunner)
    assert runner.block_bytes * runner.num_blocks == plan.cache_bytes
    states = config.score_rows * CONFIG.hidden_size * 4
    assert plan.activation_bytes == runner.buffers.size_bytes + states


def test_padded_sizes_are_a_fixed_set() -> None:
    sizes = {padded_size(count, 2000) for count in range(1, 2001)}
    assert len(sizes) < 25 and all(padded_size(count, 2000) >= count for count in range(1, 2001))
    assert padded_size(30, 30) == 30 and padded_size(3, 2000) == 4
    assert [padded_parts(count) for count in (1, 2, 4, 5, 64, 65)] == [1, 4, 4, 16, 64, 256]


def test_a_graph_is_captured_once_for_its_key_and_padding_changes_nothing(triton: None) -> None:
    """Stands in for capture alone: what is captured is run again at each replay."""

    class Replayed:
        def __init__(self, function: object, pool: object) -> None:
            self.replay = function

    model, tokens = tiny(), [(7 * place) % VOCAB for place in range(5)]
    made = {"num_blocks": 8, "block_size": 4, "max_tokens": 16, "score_rows": 5}
    plain, graphed = (GpuRunner(model, max_sequences=4, context=20, **made) for _ in range(2))  # type: ignore[arg-type]
    graphed._graphs = Graphs(None, capture=Replayed)  # type: ignore[arg-type]
    assert torch.equal(scores(graphed, tokens, range(1, 6)), scores(plain, tokens, [5]))
    assert list(graphed._graphs.found) == [(1, 1)]
    several = ragged([Piece(tokens=[5], first=at, blocks=[3, 1, 6], rows=range(at, at + 1)) for at in (1, 3, 4)])
    found = [torch.from_numpy(next(runner.run(several))[1].copy()) for runner in (graphed, plain)]
    assert torch.equal(*found) and list(graphed._graphs.found) == [(1, 1), (4, 1)]


@pytest.mark.skipif(ON_GPU, reason="there it runs")
def test_triton_that_cannot_run_is_refused(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match="no Triton kernel runs on cpu: TRITON_INTERPRET='0' and a cpu tensor") as refused:
        engine(tiny())
    assert "TRITON_INTERPRET=1" in str(refused.value.hint)
