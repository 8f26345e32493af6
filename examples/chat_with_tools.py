"""A shop's assistant with two tools: one that looks, and one that acts and therefore asks first.

python examples/chat_with_tools.py "How many lamps are in stock?"
"""

from __future__ import annotations

import argparse
import sys

import herd

STOCK = {"lamp": 12, "chair": 3, "table": 0}


@herd.tool(reads_private=True)
def stock(article: str) -> str:
    """Tells how many of an article are in stock.

    Args:
        article: its name, in the singular.
    """
    return f"{STOCK[article]} in stock" if article in STOCK else f"there is no article {article!r}"


@herd.tool(acts_outside=True, approval="ask")
def order(article: str, count: int) -> str:
    """Orders more of an article from the supplier.

    Args:
        article: its name, in the singular.
        count: how many.
    """
    STOCK[article] = STOCK.get(article, 0) + count
    return f"ordered; {STOCK[article]} in stock now"


def approve(request) -> str:
    """Ask whoever sits at the terminal; where nobody does, the answer is no."""
    if not sys.stdin.isatty():
        return "deny"
    print(f"\n{request.tool}{dict(request.arguments)}?", file=sys.stderr)
    return "once" if input("yes or no: ").strip().lower().startswith("y") else "deny"


def main() -> None:
    """Answer one question, showing calls as they happen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="How many lamps are in stock?")
    parser.add_argument("--model", default="cria", help="path, hub name or alias")
    arguments = parser.parse_args()
    sampling = herd.SamplingParams(temperature=0.0, max_tokens=128)
    with herd.Agent(arguments.model, tools=[stock, order], approve=approve, sampling=sampling) as agent:
        for event in agent.session().stream(arguments.question):
            if event.type == "answer_delta":
                print(event.text, end="", flush=True)
            elif event.type == "tool_done":
                print(f"[{event.step.call.name}{dict(event.step.call.arguments)}]", file=sys.stderr)
    print()


if __name__ == "__main__":
    main()
