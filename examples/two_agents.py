"""A writer and a critic: two agents with sessions of their own, who pass one text between them.

python examples/two_agents.py "a river"
"""

from __future__ import annotations

import argparse

import herd


def main() -> None:
    """Write, criticise, write again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topic", nargs="?", default="a river")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="cria", help="path, hub name or alias")
    arguments = parser.parse_args()
    model = herd.AsyncLLM(arguments.model)  # both agents share its engine, and its cache of prompts
    sampling = herd.SamplingParams(temperature=0.7, top_p=0.9, max_tokens=80, seed=7)
    writer = herd.Agent(model, tools=[], instructions="You write short, plain texts.", sampling=sampling)
    critic = herd.Agent(model, tools=[], instructions="You say in one sentence what a text lacks.", sampling=sampling)
    with writer, critic:
        desk, reading = writer.session(name="writer"), critic.session(name="critic")
        text = desk.ask(f"Tell me about {arguments.topic}.").text
        print(f"writer: {text}")
        for _ in range(arguments.rounds - 1):
            remark = reading.ask(f"What does this text lack?\n\n{text}").text
            print(f"critic: {remark}")
            text = desk.ask(f"A reader says: {remark}\n\nWrite it again.").text
            print(f"writer: {text}")


if __name__ == "__main__":
    main()
