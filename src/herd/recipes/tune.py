"""Recipes of post-training: each starts from a model (`model=...`, cria unless given) and reads the file or folder that --data names.

Steps follow from the data (`epochs`). Learning rates are for models of cria's size; Llama 3.1 405B took 1e-5 for SFT and DPO.
"""

from __future__ import annotations

from typing import Any

from herd.recipes.tune_config import TuneConfig
from herd.train.adapters.config import LoraConfig
from herd.train.config import SourceConfig, StageConfig
from herd.train.objectives.config import DistillConfig, PreferenceConfig
from herd.train.qat_config import QatConfig

_DATA = (SourceConfig(name="data", path=".", kind="chat"),)
_PROMPTS = ("Hello!", "Who are you?", "Tell me a story.")


def _stage(**changes: Any) -> StageConfig:
    fields: dict[str, Any] = {
        "sources": _DATA,
        "num_steps": 100,
        "sequence_length": 512,
        "batch_size": 4,
        "micro_batch_size": 4,
        "lr": 3e-4,
        "final_lr_fraction": 0.1,
        "warmup_steps": 20,
        "weight_decay": 0.0,
        "eval_every": 50,
        "save_every": 50,
    }
    return StageConfig(**(fields | changes))


def _judged_stage(**changes: Any) -> StageConfig:
    """Rows hold a prompt with all of its answers, so they are longer."""
    return _stage(**({"sequence_length": 1024, "micro_batch_size": 2, "lr": 3e-5} | changes))


def sft() -> TuneConfig:
    """Supervised fine-tuning on a chat file: all weights, loss on answers alone."""
    return TuneConfig(name="sft", method="sft", train=_stage(answers_only=True), sample_prompts=_PROMPTS)


def lora() -> TuneConfig:
    """Fine-tuning on a chat file with low-rank adapters; writes the adapter and a merged model."""
    return TuneConfig(
        name="lora",
        method="sft",
        train=_stage(answers_only=True, lr=2e-3),
        lora=LoraConfig(rank=16, alpha=32.0),
        sample_prompts=_PROMPTS,
    )


def qlora() -> TuneConfig:
    """As lora, with the frozen weights in 4 bits (NF4)."""
    return TuneConfig(
        name="qlora",
        method="sft",
        train=_stage(answers_only=True, lr=2e-3),
        lora=LoraConfig(rank=16, alpha=32.0, nf4=True),
        sample_prompts=_PROMPTS,
    )


def reward() -> TuneConfig:
    """A reward model from a preference file, as Hugging Face's sequence classification."""
    return TuneConfig(name="reward", method="reward", epochs=1.0, train=_judged_stage(lr=1e-4))


def _preference(name: str, config: PreferenceConfig, **changes: Any) -> TuneConfig:
    return TuneConfig(
        name=name, method="preference", epochs=1.0, train=_judged_stage(**changes), preference=config, sample_prompts=_PROMPTS
    )


def dpo() -> TuneConfig:
    """Direct preference optimisation as Llama 3.1's: beta 0.1, formatting tokens masked, 0.2 x NLL of the chosen answer."""
    return _preference("dpo", PreferenceConfig())


def ipo() -> TuneConfig:
    """IPO on a preference file: a squared loss that does not push without end."""
    return _preference("ipo", PreferenceConfig(loss="ipo", length_normalised=True, nll_weight=0.0))


def kto() -> TuneConfig:
    """KTO on a chat file whose records have a label, true for good answers."""
    return _preference("kto", PreferenceConfig(loss="kto", nll_weight=0.0))


def orpo() -> TuneConfig:
    """ORPO on a preference file: likelihood and odds ratio in one stage, no reference."""
    return _preference("orpo", PreferenceConfig(loss="orpo", nll_weight=1.0), lr=1e-4)


def simpo() -> TuneConfig:
    """SimPO on a preference file: mean log-probabilities with a margin, no reference."""
    return _preference("simpo", PreferenceConfig(loss="simpo", beta=2.0, gamma=1.0, nll_weight=0.0))


def distill() -> TuneConfig:
    """Distillation on a chat file: the answers and a teacher's predictions of them (set teacher=MODEL)."""
    return TuneConfig(name="distill", method="distill", teacher="cria", train=_stage(answers_only=True), sample_prompts=_PROMPTS)


def _recovery_stage(**changes: Any) -> StageConfig:
    return _stage(
        sources=(SourceConfig(name="data", path=".", kind="text"),), sequence_length=256, batch_size=8, micro_batch_size=8, **changes
    )


def qat() -> TuneConfig:
    """Recovery from rounding on text: all weights are trained while their matrices are rounded, towards the unrounded model."""
    return TuneConfig(
        name="qat",
        method="distill",
        epochs=1.0,
        train=_recovery_stage(lr=1e-4),
        distill=DistillConfig(ce_weight=0.0, top_k=64),
        quant=QatConfig(scheme="int4"),
    )


def qat_lora() -> TuneConfig:
    """As qat, with low-rank changes of frozen weights: a matrix and its adapter are rounded together."""
    return TuneConfig(
        name="qat-lora",
        method="distill",
        epochs=1.0,
        train=_recovery_stage(lr=1e-3),
        distill=DistillConfig(ce_weight=0.0, top_k=64),
        lora=LoraConfig(rank=32, alpha=32.0),
        quant=QatConfig(scheme="int4"),
    )


def cria_guard() -> TuneConfig:
    """A small guard model that writes Llama Guard 3's verdicts: cria tuned on the labelled texts of a data folder (`safety`)."""
    stage = _stage(
        sources=(
            SourceConfig(name="verdicts", path="own:guard", kind="chat", num_items=10_000, weight=0.45),
            SourceConfig(name="short", path="own:guard-short", kind="chat", num_items=60_000, weight=0.55),
        ),
        num_steps=950,
        sequence_length=1024,
        batch_size=8,
        micro_batch_size=8,
        lr=1.2e-3,
        final_lr_fraction=0.02,
        warmup_steps=30,
        eval_every=100,
        save_every=100,
        answers_only=True,
    )
    return TuneConfig(name="cria-guard", method="sft", epochs=0.0, train=stage)
