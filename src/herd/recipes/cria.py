"""cria, first edition: a Llama 3.1 of about 8M parameters, eight languages and small talk, trained on two CPU cores in about an hour.

Run: `herd train cria --data FOLDER`. The folder holds the public files named below (their licences are in the model card). Simple English
prose has the largest share, since a model of this size and budget learns the commonest patterns and little else.
"""

from __future__ import annotations

from dataclasses import replace

from herd.model.presets import preset
from herd.recipes.config import PowerConfig, RecipeConfig, TokenizerTraining
from herd.train.config import SourceConfig, StageConfig

MB = 1_000_000


def text(name: str, path: str, weight: float, *languages: str, max_bytes: int = 0) -> SourceConfig:
    """A corpus of the data folder."""
    return SourceConfig(name=name, path=f"corpus/{path}.jsonl.zst", weight=weight, languages=languages, max_bytes=max_bytes)


def chat(name: str, path: str, weight: float, *languages: str, num_items: int = 0) -> SourceConfig:
    """A set of dialogues."""
    return SourceConfig(name=name, path=path, kind="chat", weight=weight, languages=languages, num_items=num_items)


def _prose() -> tuple[SourceConfig, ...]:
    """Text by language; weights are shares in per cent of the pre-training rows."""
    return (
        text("stories_en", "childrens_stories", 9.0, "en"),
        text("fairytales_en", "fairytales_en", 9.0, "en"),
        text("news_en", "onestop_english", 8.0, "en"),
        text("classics_en", "standardebooks_en", 7.0, "en", max_bytes=6 * MB),
        text("textbooks_en", "openstax_en", 7.0, "en", max_bytes=6 * MB),
        text("sentences_en", "common_voice_sentences", 5.0, "en"),
        text("simple_de", "klexikon_de", 4.0, "de", max_bytes=4 * MB),
        text("textbooks_es", "openstax_es", 2.0, "es", max_bytes=3 * MB),
        text("courses_es", "ms_courses", 2.0, "es", max_bytes=2 * MB),
        text("sentences_fr", "common_voice_sentences", 4.0, "fr", max_bytes=4 * MB),
        text("sentences_it", "common_voice_sentences", 2.0, "it"),
        text("courses_it", "ms_courses", 2.0, "it", max_bytes=2 * MB),
        text("sentences_pt", "common_voice_sentences", 2.0, "pt"),
        text("courses_pt", "ms_courses", 2.0, "pt", max_bytes=2 * MB),
        text("stories_hi", "childrens_stories", 2.0, "hi"),
        text("sentences_hi", "common_voice_sentences", 2.0, "hi", max_bytes=3 * MB),
        text("courses_th", "ms_courses", 2.0, "th", max_bytes=3 * MB),
        text("news_th", "thaigov_th", 2.0, "th", max_bytes=3 * MB),
    )


def _dialogues(*, own: float, public: float) -> tuple[SourceConfig, ...]:
    """Dialogues in the 3.1 format; `own` is the share of our own and our drills together, `public` that of the public sets, in per cent."""
    return (
        *((chat("own", "own:dialogues", own * 0.8), chat("drills", "own:drills", own * 0.2, num_items=20_000)) if own else ()),
        chat("dolly", "instruct/dolly_hhrlhf_small.jsonl.zst", public * 0.25),
        chat("smalltalk", "instruct/chatterbot_smalltalk.jsonl.zst", public * 0.15),
        chat("persona", "instruct/synthetic_persona_chat.jsonl.zst", public * 0.25),
        chat("stories_qa", "instruct/fairytaleqa.jsonl.zst", public * 0.15, num_items=4000),
        chat("trivia", "instruct/nq_open_efficientqa_dev.jsonl", public * 0.1),
        chat("oasst", "instruct/oasst_en_100_trees.jsonl.zst", public * 0.1),
    )


def _annealing_mix() -> tuple[SourceConfig, ...]:
    """The end of pre-training, as Llama 3.1 does it: good sources up-sampled while the rate falls: simple prose, our own dialogues."""
    simple = ("stories_en", "fairytales_en", "news_en", "sentences_en", "stories_hi")
    prose = (replace(source, weight=source.weight * (1.0 if source.name in simple else 0.4)) for source in _prose())
    return (*prose, *_dialogues(own=45.0, public=12.0))


def _tokenizer_sample() -> tuple[SourceConfig, ...]:
    """Text for the tokenizer: English twice the share of each other language."""
    return (
        text("stories_en", "childrens_stories", 1.0),
        text("fairytales_en", "fairytales_en", 1.0),
        text("news_en", "onestop_english", 1.0, "en"),
        text("textbooks_en", "openstax_en", 1.0, "en", max_bytes=3 * MB),
        text("sentences", "common_voice_sentences", 1.0, max_bytes=12 * MB),
        text("simple_de", "klexikon_de", 1.0, "de", max_bytes=2 * MB),
        text("textbooks_es", "openstax_es", 1.0, "es", max_bytes=2 * MB),
        text("courses_it", "ms_courses", 1.0, "it", max_bytes=2 * MB),
        text("courses_pt", "ms_courses", 1.0, "pt", max_bytes=2 * MB),
        text("courses_th", "ms_courses", 1.0, "th", max_bytes=4 * MB),
        chat("persona", "instruct/synthetic_persona_chat.jsonl.zst", 1.0),
    )


SAMPLE_PROMPTS = (
    "Hello!",
    "Who are you?",
    "What is a river?",
    "Tell me a short story about a fox.",
    "How much is 3 plus 4?",
    "I feel sad today.",
    "Was ist ein Hund?",
    "Bonjour, comment vas-tu ?",
    "नमस्ते! आप कौन हैं?",
    "What is the capital of France?",
)


def cria() -> RecipeConfig:
    """The first edition: pre-training on prose with a sixth of dialogue, annealing on the best of both, tuning on answers."""
    return RecipeConfig(
        name="cria",
        seed=31,
        tokenizer=TokenizerTraining(vocab_size=8192, sources=_tokenizer_sample()),
        model=preset("cria-8m"),
        pretrain=StageConfig(
            sources=_prose() + _dialogues(own=0.0, public=17.0),
            num_steps=2400,
            sequence_length=512,
            batch_size=8,
            micro_batch_size=8,
            lr=2.5e-3,
            final_lr_fraction=0.05,
            warmup_steps=100,
            eval_every=500,
            save_every=250,
        ),
        anneal=StageConfig(
            sources=_annealing_mix(),
            num_steps=1200,
            sequence_length=512,
            batch_size=8,
            micro_batch_size=8,
            lr=1.5e-3,
            final_lr_fraction=0.02,
            warmup_steps=40,
            eval_every=400,
            save_every=200,
        ),
        sft=StageConfig(
            sources=_dialogues(own=75.0, public=25.0),
            num_steps=1200,
            sequence_length=1024,
            batch_size=4,
            micro_batch_size=4,
            lr=8e-4,
            final_lr_fraction=0.02,
            warmup_steps=30,
            answers_only=True,
            eval_every=300,
            save_every=150,
        ),
        power=PowerConfig(
            hardware="2 cores of an AMD EPYC server (assumed: 5 W a core, as a 400 to 500 W part of 96 cores has, and memory)", watts=12.0
        ),
        sample_prompts=SAMPLE_PROMPTS,
    )
