"""The card of a tuned model: what it started from, on what data and how it was trained, what was measured, samples. None is chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.model.reward import RewardModel
from herd.model.transformer import Transformer
from herd.recipes.tune_config import TuneConfig
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer

_METHODS = {
    "sft": "supervised fine-tuning: next-token loss",
    "reward": "reward model: ranking loss -log s(r(better) - r(worse))",
    "distill": "knowledge distillation on a teacher's top-k predictions",
}


def write_tune_card(config: TuneConfig, facts: Mapping[str, Any], model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Write README.md and training.json (the same figures for programs) into the model's folder."""
    (folder / "training.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    samples = [] if isinstance(model, RewardModel) else _samples(config, model, tokenizer)
    (folder / "README.md").write_text("\n".join(_lines(config, facts, samples)) + "\n", encoding="utf-8")


def _samples(config: TuneConfig, model: Transformer, tokenizer: Tokenizer) -> list[tuple[str, str, str]]:
    if not config.sample_prompts:
        return []
    llm = LLM(model, tokenizer=tokenizer)
    params = SamplingParams(temperature=0.6, top_p=0.9, seed=0, max_tokens=160)
    outputs = [llm.chat([Message.user(prompt)], params=params) for prompt in config.sample_prompts]
    return [(prompt, output.text, output.finish_reason) for prompt, output in zip(config.sample_prompts, outputs, strict=True)]


def method_text(config: TuneConfig) -> str:
    """The method in words, with what decides about it."""
    if config.method != "preference":
        return _METHODS[config.method] + (" on answers alone" if config.method == "sft" and config.train.answers_only else "")
    chosen = config.preference
    extra = f", {chosen.nll_weight:g} x NLL of the better answer" if chosen.nll_weight and not config.is_kto else ""
    return f"preference optimisation, loss {chosen.loss}, beta {chosen.beta:g}{extra}"


def adapter_text(config: TuneConfig) -> str:
    """What was trained: all weights, or adapters."""
    lora = config.lora
    quant = config.quant
    rounding = (
        f", matrices rounded to {quant.scheme}{f' in groups of {quant.group}' if quant.scheme == 'int4' else ''}" if quant.scheme else ""
    )
    if not lora.rank:
        return f"all weights{rounding}"
    kind = ("Q" if lora.nf4 else "") + ("DoRA" if lora.dora else "LoRA")
    stabilised = ", rank-stabilised" if lora.rslora else ""
    return f"{kind} of rank {lora.rank}, alpha {lora.alpha:g}{stabilised}, on {', '.join(lora.targets)}{rounding}"


def _lines(config: TuneConfig, facts: Mapping[str, Any], samples: list[tuple[str, str, str]]) -> list[str]:
    sources = ", ".join(f"{source.name} ({facts['epochs'].get(source.name, 0):.2f} epochs)" for source in config.train.sources)
    lines = [
        f"# {config.name}",
        "",
        f"A Llama of {facts['num_parameters']:,} parameters, tuned with herd from `{config.model}`.",
        "",
        "| | |",
        "|---|---|",
        f"| method | {method_text(config)} |",
        *([f"| teacher | {config.teacher} |"] if config.teacher else []),
        f"| trained | {adapter_text(config)} |",
        f"| data | {sources}; {facts['num_records']:,} records, {facts['num_dropped']:,} left out as too long |",
        f"| steps, rows a step | {facts['num_steps']:,}, {config.train.batch_size} |",
        f"| peak learning rate | {config.train.lr:g} |",
        f"| tokens read, units in the loss | {facts['num_tokens']:,}, {facts['num_counted']:,} |",
        f"| training time | {facts['seconds']:.0f} s on {facts['machine']} |",
        "",
        "Licences of the starting model and of the data go with it: name them before you share it.",
    ]
    if facts["after"]:
        lines += ["", "## Kept-back records", "", "| | before | after |", "|---|---|---|"]
        lines += [f"| {name} | {facts['before'].get(name, float('nan')):.4f} | {value:.4f} |" for name, value in facts["after"].items()]
    if samples:
        lines += ["", "## Samples", "", "Temperature 0.6, top-p 0.9, seed 0, one try each, in the recipe's order.", ""]
        for prompt, answer, reason in samples:
            quoted = "\n".join(f"> {line}" for line in answer.splitlines()) or "> (empty)"
            lines += [f"**{prompt}** ({'ended its turn' if reason == 'stop' else reason})", "", quoted, ""]
    return lines
