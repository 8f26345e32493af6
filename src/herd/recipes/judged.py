"""Records with judged answers, as a prompt and graded answers in token ids: what preference and reward training read.

Read are: `chosen` and `rejected` (and perhaps `edited`, better than both) beside a prompt, or as whole conversations whose common beginning
is the prompt; `responses` with `scores`; and, for KTO, any chat record with a `label` that is true or false. An answer is text, a message
or a list of messages. A record may tell how sure its judge was (`strength`); Llama 3.1 used "significantly better" and "better" only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from herd.base.errors import FormatError
from herd.data.answers import Answer, Judged
from herd.data.records import Record
from herd.recipes.dialogue import Dialogue, answer_messages, prompt_messages, read_messages, read_tools
from herd.text.messages import Message
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from herd.train.objectives.branches import KL_ONLY

GRADES = {"edited": 3, "chosen": 2, "rejected": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A prompt and the answers to it, each with its grade."""

    prompt: Dialogue
    answers: tuple[tuple[tuple[Message, ...], int], ...]


def read_choice(record: Record) -> Choice:
    """The answers of a preference record. Raises FormatError for a record of another shape, or answers that are all judged alike."""
    if isinstance(record.get("responses"), list):
        prompt, answers = prompt_messages(record), _scored(record)
    else:
        prompt, answers = _named(record)
    if len({grade for _, grade in answers}) < 2:
        raise FormatError(f"a preference record holds {len(answers)} answers, none better than another", hint="give chosen and rejected")
    return _choice(prompt, answers, record)


def _choice(prompt: Sequence[Message], answers: Sequence[tuple[Sequence[Message], int]], record: Record) -> Choice:
    for messages, _ in answers:
        if not messages or messages[-1].role != "assistant" or messages[0].role != "assistant":
            raise FormatError("an answer is not the assistant's, or empty", hint="an answer begins and ends with an assistant message")
    dialogue = Dialogue(messages=tuple(prompt), **read_tools(record))
    return Choice(prompt=dialogue, answers=tuple((tuple(messages), grade) for messages, grade in answers))


def _scored(record: Record) -> list[tuple[list[Message], int]]:
    responses, scores = record["responses"], record.get("scores")
    if not isinstance(scores, list) or len(scores) != len(responses) or not all(isinstance(score, int | float) for score in scores):
        raise FormatError(f"{len(responses)} responses need as many scores, here {str(scores)[:60]}", hint="a score is a number")
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores)), start=1)}
    return [(answer_messages(response), ranks[score]) for response, score in zip(responses, scores, strict=True)]


def _named(record: Record) -> tuple[list[Message], list[tuple[list[Message], int]]]:
    if record.get("chosen") is None or record.get("rejected") is None:
        raise FormatError(
            f"a record with the fields {sorted(record)} holds no preference", hint="give chosen and rejected, or responses and scores"
        )
    found = {name: answer_messages(record[name]) for name in GRADES if record.get(name) is not None}
    if any(name in record for name in ("prompt", "question", "instruction", "messages", "conversations")):
        return prompt_messages(record), [(messages, GRADES[name]) for name, messages in found.items()]
    shared = _common(list(found.values()))
    if not shared:
        raise FormatError("chosen and rejected have no common beginning", hint="give the prompt in a field of its own")
    return found["chosen"][:shared], [(messages[shared:], GRADES[name]) for name, messages in found.items()]


def _common(conversations: Sequence[Sequence[Message]]) -> int:
    """How many messages all conversations begin with, up to the last one before an answer."""
    shortest = min(len(messages) for messages in conversations)
    count = 0
    while count < shortest and all(messages[count] == conversations[0][count] for messages in conversations):
        count += 1
    while count and any(len(messages) == count or messages[count].role != "assistant" for messages in conversations):
        count -= 1
    return count


def read_labelled(record: Record) -> Iterator[Choice]:
    """One answer with the grade 1 (good) or 0 (bad); of a preference record, one for each of its answers. Raises FormatError."""
    if "label" not in record:
        choice = read_choice(record)
        for messages, grade in choice.answers:
            yield replace(choice, answers=((messages, int(grade > GRADES["rejected"])),))
        return
    if not isinstance(record["label"], bool):
        raise FormatError(f"a label is {record['label']!r}", hint="a label is true or false")
    messages = read_messages(record)
    end = len(messages)
    while end and messages[end - 1].role != "user":
        end -= 1
    yield _choice(messages[:end], [(messages[end:], int(record["label"]))], record)


def with_mismatched(choices: Iterable[Choice]) -> Iterator[Choice]:
    """Each labelled choice with the next answer to another prompt beside it, for KTO's reference point; none where there is no other."""
    found = list(choices)
    for number, choice in enumerate(found):
        others = (found[(number + step) % len(found)] for step in range(1, len(found)))
        other = next((other for other in others if other.prompt.messages != choice.prompt.messages), None)
        extra = () if other is None else ((other.answers[0][0], KL_ONLY),)
        yield replace(choice, answers=(*choice.answers, *extra))


def encode_choice(choice: Choice, tokenizer: Tokenizer, chat: PromptFormat) -> Judged:
    """Token ids: the prompt once, each answer from its header to its end token. Of an answer, content counts and end tokens do not."""
    tools: dict[str, Any] = {"tools": choice.prompt.tools, "builtin_tools": choice.prompt.builtin_tools}
    prompt, _ = chat.encode_with_mask(tokenizer, choice.prompt.messages, **tools)
    answers: list[Answer] = []
    for messages, grade in choice.answers:
        ids, written = chat.encode_with_mask(tokenizer, [*choice.prompt.messages, *messages], **tools)
        if ids[: len(prompt)] != prompt:
            raise FormatError("an answer changes how its prompt is written", hint="put all instructions into the prompt")
        mask = written[len(prompt) :]
        content = [on and token not in tokenizer.stop_ids for on, token in zip(mask, ids[len(prompt) :], strict=True)]
        answers.append(Answer(ids=ids[len(prompt) :], counts=content, answer=mask, grade=grade))
    return Judged(prompt=prompt, answers=tuple(answers))
