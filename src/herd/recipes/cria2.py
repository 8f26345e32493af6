"""cria, second edition: about 11M parameters, eight languages, 8,192 tokens of context, tool calls; two and a half hours on two CPU cores.

Run: `herd train cria2 --data FOLDER`. Against the first edition: twice the tokens, 7 % of them in each language but English, a larger
vocabulary, facts to find and values to copy from the first step on, a context grown in steps with needles, and calls of tools. Rows are
long from the growing on, and cost little, since attention stays inside documents.
"""

from __future__ import annotations

from dataclasses import replace

from herd.model.config import RopeScaling
from herd.model.presets import preset
from herd.recipes.config import PowerConfig, RecipeConfig, TokenizerTraining
from herd.recipes.cria import MB, SAMPLE_PROMPTS, chat, text
from herd.train.config import SourceConfig, StageConfig
from herd.train.context_config import LongContextConfig

_MOST = 14 * MB
_NOVELS = 6 * MB


def _prose() -> tuple[SourceConfig, ...]:
    """Text by language; weights are shares in per cent of the pre-training rows."""
    return (
        text("stories_en", "childrens_stories", 7.0, "en"),
        text("fairytales_en", "fairytales_en", 6.0, "en"),
        text("news_en", "onestop_english", 6.0, "en"),
        text("classics_en", "standardebooks_en", 7.0, "en", max_bytes=_MOST),
        text("textbooks_en", "openstax_en", 10.0, "en", max_bytes=_MOST),
        text("sentences_en", "common_voice_sentences", 4.0, "en"),
        text("simple_de", "klexikon_de", 5.0, "de"),
        text("wikipedia_de", "wikipedia_de_klexikon", 2.0, "de", max_bytes=_NOVELS),
        text("textbooks_es", "openstax_es", 3.0, "es"),
        text("courses_es", "ms_courses", 2.0, "es"),
        text("novels_es", "eltec_es", 2.0, "es", max_bytes=_NOVELS),
        text("sentences_fr", "common_voice_sentences", 3.0, "fr"),
        text("courses_fr", "ms_courses", 2.0, "fr"),
        text("novels_fr", "eltec_fr", 2.0, "fr", max_bytes=_NOVELS),
        text("sentences_it", "common_voice_sentences", 1.5, "it"),
        text("courses_it", "ms_courses", 3.0, "it"),
        text("novels_it", "eltec_it", 2.5, "it", max_bytes=_NOVELS),
        text("sentences_pt", "common_voice_sentences", 1.5, "pt"),
        text("courses_pt", "ms_courses", 3.0, "pt"),
        text("novels_pt", "eltec_pt", 2.5, "pt", max_bytes=_NOVELS),
        text("stories_hi", "childrens_stories", 2.0, "hi"),
        text("sentences_hi", "common_voice_sentences", 2.5, "hi"),
        text("courses_hi", "ms_courses", 2.5, "hi"),
        text("courses_th", "ms_courses", 4.0, "th"),
        text("news_th", "thaigov_th", 3.0, "th", max_bytes=8 * MB),
    )


def _needles(weight: float, *, sizes: tuple[int, ...] = (5_000, 11_000, 22_000, 27_000)) -> tuple[SourceConfig, ...]:
    """Hidden facts in texts of so many bytes: by default about 1,400, 3,000, 6,000 and 7,500 tokens."""
    return tuple(
        SourceConfig(name=f"needles_{size}", path="own:needles", weight=weight / len(sizes), num_items=2000, document_bytes=size)
        for size in sizes
    )


def _dialogues(*, own: float, public: float, tools: float) -> tuple[SourceConfig, ...]:
    """Dialogues in the 3.1 format, in per cent: our own and our drills, the public sets, and calls of tools."""
    mine = (chat("own", "own:dialogues", own * 0.75), chat("drills", "own:drills", own * 0.25, num_items=30_000)) if own else ()
    calls = (
        chat("tool_drills", "own:tool-drills", tools * 0.8, num_items=30_000),
        chat("snips", "tools/snips_nlu.jsonl.zst", tools * 0.2, num_items=6_000),
    )
    return (
        *mine,
        chat("dolly", "instruct/dolly_hhrlhf_small.jsonl.zst", public * 0.25),
        chat("smalltalk", "instruct/chatterbot_smalltalk.jsonl.zst", public * 0.15),
        chat("persona", "instruct/synthetic_persona_chat.jsonl.zst", public * 0.25),
        chat("stories_qa", "instruct/fairytaleqa.jsonl.zst", public * 0.15, num_items=6000),
        chat("trivia", "instruct/nq_open_efficientqa_dev.jsonl", public * 0.1),
        chat("oasst", "instruct/oasst_en_100_trees.jsonl.zst", public * 0.1),
        *(calls if tools else ()),
    )


def _scaled(sources: tuple[SourceConfig, ...], share: float) -> tuple[SourceConfig, ...]:
    return tuple(replace(source, weight=source.weight * share) for source in sources)


def _tokenizer_sample() -> tuple[SourceConfig, ...]:
    """Text for the tokenizer: about as much of each language, English twice."""
    return (
        text("stories", "childrens_stories", 1.0),
        text("fairytales_en", "fairytales_en", 1.0),
        text("news_en", "onestop_english", 1.0, "en"),
        text("textbooks_en", "openstax_en", 1.0, "en", max_bytes=4 * MB),
        text("sentences", "common_voice_sentences", 1.0, max_bytes=16 * MB),
        text("simple_de", "klexikon_de", 1.0, "de", max_bytes=3 * MB),
        text("textbooks_es", "openstax_es", 1.0, "es", max_bytes=3 * MB),
        text("courses", "ms_courses", 1.0, "it", "pt", "hi", "fr", max_bytes=12 * MB),
        text("courses_th", "ms_courses", 1.0, "th", max_bytes=5 * MB),
        chat("persona", "instruct/synthetic_persona_chat.jsonl.zst", 1.0),
        chat("tool_drills", "own:tool-drills", 1.0, num_items=500),
    )


def cria2() -> RecipeConfig:
    """Pre-training at 1,024 tokens, a context grown to 8,192, annealing on the best of all, tuning on answers and calls."""
    pretrain = StageConfig(
        sources=_prose() + _needles(5.0, sizes=(400, 1_200, 3_000)) + _dialogues(own=0.0, public=8.0, tools=3.0),
        num_steps=2600,
        sequence_length=1024,
        batch_size=8,
        micro_batch_size=8,
        lr=2.5e-3,
        final_lr_fraction=0.1,
        warmup_steps=150,
        eval_every=650,
        save_every=200,
    )
    longer = LongContextConfig(
        stage=replace(
            pretrain,
            sources=_scaled(_prose(), 0.7) + _needles(30.0),
            num_steps=100,
            batch_size=16,
            micro_batch_size=8,
            lr=6e-4,
            decay="constant",
            warmup_steps=20,
            continue_optimizer=True,
            eval_every=40,
            save_every=40,
        ),
        lengths=(2048, 4096, 8192),
        min_steps=60,
        rope_scaling=RopeScaling(factor=8.0, original_max_position_embeddings=1024),
        recovery=0.03,
        num_needles=10,
        needle_pass=0.8,
        on_stuck="go_on",
    )
    whole = longer.at(8192)
    simple = ("stories_en", "fairytales_en", "news_en", "sentences_en", "stories_hi")
    prose = tuple(replace(source, weight=source.weight * (0.7 if source.name in simple else 0.4)) for source in _prose())
    anneal = replace(
        whole,
        sources=prose + _needles(6.0) + _dialogues(own=25.0, public=10.0, tools=12.0),
        num_steps=450,
        lr=1.2e-3,
        decay="linear",
        final_lr_fraction=0.05,
        warmup_steps=30,
        continue_optimizer=False,
        eval_every=225,
        save_every=50,
    )
    sft = replace(
        anneal,
        sources=_scaled(_prose(), 0.1) + _needles(6.0) + _dialogues(own=46.0, public=12.0, tools=27.0),
        num_steps=450,
        lr=8e-4,
        answers_only=True,
    )
    return RecipeConfig(
        name="cria2",
        seed=31,
        tokenizer=TokenizerTraining(vocab_size=12_032, sources=_tokenizer_sample()),
        model=preset("cria-11m"),
        pretrain=pretrain,
        long_context=longer,
        anneal=anneal,
        sft=sft,
        power=PowerConfig(
            hardware="2 cores of an AMD EPYC server (assumed: 5 W a core, as a 400 to 500 W part of 96 cores has, and memory)", watts=12.0
        ),
        sample_prompts=SAMPLE_PROMPTS,
    )
