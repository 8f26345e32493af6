"""Reading a guard model's answer: `safe`, or `unsafe` and a line of category codes; anything else is malformed and counts as unsafe.

The grammar holds a model to that form, so a malformed answer comes only from a server without grammars. The score is the probability of
the verdict token: the mass on continuations of `unsafe` over that and the mass on continuations of `safe`, at the first token that is
no line end. Knows no prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from herd.engine.grammar.spec import Grammar
from herd.inference.port import TokenLogprob
from herd.safety.categories import Category

SAFE, UNSAFE = "safe", "unsafe"
MAX_TOKENS = 64
"""Of a verdict. The reference allows 20, which cuts a list of over five categories."""
_CODE = re.compile(r"S[1-9][0-9]{0,2}")
_END = "<|eot_id|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardAnswer:
    """A guard's answer as read.

    Attributes:
        unsafe: its verdict; True for whatever is malformed.
        categories: the codes that it named and was asked about, in the order of their naming, each once.
        malformed: what is wrong with the answer's form; empty if nothing is.
    """

    unsafe: bool
    categories: tuple[str, ...] = ()
    malformed: str = ""


def verdict_grammar(categories: Sequence[Category], *, unsafe_only: bool = False) -> Grammar:
    """What a verdict may look like: the model's blank line, then `safe`, or `unsafe` and codes of `categories`."""
    code = "(" + "|".join(category.code for category in categories) + ")"
    unsafe = rf"{UNSAFE}\n{code}(,{code}){{0,{len(categories) - 1}}}" if len(categories) > 1 else rf"{UNSAFE}\n{code}"
    return Grammar.regex(rf"(\n\n)?{unsafe}" if unsafe_only else rf"(\n\n)?({SAFE}|{unsafe})")


def read_verdict(text: str, categories: Sequence[Category], *, exclude: Collection[str] = ()) -> GuardAnswer:
    """Read an answer, failing closed.

    Args:
        text: what the guard wrote.
        categories: what it was asked about.
        exclude: codes that do not count: an answer that names nothing else is safe.
    """
    stripped = text.strip().removesuffix(_END).strip()
    if stripped == SAFE:
        return GuardAnswer(unsafe=False)
    first, _, rest = stripped.partition("\n")
    if first.strip() != UNSAFE:
        return GuardAnswer(unsafe=True, malformed=f"the guard answered {stripped[:80]!r}" if stripped else "the guard answered nothing")
    if not rest.strip():
        return GuardAnswer(unsafe=True, malformed="the guard named no category")
    known = {category.code for category in categories}
    named = [part.strip() for part in rest.strip().split(",")]
    strange = [part for part in named if part not in known and part not in exclude]
    codes = tuple(dict.fromkeys(part for part in named if part in known or part in exclude))
    if strange:
        # Codes inside a broken line still help whoever reads the log; the verdict stands either way.
        found = tuple(dict.fromkeys(code for code in (*codes, *_CODE.findall(rest)) if code in known and code not in exclude))
        return GuardAnswer(unsafe=True, categories=found, malformed=f"the guard named {strange[0][:80]!r}, which is no category")
    counted = tuple(code for code in codes if code not in exclude)
    return GuardAnswer(unsafe=bool(counted), categories=counted)


def verdict_score(logprobs: Sequence[TokenLogprob]) -> float | None:
    """The probability of `unsafe` at the verdict's first token; None where it cannot be told."""
    for token in logprobs:
        if not token.data.strip(b"\n"):
            continue
        masses = {SAFE: 0.0, UNSAFE: 0.0}
        seen = {token_id: (data, logprob) for token_id, data, logprob in token.top}
        seen[token.token_id] = token.data, token.logprob
        for data, logprob in seen.values():
            word = data.decode("utf-8", "replace").strip("\n")
            for verdict in masses:
                if word and verdict.startswith(word):
                    masses[verdict] += math.exp(logprob)
        total = masses[SAFE] + masses[UNSAFE]
        return masses[UNSAFE] / total if total > 0.0 else None
    return None
