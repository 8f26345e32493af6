"""Our own dialogues: those written by hand are well formed in all eight languages, and every drill's answer is the right one."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from herd.data.records import Record
from herd.recipes.chat_data import LANGUAGES, drills, own_dialogues
from herd.text.prompt import PromptFormat
from herd.text.specials import SPECIAL_TOKENS

OWN = list(own_dialogues())
SCRIPTS = {"hi": re.compile("[\u0900-\u097f]"), "th": re.compile("[\u0e00-\u0e7f]")}


def by_language(language: str) -> list[Record]:
    return [record for record in OWN if record["lang"] == language]


def test_there_are_dialogues_in_eight_languages_and_english_has_most() -> None:
    counts = Counter(record["lang"] for record in OWN)
    assert tuple(sorted(counts)) == tuple(sorted(LANGUAGES)) and len(LANGUAGES) == 8
    assert min(counts.values()) >= 200
    assert counts.most_common(1)[0][0] == "en"


@pytest.mark.parametrize("language", LANGUAGES)
def test_own_dialogues_are_well_formed(language: str) -> None:
    for record in by_language(language):
        assert record.keys() == {"lang", "messages"}
        assert all(turn.keys() == {"role", "content"} for turn in record["messages"]), record
        roles = [turn["role"] for turn in record["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns and turns == ["user", "assistant"] * (len(turns) // 2), record


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_turn_is_empty_or_ragged_or_spells_a_special_token(language: str) -> None:
    for record in by_language(language):
        for turn in record["messages"]:
            content = turn["content"]
            assert content and content == content.strip(), record
            assert content.isprintable() or "\n" in content, record
            assert "\ufffd" not in content and not any(name in content for name in SPECIAL_TOKENS), record


@pytest.mark.parametrize("language", SCRIPTS)
def test_hindi_and_thai_are_answered_in_their_script(language: str) -> None:
    for record in by_language(language):
        answers = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
        assert all(SCRIPTS[language].search(answer) for answer in answers), record


def test_no_dialogue_comes_twice() -> None:
    texts = Counter(json.dumps(record, sort_keys=True) for record in OWN)
    assert [text for text, count in texts.items() if count > 1] == []


def test_own_dialogues_can_be_rendered_as_prompts() -> None:
    chat = PromptFormat()
    for record in (record for language in LANGUAGES for record in by_language(language)[::10]):
        rendered = chat.render(record["messages"], generation_prompt=False)
        assert rendered.count("<|eot_id|>") == len(record["messages"])
        assert rendered.endswith(record["messages"][-1]["content"] + "<|eot_id|>")


NUMBERS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def is_sum(question: str, answer: str) -> bool:
    a, b = numbers(question)
    return answer in (f"{a} plus {b} is {a + b}.", f"{a} + {b} = {a + b}.")


def is_difference(question: str, answer: str) -> bool:
    a, b = numbers(question) if "away" not in question else numbers(question)[::-1]
    return a - b >= 0 and answer == f"{a} minus {b} is {a - b}."


def is_product(question: str, answer: str) -> bool:
    a, b = numbers(question)
    return answer == f"{a} times {b} is {a * b}."


def is_story(question: str, answer: str) -> bool:
    found = re.fullmatch(r"(\w+) has (\w+) (\w+) and gets (\w+) more\. How many (\w+) does (\w+) have now\?", question)
    assert found is not None
    name, first, things, second, same_things, same_name = found.groups()
    a, b = NUMBERS.index(first), NUMBERS.index(second)
    told = f"{name} has {NUMBERS[a + b]} {things} now, because {a} plus {b} is {a + b}."
    return (things, name) == (same_things, same_name) and answer == told


def is_counting(question: str, answer: str) -> bool:
    first, last = numbers(question)
    return first < last and answer == ", ".join(map(str, range(first, last + 1))) + "."


def is_neighbour(question: str, answer: str) -> bool:
    names = DAYS if " day " in question else MONTHS
    asked = question.rstrip("?").split()[-1]
    offset = 1 if "after" in question else -1
    where = "after" if offset == 1 else "before"
    return answer == f"{names[(names.index(asked) + offset) % len(names)]} comes {where} {asked}."


def is_spelling(question: str, answer: str) -> bool:
    found = re.search(r"spell (\w+)\?|the word (\w+)\.", question)
    assert found is not None
    word = found[1] or found[2]
    return answer == f"{word[0].upper()}{word[1:]} is spelled {'-'.join(letter.upper() for letter in word)}."


def is_echo(question: str, answer: str) -> bool:
    return len(answer.split()) >= 2 and question in (f"Repeat after me: {answer}", f"Say this: {answer}")


def is_greeting(question: str, answer: str) -> bool:
    names = re.findall(r"[A-Z][a-z]+", re.sub("My name|Hello|Hi,|I'm|I am", "", question))
    return len(names) == 1 and names[0] in answer


def asked_word(pattern: str) -> Callable[[str, str], bool]:
    """The answer repeats the word that was asked for, as `pattern` says it."""

    def check(question: str, answer: str) -> bool:
        found = re.fullmatch(pattern, answer)
        return found is not None and re.search(rf"\b{found[1]}\b", question) is not None

    return check


CHECKS: dict[str, tuple[str, Callable[[str, str], bool]]] = {
    "sum": (r"plus|[Aa]dd|\d ?\+ ?\d", is_sum),
    "difference": (r"minus|\d - \d|away from", is_difference),
    "product": (r"times|\d x \d", is_product),
    "story": (r"gets \w+ more", is_story),
    "counting": (r"^Count from", is_counting),
    "day or month": (r"^(What|Which) (day|month) (comes|is)", is_neighbour),
    "spelling": (r"spell \w+\?$|^Spell", is_spelling),
    "echo": (r"^(Repeat after me|Say this):", is_echo),
    "greeting": (r"My name is|my name is|^Hi, I am|^I'm", is_greeting),
    "opposite": (r"opposite of", asked_word(r"The opposite of (\w+) is \w+\.")),
    "plural": (r"plural of|more than one", asked_word(r"The plural of (\w+) is \w+\.")),
    "past": (r"the past (tense )?of", asked_word(r"The past tense of (\w+) is \w+\.")),
    "capital": (r"capital of", asked_word(r"The capital of (\w+) is [\w ]+\.")),
    "young animal": (r"young \w+ called|a baby \w+\?", asked_word(r"A young (\w+) is called a \w+\.")),
}


def questions(count: int = 3000, seed: int = 0) -> list[tuple[str, str]]:
    turns = [record["messages"] for record in drills(seed, count)]
    return [(ask["content"], reply["content"]) for messages in turns for ask, reply in zip(messages[::2], messages[1::2], strict=True)]


def test_every_drill_is_of_one_known_kind_and_answered_right() -> None:
    seen: Counter[str] = Counter()
    for question, answer in questions():
        kinds = [kind for kind, (pattern, _) in CHECKS.items() if re.search(pattern, question) and not is_echo(question, answer)]
        kinds = kinds or ["echo"]
        assert len(kinds) == 1, (question, kinds)
        assert CHECKS[kinds[0]][1](question, answer), (question, answer)
        seen.update(kinds)
    assert seen.keys() == CHECKS.keys()
    assert min(seen.values()) > 50


def test_a_question_has_one_answer_whenever_it_is_asked() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for _, answer in questions(8000, seed=1):
        found = re.fullmatch(r"(The (?:opposite|plural|past tense|capital) of \w+|A young \w+) is (.+)\.", answer)
        if found is not None:
            answers[found[1]].add(found[2])
    assert len(answers) > 80
    assert {asked: given for asked, given in answers.items() if len(given) > 1} == {}


def test_the_opposite_of_an_opposite_is_the_word_itself() -> None:
    pairs = {found[1]: found[2] for _, answer in questions(8000) if (found := re.fullmatch(r"The opposite of (\w+) is (\w+)\.", answer))}
    assert len(pairs) > 40
    assert all(pairs[pairs[word]] == word != pairs[word] for word in pairs)


def test_drills_are_the_same_for_a_seed_and_others_for_another() -> None:
    first = list(drills(7, 200))
    assert first == list(drills(7, 200))
    assert first[:50] == list(drills(7, 50)), "more of them do not change those before"
    assert first != list(drills(8, 200))
    assert list(drills(7, 0)) == []


def test_drills_are_english_dialogues_of_one_to_three_questions() -> None:
    sizes = Counter(len(record["messages"]) for record in drills(0, 1000))
    assert sizes.keys() == {2, 4, 6} and sizes[2] > sizes[4]
    for record in drills(0, 1000):
        assert record["lang"] == "en"
        assert [turn["role"] for turn in record["messages"]] == ["user", "assistant"] * (len(record["messages"]) // 2)
        assert all(turn["content"] for turn in record["messages"])
