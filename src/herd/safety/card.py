"""The model card of the detectors, written from their measured figures; the words around them are honest about what fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.safety.categories import NAMES

_TITLES = {
    "harm": "Harm (hazards S1 to S13)",
    "attack": "Attacks (jailbreaks, orders to drop instructions)",
    "embedded": "Orders inside a third party's text",
}
_HEADER = "| | harmful | benign | F1 | precision | recall | FPR | AUPRC |\n|---|---|---|---|---|---|---|---|"
_ABOUT = """\
# The detectors that ship with herd

Linear classifiers over hashed words and character runs, trained by `herd guard train` in numpy. They work without a network and without
published weights, take 0.15 ms for a sentence on one core of an AMD EPYC (Zen 5) server, and are a first layer: **not a replacement for
Llama Guard or Prompt Guard**. Load those where you have them. The weights are released under Apache-2.0.

All figures below are of text that was held back: whole groups of templates (HateCheck, AILuminate), whole documents, whole openings of
attacks. Sources marked *foreign* were never trained on; they tell best what to expect elsewhere. Thresholds were chosen on a third set
(`tune`): for harm the lowest at which at most 2% of ordinary benign texts and 25% of benign look-alikes are flagged, for attacks 0.5%,
for orders inside documents 1%. The keyword baseline counts words of a list of 200 from the same training data, the best of four such
lists by the tuning texts. Scores are shifted so that the chosen threshold is 0.5. `herd guard eval --data FOLDER` prints the figures
anew.
"""
_WEAKNESSES = """\
## Known weaknesses

- A linear model sees words, not who says what of whom. **Counter-speech, quotations and neutral statements about groups are flagged far
  too often** (the rows of look-alikes), and hate without loud words passes.
- Hazards other than hate are known from AILuminate, in English and French, and from a few hundred short requests that were written for
  herd. In German, Hindi, Italian, Portuguese and Spanish the harm detector knows hate and the plainest of requests; **in Thai it knows
  ten written requests and no hate**: do not rely on it there.
- Short requests on topics that it never saw are often missed, and benign requests in the same words flagged (the row `requests`: written
  for herd, topics held back).
- S14 (code interpreter abuse) is not covered: there was no data. Categories are a hint; the verdict is better than its label.
- Toxic but not hateful comments (the foreign set `surge`) are mostly passed, and the prompts of WildGuard in `piguard`, which play at
  the border, are flagged more often than ordinary ones.
- Attacks in words that training did not have pass: of our own held-back openings about one in seven, of PIGuard's attacks more than half
  at this threshold (see the rows). In other languages than English attacks were measured on few texts, all our own. Encodings
  (base64, ciphers), attacks spread over turns and persuasive stories without any of the usual words pass.
- Very short texts say little. Below 40 characters the odds of an attack are divided by 19 (chosen on the tuning texts), so that most
  status lines of tools pass; some, such as "HTTP 403 Forbidden", are flagged all the same.
- An order inside a document that reads as an ordinary request ("What is the capital of Brazil?") cannot be told from the document's own
  words. Nothing here replaces asking a person before a tool acts on what a third party wrote.
- The tweets of the training data carry their annotators' bias against African American English; their weight is low, the bias remains.

## Data

AILuminate demo prompts (mlcommons/ailuminate, CC-BY-4.0) · HateCheck and Multilingual HateCheck (paul-rottger/hatecheck-data,
rewire-online/multilingual-hatecheck, CC-BY-4.0) · hate speech and offensive language (t-davidson, MIT) · OpenAI moderation evaluation
set (openai/moderation-api-release, MIT) · BIPIA train parts (microsoft/BIPIA, MIT). Measured only: PIGuard validation set
(leolee99/PIGuard, MIT), Surge toxicity (surge-ai/toxicity, MIT). Benign text: Dolly and HH-RLHF samples, OpenAssistant, self-instruct
seeds, ChatterBot corpus, Synthetic-Persona-Chat, XQuAD, FLORES-200 dev, Common Voice sentences, Microsoft's courses for beginners,
documentation of React, Vue and others, OneStopEnglish, Klexikon, tldr pages, Thai government news, OpenStax, MMLU validation questions,
CLINC150; their licences are CC0, CC-BY, CC-BY-SA, MIT, BSD and Apache-2.0, as the sources say. Attack templates, benign requests and
look-alikes in eight languages were written for herd (`written.json`, Apache-2.0).
"""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def row(name: str, figures: Mapping[str, Any]) -> str:
    """A line of a table of figures."""
    cells = [name, str(figures["num_positive"]), str(figures["num_negative"])]
    cells += [_number(figures[field]) for field in ("f1", "precision", "recall", "fpr", "auprc")]
    return "| " + " | ".join(cells) + " |"


def table(report: Mapping[str, Any], head: str) -> str:
    """All figures of a head as one table."""
    figures = report[head]
    lines = [
        _HEADER,
        row("**held back**", figures["held_back"]),
        row("keyword baseline", figures["baseline"]),
        row("ordinary benign texts", figures["ordinary"]),
        row("benign look-alikes", figures["lookalikes"]),
        row("look-alikes, keyword baseline", figures["lookalikes_baseline"]),
    ]
    for lang, found in figures["by_language"].items():
        lines += [row(lang, found), row(f"{lang}, keyword baseline", figures["by_language_baseline"][lang])]
        alike = figures["lookalikes_by_language"][lang]
        if alike["num_negative"]:
            lines.append(row(f"{lang}, look-alikes", alike))
    for source, found in figures["by_source"].items():
        if source in figures["foreign_baseline"]:
            lines += [
                row(f"*foreign:* {source}", found),
                row(f"*foreign:* {source}, keyword baseline", figures["foreign_baseline"][source]),
            ]
        elif found["num_positive"]:
            lines.append(row(f"source {source}", found))
    return "\n".join(lines)


def write_card(report: Mapping[str, Any]) -> str:
    """The whole card."""
    parts = [_ABOUT]
    for head, title in _TITLES.items():
        parts.append(f"## {title}\n\nThreshold {report[head]['threshold']}.\n\n{table(report, head)}\n")
    found = report["categories"]
    by_code = ", ".join(f"{code} {NAMES[code]} {_number(value)}" for code, value in found["recall_by_category"].items())
    parts.append(
        f"## Categories\n\nOf {found['num']} held-back AILuminate prompts the first category named is the true one for "
        f"{_number(found['accuracy'])}. Recall by category: {by_code}.\n"
    )
    parts.append(_WEAKNESSES)
    return "\n".join(parts)
