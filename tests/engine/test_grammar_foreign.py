"""Regular expressions, choices and context-free grammars that a caller writes."""

from __future__ import annotations

import pytest
from grammar_helpers import accepts, free_compiler

from herd.base.errors import FormatError
from herd.engine.grammar.spec import Grammar

SUMS = """
// sums of products
start: sum
?sum: product (("+" | "-") product)*   # with a comment
product: atom ("*" atom)*
atom: NUMBER
    | "(" sum ")"
NUMBER: /[0-9]{1,6}/
"""
GBNF = r"""
root ::= "yes" ws reason? | "no"
ws ::= [ \t]*
reason ::= "because " [a-z]+
"""


def refusal(grammar: Grammar) -> FormatError:
    with pytest.raises(FormatError) as caught:
        free_compiler().compile(grammar)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"\d{3}-\d{4}", ["555-0199"], ["555-019", "555-01999", "५५५-0199"]),
        (r"^(yes|no)$", ["yes", "no"], ["", "yesno"]),
        (r"[^/]+/\w*", ["a b/c_d", "é/"], ["/", "a"]),
        (r"(?i)abc", ["aBC"], ["ab"]),
        (r"(a|b)*c?", ["", "abab", "c"], ["ca"]),
        (r"\p{Greek}+", ["αβγ"], ["a"]),
        ("a\nb", ["a\nb"], ["ab"]),
    ],
)
def test_a_regex_matches_from_end_to_end(pattern: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts(Grammar.regex(pattern), text)] == []
    assert [text for text in wrong if accepts(Grammar.regex(pattern), text)] == []


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", "[^\\s\\S]", "a" * 40_000, "(" * 300 + "a" + ")" * 300, "x^a"])
def test_a_regex_that_cannot_be_is_refused(pattern: str) -> None:
    assert len(refusal(Grammar.regex(pattern)).message) < 500


def test_a_choice_is_one_of_its_texts() -> None:
    grammar = Grammar.choice(["yes", "no", 'say "é"\n', "yes and no"])
    assert all(accepts(grammar, text) for text in ("yes", "no", 'say "é"\n', "yes and no"))
    assert not any(accepts(grammar, text) for text in ("", "ye", "yes and", "YES"))
    for options in ([], [""]):
        with pytest.raises(FormatError, match="options"):
            Grammar.choice(options)


def test_a_lark_grammar_of_rules_and_terminals() -> None:
    grammar = Grammar.lark(SUMS)
    assert all(accepts(grammar, text) for text in ("1", "1+2*3", "(1-2)*(3)", "((7))"))
    assert not any(accepts(grammar, text) for text in ("", "1+", "()", "1 + 2", "1234567"))


def test_a_grammar_in_the_syntax_of_llama_cpp() -> None:
    grammar = Grammar.lark(GBNF)
    assert accepts(grammar, "no") and accepts(grammar, "yes because abc") and not accepts(grammar, "yes because")


def test_what_looks_like_the_other_syntax_in_a_string_does_not_count() -> None:
    assert accepts(Grammar.lark('start: "a ::= b"'), "a ::= b")


def test_operators_imports_and_lazy_terminals_are_understood() -> None:
    grammar = Grammar.lark('%import common.INT\nstart: head INT ("," INT){0,2} ~ 1..2 [tail]\nhead[lazy]: /[a-z]*=/\ntail: "!"+ -> end\n')
    assert refusal(grammar) or True
    grammar = Grammar.lark('%import common.INT\nstart: head INT ("," INT){0,2} tail?\nhead[lazy]: /[a-z]*=/\ntail: "!"~1..3\n')
    assert accepts(grammar, "ab=1,22!!") and accepts(grammar, "=7") and not accepts(grammar, "ab=1,2,3,4")
    assert accepts(Grammar.lark('start: A\nA: /[a-z]+/ & ~("no" | "never")'), "yes")
    assert not accepts(Grammar.lark('start: A\nA: /[a-z]+/ & ~("no" | "never")'), "no")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start: <|python_tag|>", "cannot take '<'"),
        ("start: <[128010]>", "cannot take '<'"),
        ('start: %json {"type": "string"}', "%json"),
        ('%llguidance {"no_forcing": false}\nstart: "a"', "%llguidance"),
        ('start: "a" @other', "'@'"),
        ("start: a\na[max_tokens=3]: /a+/", "cannot take"),
        ('start: a\na[stop="x"]: /a+/', "cannot take"),
        ("start: a\na[temperature]: /a+/", "attribute"),
        ('start: "a"\n%ignore <[300]>', "compiled"),
        ('start: "a"\n%declare X', "%declare"),
        ('item: "a"', "no rule `start`"),
        ('start: a\na: "x" a', "'start' of the grammar never comes to an end"),
        ('start: "x" | "y" a\na: b?\nb: "(" b ")"', "'b' of the grammar never comes"),
        ('start: "x" (a | b)\na: "1" a\nb: "2" b', "never comes to an end"),
        ("start: foo", "foo"),
        ('start: "a', "cannot take"),
        ("start: " + "(" * 200 + '"a"' + ")" * 200, "groups nest deeper"),
        ("start: r0\n" + "\n".join(f'r{index}: "x" r{index + 1}?' for index in range(600)) + '\nr600: "e"', "602 rules"),
        ('"start" "a"', "begins no rule"),
        ('start "a"', "begins no rule"),
        ('start: A\nA: "x" A', "'start' of the grammar never"),
        ('start: "a"\n' + "#" * 40_000, "40,0"),
        ('root ::= "a" [', "cannot be read"),
        ("root ::= root2", ""),
        ('start: A B\nA: /[^\\s\\S]/\nB: "b"', ""),
    ],
)
def test_a_grammar_that_reaches_beyond_its_text_or_never_ends_is_refused(text: str, said: str) -> None:
    assert said in refusal(Grammar.lark(text)).message


def test_a_rule_that_could_never_end_is_found_wherever_it_can_be_reached() -> None:
    assert accepts(Grammar.lark('start: "x" | "y" a\na: "(" a ")" | "z"'), "y(z)")
    assert accepts(Grammar.lark('start: "x"\nunused: "y" unused'), "x")


def test_chains_of_rules_as_long_as_allowed_compile() -> None:
    chain = "start: r0\n" + "\n".join(f'r{index}: "x" r{index + 1}?' for index in range(498)) + '\nr498: "e"'
    assert accepts(Grammar.lark(chain), "xxx") and not accepts(Grammar.lark(chain), "xxe")


def test_texts_are_needed() -> None:
    for make in (Grammar.regex, Grammar.lark):
        with pytest.raises(FormatError, match="is ' '"):
            make(" ")
