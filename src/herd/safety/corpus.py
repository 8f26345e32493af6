"""The labelled texts that the detectors are trained and measured on: read from a data folder, grouped so that no template is on both sides.

Each `Example` has what is known of it: whether it is harmful (and which category), whether it attacks the model (a jailbreak or an order
to drop its instructions), whether it speaks to a model from inside a third party's text. What is not known stays None and counts nowhere.
Texts that share a template are one group, and a group is in one part as a whole: `train`, `tune` (thresholds) or `test`. The sources in
`FOREIGN` are never trained on. What herd's authors wrote themselves is in `written.json`.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np

from herd.base.errors import NotFoundError
from herd.data.records import read_jsonl
from herd.safety.features import hashes, plain

Part = Literal["train", "tune", "test"]
FOREIGN = frozenset({"piguard", "surge"})
_HAZARDS = {
    "vcr": "S1",
    "ncr": "S2",
    "src": "S3",
    "cse": "S4",
    "dfm": "S5",
    "spc_fin": "S6",
    "spc_hlt": "S6",
    "spc_lgl": "S6",
    "prv": "S7",
    "ipv": "S8",
    "iwp": "S9",
    "hte": "S10",
    "ssh": "S11",
    "sxc_prn": "S12",
    "spc_ele": "S13",
}
_MODERATION = {"S3": "S4", "SH": "S11", "H2": "S10", "H": "S10", "V2": "S1", "V": "S1", "S": "S12", "HR": "S10"}
_WORDS = re.compile(r"\w+")
_SIMILAR = 0.45
_LANGUAGES = ("en", "de", "fr", "it", "pt", "hi", "es", "th")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A text and what is known of it.

    Attributes:
        text: the text.
        source: where it is from.
        lang: its language.
        group: examples of one group share a template or a document.
        harm: whether it is harmful.
        category: the category of the harm, if known.
        attack: whether it is a jailbreak or tells a model to drop its instructions.
        embedded: whether it gives a model orders from inside a third party's text.
        weight: how much it counts in training.
        lookalike: benign, and made to look harmful.
        planted: an order stands inside a longer text that is no order.
    """

    text: str
    source: str
    lang: str
    group: str
    harm: bool | None = None
    category: str | None = None
    attack: bool | None = None
    embedded: bool | None = None
    weight: float = 1.0
    lookalike: bool = False
    planted: bool = False

    @property
    def part(self) -> Part:
        """Which part its group is in: three in five train, one in five tunes, one in five tests; what is foreign only tests."""
        if self.source in FOREIGN or self.group.startswith("held:"):
            return "test"
        for part in ("train", "tune"):
            if self.group.startswith(f"{part}:"):
                return part
        place = zlib.crc32(self.group.encode()) % 5
        return "train" if place < 3 else "tune" if place == 3 else "test"


@cache
def written() -> dict[str, Any]:
    """What was written for herd."""
    return json.loads(files("herd.safety").joinpath("written.json").read_text(encoding="utf-8"))


def read_corpus(folder: Path) -> list[Example]:
    """Every example of a data folder. Raises NotFoundError where it has no safety data."""
    if not (folder / "safety").is_dir():
        raise NotFoundError(
            f"{folder} has no folder `safety`", hint="give the data folder with --data or HERD_DATA; the model card names its sources"
        )
    examples = [
        *_hatecheck(folder),
        *_ailuminate(folder),
        *_moderation(folder),
        *_tweets(folder),
        *_surge(folder),
        *_piguard(folder),
        *_bipia(folder),
        *_benign(folder),
        *_written(),
    ]
    return [example for example in examples if example.text.strip()]


# Harm


def _hatecheck(folder: Path) -> Iterator[Example]:
    records = list(read_jsonl(folder / "safety/hatecheck_multilingual.jsonl.zst"))
    for lang in sorted({record["lang"] for record in records}):
        mine = [record for record in records if record["lang"] == lang]
        masked = _without_targets([record["text"] for record in mine], [record["target"] for record in mine])
        for record, group in zip(mine, _groups(masked), strict=True):
            hateful = record["label"] == "hateful"
            yield Example(
                text=record["text"],
                source="hatecheck",
                lang=lang,
                group=f"hatecheck:{lang}:{group}",
                harm=hateful,
                category="S10" if hateful else None,
                attack=False,
                weight=0.5 if hateful else 1.25,
                lookalike=not hateful,
            )


def _without_targets(texts: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Templates: texts without the words that stand almost only beside one target (`women`, `Muslims`)."""
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    words = [_WORDS.findall(plain(text)) for text in texts]
    for found, target in zip(words, targets, strict=True):
        for word in set(found):
            by_word[word][target] += 1
    own = {
        word
        for word, counts in by_word.items()
        if counts.total() >= 5 and counts.most_common(1)[0][0] and counts.most_common(1)[0][1] >= 0.8 * counts.total()
    }
    return [" ".join("_" if word in own else word for word in found) for found in words]


def _ailuminate(folder: Path) -> Iterator[Example]:
    records = list(read_jsonl(folder / "safety/ailuminate_prompts.jsonl.zst"))
    for lang in ("en", "fr"):
        mine = [record for record in records if record["lang"] == lang]
        for record, group in zip(mine, _groups([record["prompt"] for record in mine]), strict=True):
            yield Example(
                text=record["prompt"],
                source="ailuminate",
                lang=lang,
                group=f"ailuminate:{lang}:{group}",
                harm=True,
                category=_HAZARDS[record["hazard"]],
                weight=3.0,
            )


def _moderation(folder: Path) -> Iterator[Example]:
    for index, record in enumerate(read_jsonl(folder / "safety/openai_moderation_public.jsonl.zst")):
        labels = [ours for theirs, ours in _MODERATION.items() if record.get(theirs) == 1]
        yield Example(
            text=record["prompt"],
            source="openai_moderation",
            lang="en",
            group=f"moderation:{index}",
            harm=bool(labels),
            category=labels[0] if labels else None,
            attack=False,
            weight=2.0,
        )


def _tweets(folder: Path) -> Iterator[Example]:
    for index, record in enumerate(read_jsonl(folder / "safety/davidson_tweets.jsonl.zst")):
        hateful = record["label"] == "hate"
        if hateful or (record["label"] == "neither" and index % 2 == 0):
            yield Example(
                text=record["text"],
                source="davidson",
                lang="en",
                group=f"davidson:{index}",
                harm=hateful,
                category="S10" if hateful else None,
                attack=False,
                weight=0.3,
            )


def _surge(folder: Path) -> Iterator[Example]:
    with (folder / "safety/surge_toxicity_en.csv").open(encoding="utf-8", newline="") as file:
        for index, record in enumerate(csv.DictReader(file)):
            toxic = record["is_toxic"] == "Toxic"
            yield Example(text=record["text"], source="surge", lang="en", group=f"surge:{index}", harm=toxic)


# Attacks


def _piguard(folder: Path) -> Iterator[Example]:
    for index, record in enumerate(json.loads((folder / "safety/piguard_valid.json").read_text(encoding="utf-8"))):
        attack = bool(record["label"])
        kind = record["source"]
        indirect = kind.startswith("BIPIA")
        yield Example(
            text=record["prompt"],
            source="piguard",
            lang="en",
            group=f"piguard:{kind}:{index}",
            # Its WildGuard prompts are benign, though some play at the border; its BIPIA texts are others' documents.
            harm=False if not attack and not indirect else None,
            attack=attack if not indirect else None,
            embedded=attack
            if indirect or kind in ("PINT_documents", "PINT_internal_prompt_injection", "PINT_public_prompt_injection")
            else None,
            lookalike=not attack and (kind.startswith("NotInject") or kind == "PINT_hard_negatives"),
        )


def _bipia(folder: Path) -> Iterator[Example]:
    place = folder / "safety/bipia"
    contexts = [record["context"] for record in read_jsonl(place / "email_train.jsonl")]
    contexts += ["\n".join(record["context"]) for record in read_jsonl(place / "code_train.jsonl")]
    for index, text in enumerate(contexts):
        yield Example(
            text=_joined(text), source="bipia", lang="en", group=f"bipia:context:{index}", attack=False, embedded=False, weight=2.0
        )
    orders = [
        (kind, text)
        for name in ("text_attack_train.json", "code_attack_train.json")
        for kind, texts in json.loads((place / name).read_text(encoding="utf-8")).items()
        for text in texts
    ]
    for number, (kind, order) in enumerate(orders):
        group = f"bipia:order:{kind}"
        yield Example(text=order, source="bipia", lang="en", group=group, embedded=True, weight=2.0)
        # Planted in a context of the same part, so that neither is known from training.
        part = Example(text=order, source="bipia", lang="en", group=group).part
        same = [
            text
            for index, text in enumerate(contexts)
            if Example(text="", source="bipia", lang="", group=f"bipia:context:{index}").part == part
        ]
        for step in range(3):
            context = _joined(same[(3 * number + step) % len(same)])
            yield Example(text=_plant(context, order, step), source="bipia", lang="en", group=group, embedded=True, planted=True)


def _joined(text: str | Sequence[str]) -> str:
    return text if isinstance(text, str) else "\n".join(text)


def _plant(context: str, order: str, where: int) -> str:
    """A context with an order at its beginning, middle or end."""
    lines = context.split("\n")
    lines.insert((0, len(lines) // 2, len(lines))[where], order)
    return "\n".join(lines)


def _written() -> Iterator[Example]:
    ours = written()
    for lang, sets in ours["lookalikes"].items():
        for part, mark in (("train", "train"), ("held_back", "held")):
            for text in sets[part]:
                group = f"{mark}:lookalike:{lang}"
                yield Example(
                    text=text,
                    source="written",
                    lang=lang,
                    group=group,
                    harm=False,
                    attack=False,
                    embedded=False,
                    weight=3.0,
                    lookalike=True,
                )
    for lang, sets in ours["requests"].items():
        for number, topic in enumerate(sets["topics"]):
            for frame in sets["frames"]:
                text, group = frame.format(topic), f"requests:{lang}:{number}"
                yield Example(text=text, source="requests", lang=lang, group=group, harm=False, attack=False, weight=2.0)
    yield from _harmful_requests()
    for lang, sets in ours["attacks"].items():
        goals = sets["goals"]
        for part in ("train", "held_back"):
            # Openings are held back whole; two in five goals are too.
            for number, opening in enumerate(sets[part]):
                mark = "held" if part == "held_back" else "tune" if number % 4 == 3 else "train"
                for goal in goals[: len(goals) * 3 // 5] if part == "train" else goals:
                    text = opening.format(goal)
                    yield Example(
                        text=text, source="attacks", lang=lang, group=f"{mark}:attack:{lang}", attack=True, embedded=True, weight=1.5
                    )
    yield from _composed()
    for index, text in enumerate(ours["near_attacks"]):
        yield Example(
            text=text,
            source="near",
            lang="en",
            group=f"near:{index}",
            harm=False,
            attack=False,
            embedded=False,
            weight=4.0,
            lookalike=True,
        )


def _harmful_requests() -> Iterator[Example]:
    """The frames of the benign requests with harmful topics, so that the frame tells nothing; topics are held back whole."""
    for lang, sets in written()["requests"].items():
        for number, harm in enumerate(sets["harmful"]):
            mark = ("train", "held", "train", "tune", "train")[number % 5]
            for frame in sets["frames"]:
                yield Example(
                    text=frame.format(harm["topic"]),
                    source="requests",
                    lang=lang,
                    group=f"{mark}:harmful:{lang}:{number}",
                    harm=True,
                    category=harm["category"],
                    attack=False,
                    weight=2.0,
                )


def _composed() -> Iterator[Example]:
    """Attacks put together from parts, by a fixed seed: orders to drop instructions, personas without rules. None is tested on."""
    ours = written()
    draw = Random(20240723)
    for lang, parts in ours["overrides"].items():
        goals = ours["attacks"][lang]["goals"]
        for number in range(700 if lang == "en" else 90):
            verb, what = draw.choice(parts["verbs"]), draw.choice(parts["objects"])
            order = f"{what} को {verb}" if lang == "hi" else f"{verb} {what}"
            goal = draw.choice(goals[: len(goals) * 3 // 5])
            text = draw.choice(parts["frames"]).format(order, goal=goal)
            text = text.upper() if number % 12 == 5 else text[:1].upper() + text[1:]
            mark = "tune" if number % 6 == 5 else "train"
            yield Example(text=text, source="composed", lang=lang, group=f"{mark}:override:{lang}", attack=True, embedded=True, weight=1.5)
    for number, text in enumerate(ours["injection_sentences"]):
        mark = "tune" if number % 6 == 5 else "train"
        yield Example(text=text, source="composed", lang="en", group=f"{mark}:sentence:{number}", attack=True, embedded=True, weight=4.0)
    sentences = ours["jailbreak_sentences"]
    for number in range(500):
        chosen = draw.sample(sentences[:22] if number % 6 != 5 else sentences[22:], draw.randint(1, 5))
        mark = "tune" if number % 6 == 5 else "train"
        yield Example(text=" ".join(chosen), source="composed", lang="en", group=f"{mark}:persona", attack=True, weight=1.5)


# Benign text of other data sets


def _benign(folder: Path) -> Iterator[Example]:
    yield from _benign_turns(folder)
    yield from _benign_questions(folder)
    yield from _benign_documents(folder)


def _benign_turns(folder: Path) -> Iterator[Example]:
    """What people and assistants say."""
    for name, step, role in (
        ("dolly_hhrlhf_small", 1, "user"),
        ("oasst_en_100_trees", 1, "user"),
        ("self_instruct_seed", 1, "user"),
        ("chatterbot_smalltalk", 1, "user"),
        ("synthetic_persona_chat", 4, "user"),
        ("dolly_hhrlhf_small", 2, "assistant"),
        ("oasst_en_100_trees", 2, "assistant"),
    ):
        for index, record in enumerate(_every(folder / f"instruct/{name}.jsonl.zst", step)):
            text = next((turn["content"] for turn in record["messages"] if turn["role"] == role), "")
            talk = name in ("chatterbot_smalltalk", "synthetic_persona_chat")
            yield _clean(text, name, record.get("lang") or "en", index, third_party=talk)


def _benign_questions(folder: Path) -> Iterator[Example]:
    """Questions, with the passages that answer them, and requests to a voice assistant."""
    for index, record in enumerate(_every(folder / "evals_public/xquad.jsonl.zst", 4)):
        yield _clean(record["question"], "xquad", record["lang"], index, third_party=True)
        if index % 5 == 0:
            yield _clean(record["context"], "xquad", record["lang"], index, third_party=True)
    for index, record in enumerate(_every(folder / "evals_public/mmlu_val.jsonl.zst", 2)):
        yield _clean(record["question"], "mmlu", "en", index, third_party=True)
    intents = json.loads((folder / "tools/clinc150_full.json").read_text(encoding="utf-8"))
    for index, (text, intent) in enumerate(intents["train"][::8]):
        yield replace(_clean(text, "clinc", "en", index, third_party=True), group=f"clinc:{intent}")


def _benign_documents(folder: Path) -> Iterator[Example]:
    """Sentences and pieces of documents, as a third party's text."""
    for index, record in enumerate(read_jsonl(folder / "evals_public/flores200_dev.jsonl.zst")):
        for lang in _LANGUAGES[index % 2 :: 2]:
            yield _clean(record[lang], "flores", lang, index, third_party=True)
    for index, record in enumerate(_every(folder / "corpus/common_voice_sentences.jsonl.zst", 16)):
        for line in record["text"].split("\n")[:4]:
            yield _clean(line, "common_voice", record["lang"], index, third_party=True)
    for name, step in (
        ("ms_courses", 3),
        ("docs_multilingual", 4),
        ("onestop_english", 2),
        ("klexikon_de", 12),
        ("tldr_pages", 4),
        ("thaigov_th", 12),
        ("openstax_en", 8),
    ):
        for index, record in enumerate(_every(folder / f"corpus/{name}.jsonl.zst", step)):
            text = record["text"]
            start = min(len(text) // 3, 2000)
            yield _clean(text[start : start + 700], name, record["lang"], index, third_party=True)


def _every(path: Path, step: int) -> Iterator[dict[str, Any]]:
    return (record for index, record in enumerate(read_jsonl(path)) if index % step == 0)


def _clean(text: str, source: str, lang: str, index: int, *, third_party: bool = False) -> Example:
    name = source.rpartition("/")[2]
    embedded = False if third_party else None
    return Example(
        text=text[:1500], source=name, lang=lang, group=f"{name}:{index}", harm=False, attack=False, embedded=embedded, weight=1.0
    )


# Groups of texts that share a template


def _groups(texts: Sequence[str], size: int = 4096) -> list[int]:
    """A number for each text; texts are of one group if a chain of similar ones joins them (Jaccard of their n-grams, hashed)."""
    marks = np.zeros((len(texts), size), dtype=np.float32)
    for row, text in enumerate(texts):
        marks[row, hashes(text) % np.uint32(size)] = 1.0
    sizes = marks.sum(axis=1)
    parent = list(range(len(texts)))
    for start in range(0, len(texts), 512):
        common = marks[start : start + 512] @ marks.T
        union = sizes[start : start + 512, None] + sizes[None] - common
        for row, column in zip(*np.nonzero(common >= _SIMILAR * union), strict=True):
            _join(parent, start + int(row), int(column))
    return [_root(parent, index) for index in range(len(texts))]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _join(parent: list[int], one: int, other: int) -> None:
    roots = sorted((_root(parent, one), _root(parent, other)))
    parent[roots[1]] = roots[0]


def languages(examples: Iterable[Example]) -> list[str]:
    """The languages that there are, the eight of Llama 3.1 in their order first."""
    found = {example.lang for example in examples}
    return [lang for lang in _LANGUAGES if lang in found] + sorted(found - set(_LANGUAGES))
