"""Questions about a folder of text, answered with citations; a citation that no passage bears is shown as such.

python examples/document_assistant.py docs/guides "What does a shield do?"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import herd


def main() -> None:
    """Put the folder's files into a session, ask, and print where the answer is from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of .md and .txt files")
    parser.add_argument("question")
    parser.add_argument("--passages", type=int, default=2, help="that the model is shown; cria's context holds two")
    parser.add_argument("--model", default="cria", help="path, hub name or alias")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*") if path.suffix in (".md", ".txt"))
    if not files:
        parser.error(f"{arguments.folder} holds no .md or .txt file")
    instructions = "Answer from the numbered passages and cite them as [1]."
    sampling = herd.SamplingParams(temperature=0.0, max_tokens=96)
    with herd.Agent(
        arguments.model, memory="always", num_passages=arguments.passages, tools=[], instructions=instructions, sampling=sampling
    ) as agent:
        session = agent.session()
        for path in files:
            session.remember(path.read_text(encoding="utf-8"), title=path.name)
        result = session.ask(arguments.question)
    print(result.text)
    passages = [passage for step in result.steps if step.kind == "memory_retrieval" for passage in step.passages]
    for passage in passages:
        print(f"  [{passage.number}] {passage.title}: {passage.text[:70].strip()!r}")
    for number in result.false_citations:
        print(f"  [{number}] stands for nothing that was found")


if __name__ == "__main__":
    main()
