"""Pre-training of the published sizes: 1B, 8B, 70B and 405B, with the long-context stage and annealing. Llama 3 report, section 3.4.

Run: `herd train llama-405b --dry-run`, `herd train llama-1b --data FOLDER`. The folder holds the mix as one file a category (`general`,
`maths`, `code`, `multilingual`; any of the formats that sources read, named by overrides of `path`). Published are: the 405B's batches and
lengths by tokens, its rate (8e-5, 8,000 warm-up steps, cosine to 1% over 1,200,000 steps), the mix, six steps to 128K over about 800B
tokens, annealing of the rate to zero over the last 40M tokens with an average of checkpoints, bf16 with fp32 reductions. Every other number
here is our choice: AdamW's settings, the smaller models' batches and rates, the lengths between 8K and 128K, the guard.
"""

from __future__ import annotations

from dataclasses import replace

from herd.model.config import ModelConfig
from herd.model.presets import preset
from herd.recipes.config import PowerConfig, RecipeConfig, TokenizerTraining
from herd.train.config import GuardConfig, RampPhase, SourceConfig, StageConfig
from herd.train.context_config import LongContextConfig
from herd.train.schedule import stage_learning_rate, steps_for_tokens

B, T = 10**9, 10**12
SHORT = 8192
LENGTHS = (8192, 16384, 32768, 65536, 98304, 131072)
"""The six lengths of the long-context stage. Published are their number and both ends; those between are our choice."""

FIRST_RAMP_TOKENS = 252_000_000
"""When the 405B's batch grows from 4M to 8M tokens, as printed. That is 60 steps; 252B may be meant."""

SECOND_RAMP_TOKENS = 2_870_000_000_000
"""When it grows from 8M to 16M."""

ANNEAL_TOKENS = 40_000_000
"""How long the rate is annealed at the end, as printed. That is 2.4 steps of 16M; 40B may be meant (`anneal.num_steps=2384`)."""

COSINE_STEPS = 1_200_000
"""Where the 405B's cosine ends, as printed; 15.6T tokens at the printed batches are 1,100,928 steps."""

_H100 = PowerConfig(hardware="one H100 SXM (700 W), as Llama's cards count", watts=700.0, pue=1.08, grid_kg_per_kwh=0.383)


def _mix(*, maths: float = 25.0, multilingual: float = 8.0) -> tuple[SourceConfig, ...]:
    """The published shares, in per cent: general knowledge, maths and reasoning, code, other languages."""
    shares = {"general": 50.0, "maths": maths, "code": 17.0, "multilingual": multilingual}
    return tuple(SourceConfig(name=name, path=f"{name}.jsonl.zst", weight=weight) for name, weight in shares.items())


def _base(num_tokens: int, *, rows: int, micro: int, lr: float, warmup_steps: int, ramp: tuple[RampPhase, ...] = ()) -> StageConfig:
    """Pre-training at 8K over `num_tokens`."""
    stage = StageConfig(
        sources=_mix(),
        num_steps=COSINE_STEPS,
        sequence_length=SHORT,
        batch_size=rows,
        micro_batch_size=micro,
        ramp=ramp,
        lr=lr,
        final_lr_fraction=0.01,
        warmup_steps=warmup_steps,
        weight_decay=0.1,
        compile=True,
        guard=GuardConfig(on_nonfinite="skip", on_spike="rollback"),
        hash_every=1000,
        eval_every=1000,
        save_every=500,
        keep_states=3,
        keep_every=20_000,
    )
    return replace(stage, num_steps=steps_for_tokens(num_tokens, stage))


def _longer(base: StageConfig, num_tokens: int) -> LongContextConfig:
    """The six lengths over `num_tokens` at most, at the rate that pre-training ended with."""
    per_length = max(1, round(num_tokens / len(LENGTHS) / (base.batch_size * base.sequence_length)))
    stage = replace(
        base,
        num_steps=per_length,
        micro_batch_size=1,
        ramp=(),
        lr=stage_learning_rate(base, base.num_steps - 1),
        decay="constant",
        horizon_steps=0,
        warmup_steps=0,
        continue_optimizer=True,
        recompute="selective",
        eval_every=max(1, min(250, per_length)),
    )
    return LongContextConfig(stage=stage, lengths=LENGTHS, min_steps=min(1000, per_length))


def _annealed(longer: LongContextConfig, num_tokens: int) -> StageConfig:
    """The end: the rate in a straight line to zero at the longest length, good sources up-sampled, every step's weights averaged."""
    stage = longer.at(LENGTHS[-1])
    steps = max(1, round(num_tokens / (stage.batch_size * stage.sequence_length)))
    return replace(
        stage, sources=_mix(maths=40.0, multilingual=12.0), num_steps=steps, decay="linear", final_lr_fraction=0.0, average_every=1
    )


def _recipe(name: str, model: str, base: StageConfig, *, long_tokens: int, anneal_tokens: int) -> RecipeConfig:
    longer = _longer(base, long_tokens)
    scaling = preset(model).rope_scaling
    return RecipeConfig(
        name=name,
        seed=3,
        tokenizer=TokenizerTraining(vocab_size=128_000, sources=tuple(replace(source, max_bytes=B) for source in _mix())),
        model=_short(model),
        pretrain=base,
        long_context=replace(longer, rope_scaling=scaling),
        anneal=_annealed(longer, anneal_tokens),
        heldout_bytes=1_000_000,
        heldout_one_in=10_000,
        power=_H100,
    )


def _short(model: str) -> ModelConfig:
    """A published size before its long-context stage."""
    return replace(preset(model), max_position_embeddings=SHORT, rope_scaling=None)


def llama_1b() -> RecipeConfig:
    """Llama 3.2's 1B shape for one GPU: 25B tokens at 8K, six steps to 128K, annealing; all numbers ours."""
    base = _base(25 * B, rows=64, micro=4, lr=4e-4, warmup_steps=2000)
    return _recipe("llama-1b", "llama-3.2-1b", base, long_tokens=2 * B, anneal_tokens=1 * B)


def llama_8b() -> RecipeConfig:
    """Llama 3.1 8B: 15T tokens, peak rate 3e-4, the 405B's stages; batches are our choice."""
    base = _base(15 * T, rows=512, micro=2, lr=3e-4, warmup_steps=8000)
    return _recipe("llama-8b", "llama-3.1-8b", base, long_tokens=800 * B, anneal_tokens=ANNEAL_TOKENS)


def llama_70b() -> RecipeConfig:
    """Llama 3.1 70B: 15T tokens, peak rate 1.5e-4, the 405B's stages; batches are our choice."""
    base = _base(15 * T, rows=1024, micro=1, lr=1.5e-4, warmup_steps=8000)
    return _recipe("llama-70b", "llama-3.1-70b", base, long_tokens=800 * B, anneal_tokens=ANNEAL_TOKENS)


def llama_405b() -> RecipeConfig:
    """Llama 3.1 405B as published: 14.8T tokens in batches of 4M, 8M and 16M, 0.8T in six steps to 128K, annealing."""
    ramp = (
        RampPhase(until_tokens=FIRST_RAMP_TOKENS, sequence_length=4096, batch_size=1024),
        RampPhase(until_tokens=SECOND_RAMP_TOKENS, sequence_length=SHORT, batch_size=1024),
    )
    base = _base(14_800 * B, rows=2048, micro=1, lr=8e-5, warmup_steps=8000, ramp=ramp)
    base = replace(base, horizon_steps=COSINE_STEPS)
    return _recipe("llama-405b", "llama-3.1-405b", base, long_tokens=800 * B, anneal_tokens=ANNEAL_TOKENS)
