"""The model card, written from what a run measured: data and licences, tokens, compute, energy and carbon, held-out loss, samples.

Energy and carbon are nameplate figures, as Llama's own cards give them: hours x watts x PUE, times the grid's carbon intensity; both inputs
are named in the card. Samples are the recipe's prompts in their order, each answered once with a fixed seed: none is chosen.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from herd.data.curate.report import REPORT_JSON, CurateReport, read_report
from herd.inference.llm import LLM
from herd.inference.output import Output
from herd.inference.params import SamplingParams
from herd.model.transformer import Transformer
from herd.plan.accounting import Power, account, account_energy
from herd.recipes.abilities import Abilities, abilities_table
from herd.recipes.config import PowerConfig, RecipeConfig
from herd.recipes.licences import LICENCES
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer
from herd.train.config import StageConfig
from herd.train.energy import JOULES_PER_KWH

UNKNOWN = "not on record: name it before you share the model"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageReport:
    """What a stage did: steps, tokens read (padding included), tokens counted in the loss, seconds, and its last held-out scores.

    `energy_j` is what `energy_method` counted: a nameplate's joules are watts over seconds.
    """

    name: str
    num_steps: int
    num_tokens: int
    num_counted: int
    seconds: float
    bits_per_byte: dict[str, float]
    epochs: dict[str, float]
    machine: str
    energy_j: float = 0.0
    energy_method: str = "nameplate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Another model that the card shows beside the new one."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    abilities: Abilities


def machine_of(device: torch.device) -> str:
    """What a stage ran on, in words."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{platform.machine()}{gpu}, torch {torch.__version__}"


def write_card(
    config: RecipeConfig,
    reports: tuple[StageReport, ...],
    model: Transformer,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    abilities: Abilities | None = None,
    beside: Beside | None = None,
    data: Path | None = None,
    stages: Sequence[tuple[str, StageConfig]] | None = None,
    history: str = "",
) -> None:
    """Write README.md and training.json (the same figures for programs) into the model's folder.

    `data` is the run's data folder, which may hold the report.json of the curation that made it. A model that took another way than its
    recipe has the `stages` that ran, one for each report, and its `history` in words.
    """
    stages = config.stages() if stages is None else stages
    found = {} if abilities is None else {config.name: abilities}
    answers = {config.name: _samples(config, model, tokenizer)}
    if beside is not None:
        name = beside.name if beside.name != config.name else f"{beside.name} before"
        found[name], answers[name] = beside.abilities, _samples(config, beside.model, beside.tokenizer)
    facts = _facts(config, reports, stages) | {"abilities": {name: asdict(each) for name, each in found.items()}}
    curated = None if data is None or not (data / REPORT_JSON).exists() else read_report(data / REPORT_JSON)
    (folder / "training.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_render(config, facts, answers, found, curated, stages=stages, history=history), encoding="utf-8")


def _facts(config: RecipeConfig, reports: tuple[StageReport, ...], stages: Sequence[tuple[str, StageConfig]]) -> dict[str, object]:
    power, hours = config.power, sum(report.seconds for report in reports) / 3600
    nameplate = Power(watts=power.watts, pue=power.pue, grid_kg_per_kwh=power.grid_kg_per_kwh)
    methods = {report.energy_method for report in reports}
    # Where some stages were measured and others were not, these add their watts over their seconds.
    counted = [report.energy_j or power.watts * report.seconds for report in reports]
    measured = methods != {"nameplate"}
    kwh = sum(counted) / JOULES_PER_KWH
    used = account_energy(kwh, nameplate, device_hours=hours) if measured else account(hours, nameplate)
    flops = sum(
        report.num_tokens * config.model.training_flops_per_token(stage.sequence_length)
        for report, (_, stage) in zip(reports, stages, strict=True)
    )
    return {
        "recipe": config.name,
        "num_parameters": config.model.num_parameters,
        "hours": round(hours, 3),
        "flops": float(flops),
        "energy_kwh": round(used.energy_kwh, 4),
        "energy_method": "+".join(sorted(methods)) if measured else "nameplate",
        "carbon_kg_co2eq": round(used.carbon_kg, 4),
        "machine": "; then ".join(dict.fromkeys(report.machine for report in reports)),
        "stages": [
            {
                "name": report.name,
                "num_steps": report.num_steps,
                "num_tokens": report.num_tokens,
                "num_counted": report.num_counted,
                "seconds": round(report.seconds, 1),
                "bits_per_byte": report.bits_per_byte,
                "epochs": {name: round(value, 2) for name, value in report.epochs.items()},
            }
            for report in reports
        ],
    }


def _samples(config: RecipeConfig, model: Transformer, tokenizer: Tokenizer) -> list[Output]:
    """An answer to each of the recipe's prompts."""
    llm = LLM(model, tokenizer=tokenizer)
    params = SamplingParams(temperature=0.6, top_p=0.9, seed=0, max_tokens=160)
    samples = [llm.chat([Message.user(prompt)], params) for prompt in config.sample_prompts]
    llm.close()
    return samples


def _licence(path: str) -> tuple[str, str]:
    """Origin and licence of a source, by its path. One that is not on record, as a user's own file, is named as such."""
    name = path.removeprefix("package:").removesuffix(".zst").removesuffix(".gz").removesuffix(".jsonl")
    return LICENCES.get(name, (path, UNKNOWN))


def _render(
    config: RecipeConfig,
    facts: dict[str, object],
    answers: Mapping[str, Sequence[Output]],
    abilities: Mapping[str, Abilities],
    curated: CurateReport | None,
    *,
    stages: Sequence[tuple[str, StageConfig]],
    history: str,
) -> str:
    model, power = config.final_model, config.power
    lines = [
        f"# {config.name}",
        "",
        f"A Llama 3.1 architecture of {model.num_parameters:,} parameters that herd trained itself, from random weights, with the recipe",
        f"`{config.name}`. It proves the pipeline and runs anywhere. It is far too small to be relied on: it invents facts, and its",
        "arithmetic is often wrong.",
        "",
        *((history, "") if history else ()),
        "| | |",
        "|---|---|",
        f"| layers, width, ffn | {model.num_hidden_layers}, {model.hidden_size}, {model.intermediate_size} |",
        f"| query / KV heads, head dim | {model.num_attention_heads} / {model.num_key_value_heads}, {model.head_dim} |",
        f"| vocabulary | {model.vocab_size:,} (256 special) |",
        f"| context | {model.max_position_embeddings:,} tokens |",
        f"| weights | bfloat16, {'tied' if model.tie_word_embeddings else 'untied'} embedding |",
        f"| trained on | {facts['machine']} |",
        f"| training time | {facts['hours']} h |",
        f"| compute | {facts['flops']:.3g} FLOP (6 per parameter and token, and attention) |",
        _energy(facts, power),
        f"| carbon, location-based | {facts['carbon_kg_co2eq']} kg CO2eq at {power.grid_kg_per_kwh:g} kg/kWh (an assumed average grid) |",
        "",
        "## Stages",
        "",
        "| stage | steps | tokens read | tokens in the loss | minutes |",
        "|---|---|---|---|---|",
    ]
    done: list[dict[str, object]] = facts["stages"]  # type: ignore[assignment]
    lines += [
        f"| {s['name']} | {s['num_steps']:,} | {s['num_tokens']:,} | {s['num_counted']:,} | {float(str(s['seconds'])) / 60:.1f} |"
        for s in done
    ]
    lines += ["", "## Held-out bits per byte", "", *_heldout_table(done), "", "## Data", "", *_data_table(stages, done), ""]
    lines += [*_curation(curated), ""]
    if abilities and (table := abilities_table(abilities)):
        lines += ["## What it can do", "", "Greedy answers; facts and requests stand in no training set.", "", *table, ""]
    lines += ["## Samples", "", "Temperature 0.6, top-p 0.9, seed 0, one try each, in the recipe's order.", ""]
    lines += _sample_lines(config.sample_prompts, answers)
    lines += ["## Licence", "", _weights_licence(stages), ""]
    return "\n".join(lines)


def _sample_lines(prompts: Sequence[str], answers: Mapping[str, Sequence[Output]]) -> list[str]:
    """Each prompt with its answers; where there is but one model, its name goes without saying."""
    lines: list[str] = []
    for number, prompt in enumerate(prompts):
        told: list[str] = []
        for name, outputs in answers.items():
            how = "ended its turn" if outputs[number].finish_reason == "stop" else outputs[number].finish_reason
            quoted = "\n".join(f"> {line}" for line in outputs[number].text.splitlines()) or "> (empty)"
            told += [f"**{prompt}** ({how})" if len(answers) == 1 else f"{name} ({how}):", "", quoted, ""]
        lines += told if len(answers) == 1 else [f"**{prompt}**", "", *told]
    return lines


def _curation(curated: CurateReport | None) -> list[str]:
    """What was done to the text before, and whether evaluation sets were looked for in it."""
    if curated is None:
        return ["Overlap with public evaluation sets was not checked for this edition."]
    total, stages = curated.total, {str(tally["stage"]): tally for tally in curated.stages}
    line = (
        f"The text was curated by `herd data curate` ({', '.join(stages)}): of {total['documents_in']:,} documents "
        f"({total['bytes_in'] / 1e6:,.1f} MB) {total['documents_out']:,} ({total['bytes_out'] / 1e6:,.1f} MB) were kept."
    )
    if "decontaminate" not in stages:
        return [line, "Overlap with public evaluation sets was not checked."]
    overlapping = sum(count for count, _ in stages["decontaminate"]["dropped"].values())
    return [line, f"{overlapping:,} of those left out overlapped with public evaluation sets."]


def _energy(facts: dict[str, object], power: PowerConfig) -> str:
    if facts["energy_method"] == "nameplate":
        return f"| energy, by nameplate | {facts['energy_kwh']} kWh: {power.hardware}, taken as {power.watts:g} W, PUE {power.pue:g} |"
    methods = str(facts["energy_method"]).split("+")
    how = f"measured ({'+'.join(method for method in methods if method != 'nameplate')})"
    if "nameplate" in methods:
        return f"| energy, {how} and by nameplate | {facts['energy_kwh']} kWh, PUE {power.pue:g} (assumed) included |"
    return f"| energy, {how} | {facts['energy_kwh']} kWh, PUE {power.pue:g} (assumed) included |"


def _weights_licence(stages: Sequence[tuple[str, StageConfig]]) -> str:
    if all(_licence(source.path)[1] != UNKNOWN for _, stage in stages for source in stage.sources):
        return "The weights are released under Apache-2.0; the data keep the licences named above, with thanks to their authors."
    return "The licence of the weights is for whoever trained them to choose; the data keep the licences named above."


def _heldout_table(stages: list[dict[str, object]]) -> list[str]:
    scores: dict[str, dict[str, float]] = {str(stage["name"]): stage["bits_per_byte"] for stage in stages}  # type: ignore[misc]
    languages = sorted({language for table in scores.values() for language in table})
    return [
        "Openings (up to 4,800 characters) of documents kept out of training, chosen by a digest of their text.",
        "",
        "| language | " + " | ".join(f"after {name}" for name in scores) + " |",
        "|---" * (len(scores) + 1) + "|",
        *(
            f"| {lang} | " + " | ".join(f"{table[lang]:.3f}" if lang in table else "-" for table in scores.values()) + " |"
            for lang in languages
        ),
    ]


def _data_table(stages: Sequence[tuple[str, StageConfig]], done: list[dict[str, object]]) -> list[str]:
    epochs: dict[str, dict[str, float]] = {str(stage["name"]): stage["epochs"] for stage in done}  # type: ignore[misc]
    rows: dict[str, str] = {}
    for name, stage in stages:
        for source in stage.sources:
            origin, licence = _licence(source.path)
            languages = ", ".join(source.languages) or "all"
            percent = 100 * source.weight / sum(other.weight for other in stage.sources)
            share = f"{percent:.1f} % of {name}, {epochs[name].get(source.name, 0):.2f} epochs"
            rows[f"{name}/{source.name}"] = f"| {source.name} ({languages}) | {share} | {origin} | {licence} |"
    return ["| source | share | origin | licence |", "|---|---|---|---|", *rows.values()]
