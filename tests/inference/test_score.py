"""`LLM.score`: the log-likelihood of continuations, held against a forward over the whole text."""

from __future__ import annotations

import pytest
import torch

from herd.base.errors import ContextOverflowError, TokenizerError, UsageError
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams

PROMPT = "The herd grazes on the high plain. A cria is a young llama, and the cria follows the herd. In the morning"
ENDS = [" the sun rises", " Lamas", ".", " it is cold in the evening; the herd lies down", " ลามะ"]


def by_hand(llm: LLM, ids: list[int], first: int) -> tuple[list[float], bool]:
    with torch.inference_mode():
        scores = llm.model(torch.tensor([ids]))[0].double().log_softmax(dim=-1)
    logprobs = [float(scores[place - 1, ids[place]]) for place in range(first, len(ids))]
    return logprobs, all(int(scores[place - 1].argmax()) == ids[place] for place in range(first, len(ids)))


def test_scores_are_those_of_one_forward(tiny_llm: LLM) -> None:
    encode = tiny_llm.tokenizer.encode
    for end, score in zip(ENDS, tiny_llm.score(PROMPT, ENDS), strict=True):
        ids, first = encode(PROMPT + end, bos=True), len(encode(PROMPT, bos=True))
        logprobs, greedy = by_hand(tiny_llm, ids, first)
        assert score.token_ids == tuple(ids[first:])
        assert score.logprobs == pytest.approx(logprobs, abs=2e-4)
        assert score.logprob == sum(score.logprobs) and score.is_greedy == greedy


def test_what_greedy_decoding_writes_is_greedy_and_a_change_in_it_is_not(tiny_llm: LLM) -> None:
    prompt = tiny_llm.tokenizer.encode(PROMPT, bos=True)
    written = list(tiny_llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=6))[0].token_ids)
    other = [*written[:-1], (written[-1] + 1) % 256]
    assert [score.is_greedy for score in tiny_llm.score([prompt, prompt], [written, other])] == [True, False]


def test_together_or_alone_the_bits_are_the_same_and_the_prompt_is_read_once(tiny_llm: LLM) -> None:
    pool = tiny_llm.inference.engine.scheduler.pool
    together = tiny_llm.score([PROMPT] * len(ENDS), ENDS)
    before = pool.num_hit_tokens
    assert [tiny_llm.score(PROMPT, [end])[0] for end in ENDS] == together
    shared = (len(tiny_llm.tokenizer.encode(PROMPT, bos=True)) - 1) // pool.block_size * pool.block_size
    assert shared > 0 and pool.num_hit_tokens - before == len(ENDS) * shared


def test_text_is_cut_where_the_prompts_own_tokens_end(tiny_llm: LLM) -> None:
    apart = tiny_llm.score("The herd", [" grazes"])
    assert tiny_llm.score("The herd ", ["grazes"]) == apart
    assert tiny_llm.tokenizer.decode(apart[0].token_ids) == " grazes"
    assert tiny_llm.score("", ["The herd"])[0].token_ids == tuple(tiny_llm.tokenizer.encode("The herd"))


@pytest.mark.parametrize(
    ("prompts", "continuations", "error", "words"),
    [
        ("a", "b", UsageError, "one text, not a list"),
        (["a", "b"], ["c"], UsageError, "2 prompts and 1 continuations"),
        (["a"], [[1]], UsageError, "the other token ids"),
        ([1, 2], [[1]], UsageError, "list of token ids"),
        ("a", [""], TokenizerError, "no token to score"),
        ([[]], [[1]], TokenizerError, "no token to score"),
        ("herd " * 1000, [" a"], ContextOverflowError, "no room"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    tiny_llm: LLM, unchecked_types: None, prompts: object, continuations: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        tiny_llm.score(prompts, continuations)  # pyright: ignore[reportArgumentType, reportCallIssue]
