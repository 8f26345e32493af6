"""cria, second edition: about 25M parameters, eight languages, 8,192 tokens of context, tool calls; some ten minutes on one H200.

Run: `herd train cria2 --data FOLDER --device cuda`. Against the first edition: three times the parameters and fifteen times the tokens, at
most about ten readings of any source, a larger vocabulary, facts to find and values to copy from the first step on, a context grown in
steps with needles, and calls of tools. Attention stays inside documents, so long rows cost little.
"""

from __future__ import annotations

from dataclasses import replace

from herd.model.config import RopeScaling
from herd.model.presets import preset
from herd.recipes.config import PowerConfig, RecipeConfig, TokenizerTraining
from herd.recipes.cria import MB, SAMPLE_PROMPTS, chat, text
from herd.train.config import SourceConfig, StageConfig
from herd.train.context_config import LongContextConfig

_NOVELS = 10 * MB


def _prose() -> tuple[SourceConfig, ...]:
    """Text by language; weights are shares in per cent of the pre-training rows, 2.5 to 12 readings of each source in 390M tokens."""
    return (
        text("stories_en", "childrens_stories", 1.0, "en"),
        text("fairytales_en", "fairytales_en", 1.8, "en"),
        text("news_en", "onestop_english", 1.5, "en"),
        text("classics_en", "standardebooks_en", 12.0, "en"),
        text("textbooks_en", "openstax_en", 17.0, "en"),
        text("sentences_en", "common_voice_sentences", 1.0, "en"),
        text("novels_en", "eltec_en", 3.5, "en", max_bytes=12 * MB),
        text("docs_en", "docs_multilingual", 1.2, "en"),
        text("simple_de", "klexikon_de", 3.2, "de"),
        text("wikipedia_de", "wikipedia_de_klexikon", 4.4, "de"),
        text("novels_de", "eltec_de", 1.6, "de", max_bytes=_NOVELS),
        text("sentences_de", "common_voice_sentences", 0.8, "de"),
        text("courses_de", "ms_courses", 0.8, "de"),
        text("docs_de", "docs_multilingual", 1.2, "de"),
        text("textbooks_es", "openstax_es", 2.4, "es"),
        text("courses_es", "ms_courses", 1.3, "es"),
        text("novels_es", "eltec_es", 2.4, "es", max_bytes=_NOVELS),
        text("docs_es", "docs_multilingual", 0.6, "es"),
        text("sentences_es", "common_voice_sentences", 0.2, "es"),
        text("sentences_fr", "common_voice_sentences", 1.8, "fr"),
        text("courses_fr", "ms_courses", 1.4, "fr"),
        text("novels_fr", "eltec_fr", 2.4, "fr", max_bytes=_NOVELS),
        text("docs_fr", "docs_multilingual", 0.9, "fr"),
        text("sentences_it", "common_voice_sentences", 0.4, "it"),
        text("courses_it", "ms_courses", 1.4, "it"),
        text("novels_it", "eltec_it", 2.6, "it", max_bytes=_NOVELS),
        text("docs_it", "docs_multilingual", 0.4, "it"),
        text("sentences_pt", "common_voice_sentences", 0.4, "pt"),
        text("courses_pt", "ms_courses", 1.4, "pt"),
        text("novels_pt", "eltec_pt", 2.6, "pt", max_bytes=_NOVELS),
        text("docs_pt", "docs_multilingual", 1.0, "pt"),
        text("stories_hi", "childrens_stories", 0.4, "hi"),
        text("sentences_hi", "common_voice_sentences", 1.4, "hi"),
        text("courses_hi", "ms_courses", 2.0, "hi"),
        text("docs_hi", "docs_multilingual", 0.4, "hi"),
        text("courses_th", "ms_courses", 2.0, "th"),
        text("news_th", "thaigov_th", 2.6, "th", max_bytes=16 * MB),
    )


def _needles(weight: float, *, sizes: tuple[int, ...] = (5_000, 11_000, 22_000, 27_000), items: int = 600) -> tuple[SourceConfig, ...]:
    """Hidden facts in texts of so many bytes: by default about 1,400, 3,000, 6,000 and 7,500 tokens."""
    return tuple(
        SourceConfig(name=f"needles_{size}", path="own:needles", weight=weight / len(sizes), num_items=items, document_bytes=size)
        for size in sizes
    )


def _dialogues(*, own: float, public: float, tools: float, copies: float = 0.0) -> tuple[SourceConfig, ...]:
    """Dialogues in the 3.1 format, in per cent: our own and our drills, the public sets, calls of tools, and drills in copying."""
    mine = (chat("own", "own:dialogues", own * 0.7), chat("drills", "own:drills", own * 0.3, num_items=30_000)) if own else ()
    return (
        *mine,
        *((chat("copies", "own:copies", copies, num_items=20_000),) if copies else ()),
        chat("dolly", "instruct/dolly_hhrlhf_small.jsonl.zst", public * 0.16),
        chat("smalltalk", "instruct/chatterbot_smalltalk.jsonl.zst", public * 0.06),
        chat("persona", "instruct/synthetic_persona_chat.jsonl.zst", public * 0.28),
        chat("stories_qa", "instruct/fairytaleqa.jsonl.zst", public * 0.24),
        chat("passages_qa", "instruct/t0_tasks_permissive.jsonl.zst", public * 0.10),
        chat("trivia", "instruct/nq_open_efficientqa_dev.jsonl", public * 0.02),
        chat("oasst", "instruct/oasst_en_100_trees.jsonl.zst", public * 0.10),
        chat("seeds", "instruct/self_instruct_seed.jsonl.zst", public * 0.04),
        chat("tool_drills", "own:tool-drills", tools * 0.75, num_items=20_000),
        chat("snips", "tools/snips_nlu.jsonl.zst", tools * 0.2),
        chat("functions", "tools/glaive_toolcall_en_demo.jsonl.zst", tools * 0.05),
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
        sources=_prose() + _needles(5.0, sizes=(400, 1_200, 3_000), items=8_000) + _dialogues(own=0.0, public=5.0, tools=4.0),
        num_steps=3000,
        sequence_length=1024,
        batch_size=128,
        micro_batch_size=128,
        lr=2e-3,
        final_lr_fraction=0.1,
        warmup_steps=150,
        eval_every=1000,
        save_every=1000,
    )
    longer = LongContextConfig(
        stage=replace(
            pretrain,
            sources=_scaled(_prose(), 0.7) + _needles(30.0),
            num_steps=60,
            lr=6e-4,
            decay="constant",
            warmup_steps=10,
            continue_optimizer=True,
            eval_every=30,
            save_every=60,
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
    anneal = replace(
        whole,
        sources=_scaled(_prose(), 0.6) + _needles(6.0) + _dialogues(own=6.0, public=12.0, tools=12.0, copies=4.0),
        num_steps=300,
        lr=1.2e-3,
        decay="linear",
        final_lr_fraction=0.05,
        warmup_steps=20,
        continue_optimizer=False,
        eval_every=300,
        save_every=300,
    )
    sft = replace(
        anneal,
        sources=_scaled(_prose(), 0.1) + _needles(6.0) + _dialogues(own=24.0, public=18.0, tools=42.0, copies=14.0),
        num_steps=250,
        batch_size=8,
        micro_batch_size=8,
        lr=6e-4,
        answers_only=True,
        eval_every=250,
        save_every=250,
    )
    return RecipeConfig(
        name="cria2",
        seed=31,
        tokenizer=TokenizerTraining(vocab_size=16_128, sources=_tokenizer_sample()),
        model=preset("cria-25m"),
        pretrain=pretrain,
        long_context=longer,
        anneal=anneal,
        sft=sft,
        power=PowerConfig(hardware="one H200 (700 W by its data sheet)", watts=700.0),
        sample_prompts=SAMPLE_PROMPTS,
    )
