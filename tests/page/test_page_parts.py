"""Parts of the page by themselves, in the browser that runs them: events cut anywhere, formulas, colours; and what all of it weighs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from browser import Reader  # pyright: ignore[reportMissingImports]
from budget import (  # pyright: ignore[reportMissingImports]
    MAX_BYTES,
    MAX_LINES,
    VENDOR,
    type_errors,
    unused_words,
    weights,
    wrong_checksums,
    wrong_words,
)

Open = Callable[..., Reader]
EVENTS = 'data: {"a": "né 🦙"}\n\n: keep alive\n\nevent: error\ndata: one\ndata: two\n\r\ndata:x\r\n\r\ndata: last\r\rdata: [DONE]\n\n'
EXPECTED = [["", '{"a": "né 🦙"}'], ["error", "one\ntwo"], ["", "x"], ["", "last"], ["", "[DONE]"]]


def test_events_are_the_same_wherever_they_are_cut(open_page: Open) -> None:
    wrong = open_page().page.evaluate(
        """async ([text, expected]) => {
            const { SseReader } = await import("/page/sse.js");
            const bytes = new TextEncoder().encode(text);
            const read = (cuts) => {
              const reader = new SseReader();
              const out = [];
              let from = 0;
              for (const cut of [...cuts, bytes.length]) (out.push(...reader.push(bytes.slice(from, cut))), (from = cut));
              return JSON.stringify(out.map(({ event, data }) => [event, data]));
            };
            const wrong = [];
            for (let at = 0; at <= bytes.length; at++) if (read([at]) !== JSON.stringify(expected)) wrong.push([at, read([at])]);
            if (read([...bytes.keys()]) !== JSON.stringify(expected)) wrong.push("byte by byte");
            return wrong;
        }""",
        [EVENTS, EXPECTED],
    )
    assert wrong == []


FORMULAS = {
    r"\frac{a}{b}": "<mfrac><mi>a</mi><mi>b</mi></mfrac>",
    r"x_i^2": "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>",
    r"\sqrt[3]{x}": "<mroot><mi>x</mi><mrow><mn>3</mn></mrow></mroot>",
    r"\alpha \leq \beta": "<mi>α</mi><mo>≤</mo><mi>β</mi>",
    r"\mathbb{R}^n": "<msup><mi>ℝ</mi><mi>n</mi></msup>",
    r"f'(x)": '<msup><mi>f</mi><mo>′</mo></msup><mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo>',
    r"\text{if } x": "<mtext>if\u00a0</mtext><mi>x</mi>",
    r"3.14": "<mn>3.14</mn>",
}
UNREADABLE = (r"\frac{a}", r"\unknown{x}", "{a", "a}", "x^", r"\left( x", r"\begin{matrix} a", "&", "{" * 200 + "}" * 200)


def test_formulas_become_mathml_and_what_is_not_known_stays_as_written(open_page: Open) -> None:
    page = open_page().page
    run = """async (source) => {
        const { formula } = await import("/page/maths.js");
        try { return formula(source, true).firstElementChild.innerHTML; } catch (error) { return error.name; }
    }"""
    for source, expected in FORMULAS.items():
        assert page.evaluate(run, source).replace("&nbsp;", "\u00a0") == expected, source
    for source in UNREADABLE:
        assert page.evaluate(run, source) == "SyntaxError", source
    matrix = page.evaluate(run, r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}")
    assert matrix.count("<mtd>") == 4
    assert matrix.count("<mtr>") == 2
    assert "munderover" in page.evaluate(run, r"\sum_{k=1}^{n} k")
    assert "munder" in page.evaluate(run, r"\lim_{x \to 0} \frac{\sin x}{x}")


CODES = {
    "python": ("x = 'a' # note", {"string": "'a'", "comment": "# note"}),
    "js": ("const a = `x`; // y", {"word": "const", "string": "`x`", "comment": "// y"}),
    "sql": ("SELECT 1 -- one", {"word": "SELECT", "number": "1", "comment": "-- one"}),
    "rust": ("fn main() { 0x1F }", {"word": "fn", "call": "main", "number": "0x1F"}),
    "diff": ("+new\n-old", {"add": "+new", "cut": "-old"}),
    "html": ('<a href="x">y</a>', {"word": "a", "string": '"x"'}),
    "bash": ("if true; then echo $# # end\nfi", {"word": "if", "comment": "# end"}),
}


def test_code_is_coloured_and_its_text_never_changes(open_page: Open) -> None:
    page = open_page().page
    run = """async ([language, text]) => {
        const { highlight } = await import("/page/highlight.js");
        const code = document.createElement("code");
        code.textContent = text;
        highlight(code, language);
        const found = {};
        for (const span of code.querySelectorAll("span")) found[span.className.slice(3)] ??= span.textContent;
        return [code.textContent, found];
    }"""
    for language, (text, expected) in CODES.items():
        shown, found = page.evaluate(run, [language, text])
        assert shown == text
        assert expected.items() <= found.items(), (language, found)
    assert page.evaluate(run, ["nothing-known", "if x"]) == ["if x", {}]


def test_markdown_is_the_same_however_it_comes(open_page: Open) -> None:
    texts = [
        "a\n\n* b\n* c\n\n  d\n\ne",
        "```py\nx = 1\n```\n\ntext\n\n~~~\n```\n~~~\n",
        "| a | b |\n|--|--|\n| 1 | 2 |\n\n> q\n> r\n\n1. x\n   - y",
        "$$\nx\n$$\n\ninline $a_1$ and \\(b\\)\n\n\\[c\\]\n",
        "# t\n\n- [x] done\n- [ ] open\n\n---\n\n`code` ~~gone~~",
        "text\n```\nopen to the end",
    ]
    wrong = open_page().page.evaluate(
        """async (texts) => {
            const { MarkdownView } = await import("/page/markdown.js");
            await Promise.all([import("/page/maths.js"), import("/page/highlight.js")]);
            const draw = async (text, steps) => {
              const root = document.createElement("div");
              const view = new MarkdownView(root);
              for (const step of steps) ((view.cost_ms = 0), view.update(text.slice(0, step), false));
              view.cost_ms = 0;
              view.update(text, true);
              await new Promise((done) => setTimeout(done, 30));
              return root.innerHTML;
            };
            const wrong = [];
            for (const text of texts) {
              const whole = await draw(text, []);
              const slow = await draw(text, [...text].map((_, at) => at));
              if (whole !== slow) wrong.push([text, whole, slow]);
            }
            return wrong;
        }""",
        texts,
    )
    assert wrong == []


def test_the_page_is_within_its_budget() -> None:
    found = weights()
    assert sum(one.lines for one in found) <= MAX_LINES
    assert sum(one.packed_bytes for one in found) <= MAX_BYTES


def test_vendored_files_are_those_of_their_packages_with_their_licences() -> None:
    assert wrong_checksums() == []
    licences = (VENDOR / "LICENSES.txt").read_text(encoding="utf-8")
    for row in json.loads((VENDOR / "vendor.json").read_text(encoding="utf-8")):
        assert row["file"] in licences


def test_every_language_has_every_word_and_none_is_idle() -> None:
    assert wrong_words() == []
    assert unused_words() == []


def test_types_are_right_where_a_compiler_can_tell() -> None:
    assert type_errors() in (None, [])


def test_no_file_of_the_page_names_another_host() -> None:
    import re

    for path in sorted((VENDOR.parent).glob("*")):
        if path.suffix in (".js", ".css", ".html"):
            named = set(re.findall(r"https?://[\w.]+", path.read_text(encoding="utf-8")))
            assert named <= {"http://www.w3.org"}, (path.name, named)
    assert Path(VENDOR / "README.txt").exists()
