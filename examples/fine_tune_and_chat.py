"""Tune a model on a folder of your own texts, then talk to it.

python examples/fine_tune_and_chat.py examples/shop "When do you open?"

Files are .md or .txt. A heading that ends with a question mark is a question, and what stands below it is its answer. A .jsonl file
holds chats or questions, as `herd train sft` reads them. Small adapters (LoRA) are trained and merged into a copy of the model, which
answers.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import herd
from herd.base.config_io import apply_overrides
from herd.recipes.pipeline import run_recipe
from herd.recipes.registry import find_recipe

QUESTION = re.compile(r"^#+ +([^\n]+\?) *\n+(.+?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)


def chats_of(folder: Path) -> list[str]:
    """Every question of the folder's files with its answer, each a line of JSON."""
    lines: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".md", ".txt"):
            found = QUESTION.findall(path.read_text(encoding="utf-8"))
            lines += [
                json.dumps({"question": question, "answer": " ".join(answer.split())}, ensure_ascii=False) for question, answer in found
            ]
        elif path.suffix == ".jsonl":
            lines += [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines


def tune(folder: Path, output: Path, *, model: str = "cria", epochs: float = 30.0) -> Path:
    """Train adapters on the folder's questions; returns the folder of the tuned model. A run that was stopped goes on where it was."""
    chats = chats_of(folder)
    if not chats:
        raise SystemExit(f"{folder} holds no questions: write headings that end with '?' in .md or .txt files, with the answers below")
    output.mkdir(parents=True, exist_ok=True)
    data = output / "chats.jsonl"
    data.write_text("\n".join(chats) + "\n", encoding="utf-8")
    # Few questions: small steps of short rows, and none kept back. With thousands, the recipe's own values are better.
    changes = {"model": model, "epochs": epochs, "heldback_one_in": 0, **dict.fromkeys(("train.batch_size", "train.micro_batch_size"), 1)}
    changes |= {"train.sequence_length": 256, "train.warmup_steps": 2}
    config = apply_overrides(find_recipe("lora"), [f"{name}={value}" for name, value in changes.items()])
    return run_recipe(config, data=data, output=output).model


def ask(model: Path | str, questions: list[str]) -> list[str]:
    """What a model answers, each question in a chat of its own."""
    llm = herd.LLM(model)
    params = herd.SamplingParams(temperature=0.0, max_tokens=64)
    return [llm.chat([herd.Message.user(question)], params).text for question in questions]


def talk(model: Path) -> None:
    """A conversation in the terminal; an empty line ends it."""
    llm = herd.LLM(model)
    messages: list[herd.Message] = []
    while said := input("> ").strip():
        messages.append(herd.Message.user(said))
        messages.append(herd.Message.assistant(llm.chat(messages, herd.SamplingParams(max_tokens=128)).text))
        print(messages[-1].text)


def main() -> None:
    """Tune, then answer the questions of the command line before and after; without any, talk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of .md, .txt and .jsonl files")
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--model", default="cria", help="what to start from: path, hub name or alias")
    parser.add_argument("--output", type=Path, default=Path("runs/own"), help="of the run")
    parser.add_argument("--epochs", type=float, default=30.0, help="passes over the questions")
    arguments = parser.parse_args()
    tuned = tune(arguments.folder, arguments.output, model=arguments.model, epochs=arguments.epochs)
    if arguments.questions:
        before, after = ask(arguments.model, arguments.questions), ask(tuned, arguments.questions)
        for question, old, new in zip(arguments.questions, before, after, strict=True):
            print(f"> {question}\nbefore: {old}\nafter:  {new}")
    else:
        talk(tuned)


if __name__ == "__main__":
    main()
