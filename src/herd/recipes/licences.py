"""Where each training source comes from and under which licence: the model card's attributions."""

from __future__ import annotations

OWN = ("written for herd", "Apache-2.0")
GUARD = (
    "AILuminate, HateCheck, hate speech and offensive language, OpenAI's moderation set, and benign text: the card of the detectors in "
    "herd/safety names each",
    "CC-BY-4.0, MIT and others",
)

LICENCES: dict[str, tuple[str, str]] = {
    "own:dialogues": OWN,
    "own:drills": OWN,
    "own:copies": OWN,
    "own:needles": OWN,
    "own:tool-drills": OWN,
    "own:guard": GUARD,
    "own:guard-short": GUARD,
    "tiny.txt": OWN,
    "corpus/childrens_stories": ("Global African Storybook Project: global-asp/pb-source, asp-source, global-asp", "CC-BY"),
    "corpus/common_voice_sentences": ("Mozilla Common Voice sentences: mozilla/common-voice", "CC0-1.0"),
    "corpus/docs_multilingual": (
        "Documentation of open projects: reactjs, vuejs-translations, github/opensource.guide, adambard/learnxinyminutes-docs, "
        "rust-lang/book, mdn/translated-content-de, electron/i18n",
        "CC-BY-4.0, CC-BY-SA, MIT, Apache",
    ),
    "corpus/eltec_de": ("European Literary Text Collection: COST-ELTeC/ELTeC-deu", "public domain, markup CC-BY-4.0"),
    "corpus/eltec_en": ("European Literary Text Collection: COST-ELTeC/ELTeC-eng", "public domain, markup CC-BY-4.0"),
    "corpus/eltec_es": ("European Literary Text Collection: COST-ELTeC/ELTeC-spa", "public domain, markup CC-BY-4.0"),
    "corpus/eltec_fr": ("European Literary Text Collection: COST-ELTeC/ELTeC-fra", "public domain, markup CC-BY-4.0"),
    "corpus/eltec_it": ("European Literary Text Collection: COST-ELTeC/ELTeC-ita", "public domain, markup CC-BY-4.0"),
    "corpus/eltec_pt": ("European Literary Text Collection: COST-ELTeC/ELTeC-por", "public domain, markup CC-BY-4.0"),
    "corpus/fairytales_en": ("FairytaleQA stories: uci-soe/FairytaleQAData", "Apache-2.0"),
    "corpus/klexikon_de": ("Klexikon: dennlinger/klexikon", "CC-BY-SA-4.0"),
    "corpus/ms_courses": ("Microsoft courses for beginners: microsoft/*-for-beginners", "MIT"),
    "corpus/onestop_english": ("OneStopEnglish: nishkalavallabhi/OneStopEnglishCorpus", "CC-BY-SA-4.0"),
    "corpus/openstax_en": ("OpenStax textbooks: openstax/osbooks-*", "CC-BY-4.0"),
    "corpus/openstax_es": ("OpenStax textbooks in Spanish: openstax/osbooks-*", "CC-BY-4.0"),
    "corpus/standardebooks_en": ("Standard Ebooks: standardebooks/*", "CC0-1.0"),
    "corpus/thaigov_th": ("Thai government news: PyThaiNLP/thaigov-v2-corpus", "public domain"),
    "corpus/wikipedia_de_klexikon": ("Wikipedia, openings: dennlinger/klexikon", "CC-BY-SA-3.0"),
    "instruct/dolly_hhrlhf_small": ("Dolly and HH-RLHF sample: mosaicml/llm-foundry", "CC-BY-SA-3.0 and MIT"),
    "instruct/chatterbot_smalltalk": ("ChatterBot corpus: gunthercox/chatterbot-corpus", "BSD-3-Clause"),
    "instruct/synthetic_persona_chat": ("Synthetic-Persona-Chat: google-research-datasets/Synthetic-Persona-Chat", "CC-BY-4.0"),
    "instruct/fairytaleqa": ("FairytaleQA: uci-soe/FairytaleQAData", "Apache-2.0"),
    "instruct/nq_open_efficientqa_dev": (
        "Natural Questions open: google-research-datasets/natural-questions",
        "Apache-2.0, CC-BY-SA-3.0 answers",
    ),
    "instruct/oasst_en_100_trees": ("Open Assistant: LAION-AI/Open-Assistant", "Apache-2.0"),
    "instruct/self_instruct_seed": ("Self-Instruct seed tasks: yizhongw/self-instruct", "Apache-2.0"),
    "instruct/t0_tasks_permissive": (
        "T0 templates over open tasks: yizhongw/self-instruct",
        "Apache-2.0; tasks CC-BY-4.0, CC-BY-SA, MIT, BSD",
    ),
    "tools/glaive_toolcall_en_demo": ("Glaive function calling, sample: hiyouga/LLaMA-Factory", "Apache-2.0"),
    "tools/snips_nlu": ("SNIPS utterances: sonos/nlu-benchmark", "CC0-1.0"),
}
