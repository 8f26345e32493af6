"""Stages: each keeps what it should, drops what it should with a reason that names the value, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError, NotFoundError
from herd.data.stages.dirty_words import DirtyWords
from herd.data.stages.heuristics import Heuristics
from herd.data.stages.language import LANGUAGES, LanguageFilter, identify
from herd.data.stages.overlap import Decontaminate
from herd.data.stages.page import ExtractText
from herd.data.stages.pii import PiiRemoval, luhn, remove_pii
from herd.data.stages.repetition import Repetition, repeated_coverage, top_coverage
from herd.data.stages.routes import Routes, route_of
from herd.data.stages.stage import Drop, Tally, merged
from herd.data.stages.url import UrlFilter
from herd.data.units import mixed, ngrams, stable_hash, word_hashes, words_of

PROSE = (
    "A herd of llamas moves slowly over the high meadow, and every animal keeps an eye on its neighbours. In the morning they leave the "
    "stone walls of the village and follow an old path along the river. The shepherd walks behind them with two dogs and a bag of bread. "
    "At noon the sun is strong, so they rest in the shade of a rock, where the grass is short and the water cold."
)


def notes() -> tuple[dict[str, int], Any]:
    found: dict[str, int] = {}
    return found, lambda what, count: found.update({what: found.get(what, 0) + count})


def verdict(stage: Any, text: str, **fields: Any) -> Any:
    record = {"text": text, **fields}
    result = stage.apply(record, notes()[1])
    assert record == {"text": text, **fields}, "a stage never changes the record it is given"
    return result.reason if isinstance(result, Drop) else result


# Words as numbers


def test_words_and_their_numbers_are_the_same_everywhere() -> None:
    assert words_of("Die Lamas, 2 Hirten -- und_so") == ("die", "lamas", "2", "hirten", "und_so")
    assert words_of("नमस्ते दुनिया। हाँ।") == ("नमस्ते", "दुनिया", "हाँ"), "marks are of the word, dandas are not"
    assert stable_hash("llama") == 2221678116696888135
    assert list(word_hashes("llama Llama")) == [stable_hash("llama")] * 2


@given(words=st.lists(st.integers(0, 2**64 - 1), max_size=12), size=st.integers(1, 5))
def test_ngrams_are_equal_where_their_words_are(words: list[int], size: int) -> None:
    hashes = np.array(words, dtype=np.uint64)
    grams = ngrams(hashes, size)
    runs = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    assert len(grams) == max(0, len(runs))
    assert len(set(grams.tolist())) == len(set(runs))
    assert len(set(mixed(grams).tolist())) == len(set(grams.tolist()))


# URLs and pages


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://good.org/a", None),
        ("", None),
        ("https://bad.example/a", "domain"),
        ("http://www.deep.bad.example:8080/", "domain"),
        ("bad.example/a", "domain"),
        ("https://notbad.example/a", None),
        ("https://good.org/casino-games", "word in the address"),
        ("https://good.org/PORN", "word in the address"),
        ("https://good.org/unicorns-and-popcorn", None),
        ("http://[::1", "no address"),
    ],
)
def test_addresses_are_judged_by_domain_and_word(tmp_path: Path, url: str, reason: str | None) -> None:
    (tmp_path / "words").write_text("# games\ncasino  # of chance\n\n")
    stage = UrlFilter(domains=("Bad.Example",), words_file=str(tmp_path / "words"))
    result = verdict(stage, "x", url=url)
    assert result == (reason or {"text": "x", "url": url})
    assert stage.files() == (str(tmp_path / "words"),)


def test_a_page_becomes_its_text_or_goes() -> None:
    stage = ExtractText(min_characters=10)
    result = stage.apply({"html": f"<html><body><p>{PROSE}</p></body></html>", "url": "u"}, notes()[1])
    assert result == {"text": PROSE, "url": "u"}
    assert isinstance(stage.apply({"html": "<p>short</p>"}, notes()[1]), Drop)
    assert verdict(stage, "x") == {"text": "x"}


# Language

SENTENCES = {
    "en": "The children walked home along the river before it began to rain.",
    "de": "Die Kinder gingen am Fluss entlang nach Hause, bevor es zu regnen begann.",
    "fr": "Les enfants rentraient le long de la rivière avant qu'il ne commence à pleuvoir.",
    "it": "I bambini tornavano a casa lungo il fiume prima che cominciasse a piovere.",
    "pt": "As crianças voltavam para casa ao longo do rio antes que começasse a chover.",
    "hi": "बारिश शुरू होने से पहले बच्चे नदी के किनारे घर चले गए।",
    "es": "Los niños volvían a casa a lo largo del río antes de que empezara a llover.",
    "th": "เด็กๆ เดินกลับบ้านริมแม่น้ำก่อนที่ฝนจะตก",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_eight_languages_are_known(language: str) -> None:
    found, score = identify(SENTENCES[language])
    assert found == language and score > 0.5
    result = LanguageFilter().apply({"text": SENTENCES[language]}, notes()[1])
    assert result == {"text": SENTENCES[language], "lang": language}
    assert verdict(LanguageFilter(keep=("xx",)), SENTENCES[language]) == "another language"


@pytest.mark.parametrize(
    "text", ["De kinderen liepen langs de rivier naar huis voordat het begon te regenen.", "子供たちは川沿いを歩いて帰った。", "", "\n"]
)
def test_other_languages_and_nothing_are_other(text: str) -> None:
    assert verdict(LanguageFilter(), text) == "another language"


def test_labels_may_be_trusted_and_scores_have_a_limit() -> None:
    assert verdict(LanguageFilter(trust_label=True), "???", lang="th")["lang"] == "th"
    assert verdict(LanguageFilter(trust_label=True), SENTENCES["de"])["lang"] == "de"
    assert verdict(LanguageFilter(keep=(), min_score=0.9), "ok la") == "unsure of its language"
    with pytest.raises(ConfigError, match="min_score"):
        LanguageFilter(min_score=2.0)


def test_languages_of_public_sentences_are_found(shared_data: Path) -> None:
    from herd.data.records import read_records

    right = total = 0
    for record in read_records(shared_data / "evals_public" / "flores200_dev.jsonl.zst"):
        for language in LANGUAGES:
            total += 1
            right += identify(record[language])[0] == language
    assert total > 7000 and right / total > 0.99


# Heuristics and repetition


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("Too short.", "too short"),
        ("word " * 200, None),
        ("a b c d " * 50, "odd word length"),
        ("pneumonoultramicroscopic " * 60, "odd word length"),
        ((PROSE + " # # # # # # # # # #") * 2, "many symbols"),
        ("\n".join(f"- {line} and more words" for line in PROSE.split(". ")) * 2, "mostly bullets"),
        (PROSE.replace(". ", " ...\n") + " ...", "lines break off"),
        ("/-/ ### ) " * 100 + PROSE, "few letters"),
    ],
)
def test_rules_of_thumb(text: str, reason: str | None) -> None:
    result = verdict(Heuristics(), text, lang="en")
    assert result == (reason or {"text": text, "lang": "en"})


def test_thai_is_counted_in_letters_and_limits_are_checked() -> None:
    thai = SENTENCES["th"] * 12
    assert verdict(Heuristics(), thai, lang="th") == {"text": thai, "lang": "th"}
    assert verdict(Heuristics(min_words=1, max_words=10), PROSE) == "too long"
    with pytest.raises(ConfigError, match="leave nothing"):
        Heuristics(min_words=10, max_words=5)


def test_coverage_counts_the_words_that_come_again() -> None:
    once = word_hashes("a b c d e f g h")
    assert repeated_coverage(once, 2) == 0 and top_coverage(once, 2) == 0
    twice = word_hashes("a b c d e x a b c d e")
    assert repeated_coverage(twice, 5) == pytest.approx(5 / 11)
    assert repeated_coverage(twice, 3) == pytest.approx(5 / 11), "overlapping copies are counted once"
    assert top_coverage(twice, 2) == pytest.approx(4 / 11)
    assert repeated_coverage(word_hashes("a b"), 5) == 0


@settings(max_examples=60)
@given(words=st.lists(st.sampled_from("abc"), min_size=1, max_size=30), size=st.integers(2, 6))
def test_coverage_is_what_a_plain_count_gives(words: list[str], size: int) -> None:
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for start in range(len(words) - size + 1):
        gram = tuple(words[start : start + size])
        if gram in seen:
            covered.update(range(start, start + size))
        seen.add(gram)
    assert repeated_coverage(word_hashes(" ".join(words)), size) == pytest.approx(len(covered) / len(words))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("\n".join([PROSE, "Buy now and save!"] + ["Subscribe to our letter about herds and meadows."] * 8), "repeated lines"),
        ("\n\n".join([PROSE] * 2), "repeated lines"),
        (" ".join(f"buy llamas {number} today" for number in range(60)), "one 2-gram again and again"),
        (PROSE + " " + " ".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"] * 3), "repeated 5-grams"),
    ],
)
def test_texts_that_repeat_themselves_go(text: str, reason: str | None) -> None:
    assert verdict(Repetition(), text) == (reason or {"text": text})
    with pytest.raises(ConfigError, match="repetition"):
        Repetition(top=(2.0,))


def test_dirty_words_are_counted_against_all() -> None:
    assert verdict(DirtyWords(), PROSE + " porn") == {"text": PROSE + " porn"}
    assert verdict(DirtyWords(), "porn xxx milf and more") == "dirty words"
    assert verdict(DirtyWords(built_in_words=False, words=("Herd",), min_count=1, max_share=0.0), PROSE) == "dirty words"
    assert verdict(DirtyWords(), PROSE * 10 + " porn xxx milf") != "dirty words"
    with pytest.raises(NotFoundError):
        verdict(DirtyWords(words_file="/none/words"), PROSE)


# Personal data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+herd@mail.example.org.", "Write to [email]."),
        ("Call +49 (0)30 1234 5678 or (555) 123-4567, 555-123-4567", "Call [phone] or [phone], [phone]"),
        ("Tel. 030 / 1234567", "Tel. 030 / 1234567"),
        ("Tel. 0171 123 45 67", "Tel. [phone]"),
        ("From 66.249.64.13 and 2001:4860:4860::8888", "From [ip] and [ip]"),
        ("Local 192.168.0.1, 127.0.0.1, version 1.2.3.4, 1.12.3.4.5", None),
        ("Konto DE89 3704 0044 0532 0130 00.", "Konto [iban]."),
        ("Konto DE89 3704 0044 0532 0130 01.", "Konto DE89 3704 0044 0532 0130 01."),
        ("Card 4111 1111 1111 1111", "Card [card]"),
        ("Card 4111 1111 1111 1112", "Card 4111 1111 1111 1112"),
        ("On 2023-05-17 at 12:30, 1,234,567 people, ISBN 978-3-16-148410-0, page 12-34", None),
        ("pi is 3.14159265358979, x = 0.0001 and 1000000000", None),
        ("user@localhost, a@b, @handle, 12 @ 3", None),
        ("C++::vector a::b::c 10:20:30 li[::2]", None),
        ("01/06/2021 00:00 | 5.12.2020, [+0.2104542553, +1.9779984951]", None),
        ("archive/06-04-02-0001-0006 and 41 43 45 47 49 51 53 55 57 59 61", None),
    ],
)
def test_personal_data_becomes_marks(text: str, expected: str | None) -> None:
    assert remove_pii(text)[0] == (text if expected is None else expected)


def test_personal_data_is_counted_and_a_text_full_of_it_goes() -> None:
    found, note = notes()
    text = "a@b.org c@d.org 66.249.64.13"
    assert PiiRemoval().apply({"text": text}, note) == {"text": "[email] [email] [ip]"}
    assert found == {"email": 2, "ip": 1}
    assert verdict(PiiRemoval(max_found=2), text) == "full of personal data"
    assert verdict(PiiRemoval(kinds=("ip",)), text) == {"text": "a@b.org c@d.org [ip]"}
    with pytest.raises(ConfigError, match="'phones'") as caught:
        PiiRemoval(kinds=("phones",))
    assert "phone" in str(caught.value.hint)


@given(number=st.from_regex(r"[3-6][0-9]{14}", fullmatch=True))
def test_of_ten_last_digits_one_passes_luhn(number: str) -> None:
    assert sum(luhn(number + digit) for digit in "0123456789") == 1


@settings(max_examples=200)
@given(text=st.text(alphabet="0123456789 ()+-./:@abDE\n", max_size=80))
def test_what_is_removed_once_is_gone(text: str) -> None:
    once, found = remove_pii(text)
    assert (once == text) == (not found)


# Decontamination

QUESTION = "How many llamas graze on the upper meadow in June?"
PASSAGE = "The upper meadow of the village belongs to nobody, so in the month of June every family may lead its llamas up there to graze."


@pytest.fixture
def against(tmp_path: Path) -> Decontaminate:
    path = tmp_path / "eval.jsonl"
    items = [{"question": QUESTION, "choices": ["two", PASSAGE], "answer": {"text": "none"}}]
    items += [{"question": f"Read the following text with care and answer the question below in one word {number}"} for number in range(30)]
    path.write_text("\n".join(map(json.dumps, items)))
    return Decontaminate(against=(str(path),))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        (PROSE + " how many LLAMAS graze on the upper meadow, in June", "8-grams of an evaluation text"),
        (PROSE + " How many llamas graze on the lower meadow in June?", None),
        (PROSE + " ".join(PASSAGE.split()[4:18]) + " and so on.", "13-gram of an evaluation set"),
        (PROSE + " ".join(PASSAGE.split()[4:16]), None),
        ("Read the following text with care and answer the question below in one word. " + PROSE, None),
        ("", None),
    ],
)
def test_a_document_with_a_piece_of_an_evaluation_set_goes(against: Decontaminate, text: str, reason: str | None) -> None:
    result = verdict(against, text)
    assert result == (reason or {"text": text})


def test_fields_limit_what_counts_and_nothing_is_no_evaluation_set(against: Decontaminate) -> None:
    only = Decontaminate(against=against.against, fields=("question",))
    assert verdict(only, PASSAGE) == {"text": PASSAGE}
    assert verdict(only, QUESTION) == "8-grams of an evaluation text"
    assert isinstance(result := against.apply({"text": PASSAGE}, notes()[1]), Drop) and result.detail.startswith("eval.jsonl: The upper")
    for wrong in ({"against": ()}, {"against": ("x",), "short": 0}, {"against": ("x",), "min_share": 0.0}):
        with pytest.raises(ConfigError):
            Decontaminate(**wrong)  # pyright: ignore[reportArgumentType]


# Routes

CODE = "import os\n\n\ndef walk(path):\n    for name in os.listdir(path):\n        if os.path.isdir(name):\n            walk(name)\n"
JAVA = "public class Herd {\n    private final int size;\n    Herd(int size) {\n        this.size = size;\n    }\n}\n"
MATHS = (
    "Let $f(x) = x^2$ and $g(x) = \\sqrt{x}$. Then $\\int_0^1 f(x) dx = \\frac{1}{3}$, so for all $x \\in [0, 1]$ we have $f(g(x)) = x$."
)


def test_code_and_maths_are_told_from_prose() -> None:
    assert [route_of(text) for text in (PROSE, CODE, JAVA, MATHS, "")] == ["prose", "code", "code", "maths", "prose"]
    assert all(route_of(sentence) == "prose" for sentence in SENTENCES.values())
    assert verdict(Routes(), CODE) == {"text": CODE, "route": "code"}
    assert verdict(Routes(fixed="maths"), PROSE)["route"] == "maths"


# Counting


def test_a_tally_counts_documents_bytes_reasons_and_samples() -> None:
    tallies = []
    for shard in range(2):
        tally = Tally("language")
        for number in range(5):
            tally.run(
                {"text": "é" * (number + 1), "id": f"{shard}:{number}"},
                lambda record, note: Drop("odd", record["id"]) if len(record["text"]) % 2 else record,
            )
        assert tally.run({"text": "ab"}, lambda record, note: {**record, "text": "a"}) == {"text": "a"}
        tallies.append(tally.to_dict())
    total = merged(tallies)
    assert (total["seen"], total["kept"], total["changed"]) == (12, 6, 2)
    assert (total["bytes_in"], total["bytes_out"]) == (64, 26)
    assert total["dropped"] == {"odd": [6, 36]}
    assert [sample["id"] for sample in total["samples"]["odd"]] == ["0:0", "0:2", "0:4"]
