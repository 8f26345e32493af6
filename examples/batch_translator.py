"""One text into the eight languages of Llama 3.1, all requests at once in one batch.

python examples/batch_translator.py "Good morning!" --json
"""

from __future__ import annotations

import argparse
import asyncio
import json

import herd

LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "hi": "Hindi",
    "es": "Spanish",
    "th": "Thai",
}


async def translate(name: str, text: str, codes: list[str]) -> dict[str, str]:
    """The text in each language; the requests share one batch, and what their prompts have in common is read once."""
    params = herd.SamplingParams(temperature=0.0, max_tokens=64)

    async def into(code: str) -> str:
        order = f"Translate what the user writes into {LANGUAGES[code]}. Write the translation and nothing else."
        return (await model.chat([herd.Message.system(order), herd.Message.user(text)], params)).text

    async with herd.AsyncLLM(name) as model:
        return dict(zip(codes, await asyncio.gather(*(into(code) for code in codes)), strict=True))


def main() -> None:
    """Translate and print a line a language, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--to", nargs="*", default=list(LANGUAGES), choices=list(LANGUAGES), help="codes of languages")
    parser.add_argument("--model", default="cria", help="path, hub name or alias; cria itself translates little")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = asyncio.run(translate(arguments.model, arguments.text, arguments.to))
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for code, text in found.items():
            print(f"{LANGUAGES[code]:<11} {text}")


if __name__ == "__main__":
    main()
