"""Preference pairs from a model's own mistakes: what it answers itself beside what it should have answered.

python examples/own_mistakes.py examples/chats.jsonl --output pairs.jsonl

Every chat's last answer is the better one; of several answers that the model draws, those that differ from it are the worse ones. Train on
the pairs with `herd train dpo --data pairs.jsonl model=...`, draw again from what came out, and so on: each round learns from the mistakes
that are left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import herd
from herd.data.records import read_records
from herd.recipes.dialogue import Dialogue, read_dialogue


def prompts(path: Path, most: int) -> Iterator[tuple[Dialogue, herd.Message]]:
    """The chats of a file up to the assistant's last message, and that message."""
    for number, record in enumerate(read_records(path)):
        if most and number >= most:
            return
        chat = read_dialogue(record)
        if chat.messages[-1].role == "assistant":
            yield Dialogue(messages=chat.messages[:-1], tools=chat.tools, builtin_tools=chat.builtin_tools), chat.messages[-1]


def same(ours: herd.Message, theirs: herd.Message) -> bool:
    """Whether two answers say the same: the same calls, or the same words."""

    def calls(message: herd.Message) -> list[tuple[str, dict[str, Any]]]:
        return [(call.name, dict(call.arguments)) for call in message.tool_calls]

    return calls(ours) == calls(theirs) and ours.text.split() == theirs.text.split()


async def mistakes(
    model: herd.AsyncLLM, chat: Dialogue, right: herd.Message, params: herd.SamplingParams, draws: int
) -> list[herd.Message]:
    """The different answers of a model that are not the right one. Those cut off by the limit are left out: no answer ends like that."""
    drawn = await model.chat(chat.messages, params, tools=chat.tools, builtin_tools=chat.builtin_tools, n=draws)
    found: list[herd.Message] = []
    for output in drawn if isinstance(drawn, list) else [drawn]:
        ended = output.finish_reason != "length" and (output.message.tool_calls or output.message.text.strip())
        if ended and not any(same(output.message, other) for other in (right, *found)):
            found.append(output.message)
    return found


async def pairs(arguments: argparse.Namespace) -> list[str]:
    """A line of JSON for every mistake, at most `--pairs` a chat, in the order of the chats."""
    params = herd.SamplingParams(temperature=arguments.temperature, max_tokens=arguments.max_tokens, seed=arguments.seed)
    chats = list(prompts(arguments.chats, arguments.most))
    room = asyncio.Semaphore(arguments.at_once)
    async with herd.AsyncLLM(arguments.model) as model:

        async def one(chat: Dialogue, right: herd.Message) -> list[str]:
            async with room:
                wrong = await mistakes(model, chat, right, params, arguments.draws)
            record = {"messages": [message.to_dict() for message in chat.messages], "tools": [tool.to_dict() for tool in chat.tools]}
            record |= {"builtin_tools": list(chat.builtin_tools), "chosen": right.to_dict()}
            return [json.dumps({**record, "rejected": message.to_dict()}, ensure_ascii=False) for message in wrong[: arguments.pairs]]

        found = await asyncio.gather(*(one(chat, right) for chat, right in chats))
    return [line for lines in found for line in lines]


def main() -> None:
    """Draw, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chats", type=Path, help="a file of chats, as `herd train sft` reads them")
    parser.add_argument("--output", type=Path, default=Path("pairs.jsonl"))
    parser.add_argument("--model", default="cria", help="whose mistakes: path, hub name or alias")
    parser.add_argument("--draws", type=int, default=4, help="answers drawn for each chat")
    parser.add_argument("--pairs", type=int, default=1, help="most pairs made of a chat")
    parser.add_argument("--most", type=int, default=0, help="chats read (0: all)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=32, help="chats in flight")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = asyncio.run(pairs(arguments))
    arguments.output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} pairs in {arguments.output}")


if __name__ == "__main__":
    main()
