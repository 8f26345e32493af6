"""`herd.LLM`: a model by path, name or object, and its answers held against a loop that computes every token from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import herd
from herd.base.errors import ConfigError, ContextOverflowError, FormatError, NotFoundError, TokenizerError, UsageError
from herd.base.paths import bundled_model
from herd.checkpoint.load import save_model
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import CompletionRequest, Finished
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.bpe_train import train_bpe
from herd.text.messages import Message
from herd.text.prompt import PromptFormat
from herd.text.reply import TextDelta
from herd.text.tokenizer import Tokenizer
from scripted import ScriptedModel  # pyright: ignore[reportMissingImports]
from tiny_model import CONTEXT, TEXT, tiny_config  # pyright: ignore[reportMissingImports]

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
DRAWN = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=12, seed=7)
HELLO = [Message.user("Hello!")]

needs_cria = pytest.mark.skipif(not (bundled_model() / "config.json").is_file(), reason="needs cria, the bundled model")


@torch.inference_mode()
def from_scratch(llm: LLM, prompt: list[int], count: int) -> tuple[int, ...]:
    """Greedy tokens by one full forward over everything so far for each: no cache, no chunks, no sampler."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(llm.model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_greedy_completion_equals_computing_every_token_from_scratch(tiny_llm: LLM) -> None:
    prompt = tiny_llm.tokenizer.encode("The herd grazes on", bos=True)
    output = tiny_llm.generate("The herd grazes on", GREEDY)
    assert output.token_ids == from_scratch(tiny_llm, prompt, 12)
    assert output.text == tiny_llm.tokenizer.decode(output.token_ids)
    assert (output.usage.prompt_tokens, output.usage.completion_tokens, output.finish_reason) == (len(prompt), 12, "length")


def test_a_greedy_answer_equals_computing_every_token_of_the_rendered_conversation_from_scratch(tiny_llm: LLM) -> None:
    messages = [Message.system("Be short."), Message.user("Hi"), Message.assistant("Hello."), Message.user("Who are you?")]
    prompt = PromptFormat().encode(tiny_llm.tokenizer, messages)
    output = tiny_llm.chat(messages, GREEDY)
    assert output.token_ids == from_scratch(tiny_llm, prompt, 12)
    assert output.usage.prompt_tokens == len(prompt)


def test_a_prompt_of_several_chunks_gives_the_same_tokens(tiny_tokenizer: Tokenizer) -> None:
    with torch.device("meta"):
        model = Transformer(replace(tiny_config(tiny_tokenizer.vocab_size), max_position_embeddings=2048))
    llm = LLM(initialise(model, seed=6), tokenizer=tiny_tokenizer)
    prompt = [(7 * number) % tiny_tokenizer.num_base for number in range(1112)]
    output = llm.generate([prompt], replace(GREEDY, max_tokens=4, ignore_eos=True))[0]
    assert output.token_ids == from_scratch(llm, prompt, 4)


def test_a_text_is_completed_behind_begin_of_text_and_ids_are_taken_as_they_are(tiny_llm: LLM) -> None:
    ids = tiny_llm.tokenizer.encode("The wind", bos=True)
    by_text, by_ids, without_bos = tiny_llm.generate(["The wind"], GREEDY) + tiny_llm.generate([ids, ids[1:]], GREEDY)
    assert by_text.token_ids == by_ids.token_ids
    assert without_bos.usage.prompt_tokens == by_ids.usage.prompt_tokens - 1


def test_a_list_of_prompts_is_answered_as_each_alone(tiny_llm: LLM) -> None:
    prompts = ["The sun", "", "El rebaño está"]
    together = tiny_llm.generate(prompts, DRAWN)
    assert [output.token_ids for output in together] == [tiny_llm.generate(prompt, DRAWN).token_ids for prompt in prompts]
    assert tiny_llm.generate([], DRAWN) == []


def test_one_prompt_that_cannot_be_answered_refuses_the_list_before_the_first_answer(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel([65], tiny_tokenizer.vocab_size, context=64)
    llm = LLM(model, tokenizer=tiny_tokenizer)
    with pytest.raises(ContextOverflowError):
        llm.generate(["short", "long " * 100])
    with pytest.raises(TokenizerError, match="9999"):
        llm.generate([[65], [9999]])
    assert model.calls == 0


def test_token_ids_that_are_not_in_a_list_of_prompts_are_refused(tiny_llm: LLM, unchecked_types: None) -> None:
    with pytest.raises(UsageError, match="not of prompts") as caught:
        tiny_llm.generate([65, 66])  # type: ignore[list-item]
    assert "generate([ids])" in str(caught.value.hint)


def test_streaming_gives_the_same_answer_piece_by_piece(tiny_llm: LLM) -> None:
    events = list(tiny_llm.stream(HELLO, DRAWN))
    last = events[-1]
    whole = tiny_llm.chat(HELLO, DRAWN)
    assert isinstance(last, Finished)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == last.text == whole.text
    assert (last.token_ids, last.reason, last.usage) == (whole.token_ids, whole.finish_reason, whole.usage)
    assert whole.message == Message.assistant(whole.text)


def test_messages_may_be_dicts_in_openais_shape(tiny_llm: LLM) -> None:
    dicts = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
    assert tiny_llm.chat(dicts, GREEDY).token_ids == tiny_llm.chat([Message.system("Be short."), *HELLO], GREEDY).token_ids


@pytest.mark.parametrize(
    ("messages", "fragment"),
    [
        ("Hello!", "a message is str"),
        ([{"role": "robot", "content": "x"}], "unknown role 'robot'"),
        ([{"role": "user", "content": 7}], "message content is int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
    ],
)
def test_messages_of_another_shape_are_refused(tiny_llm: LLM, unchecked_types: None, messages: object, fragment: str) -> None:
    with pytest.raises(FormatError, match=fragment) as caught:
        tiny_llm.chat(messages)  # type: ignore[arg-type]
    assert caught.value.hint


def test_the_same_model_twice_and_loaded_twice_gives_the_same_answer(tiny_llm: LLM, tiny_folder: Path) -> None:
    first = tiny_llm.chat(HELLO, DRAWN).token_ids
    assert first == tiny_llm.chat(HELLO, DRAWN).token_ids == LLM(tiny_folder, device="cpu").chat(HELLO, DRAWN).token_ids
    assert tiny_llm.chat(HELLO, GREEDY).token_ids == tiny_llm.chat(HELLO, GREEDY).token_ids


def test_seeds_and_temperatures_make_different_answers(tiny_llm: LLM) -> None:
    drawn = {tiny_llm.chat(HELLO, replace(DRAWN, seed=seed)).token_ids for seed in (7, 8, -7, 10**30)}
    assert len(drawn) == 4
    assert tiny_llm.chat(HELLO, replace(DRAWN, temperature=0.3)).token_ids not in drawn


def test_without_a_seed_every_request_draws_anew(tiny_llm: LLM) -> None:
    unseeded = replace(DRAWN, seed=None)
    assert len({tiny_llm.chat(HELLO, unseeded).token_ids for _ in range(3)}) == 3


def test_a_seed_replays_wherever_the_prompt_is_cut(tiny_llm: LLM) -> None:
    prompt = tiny_llm.tokenizer.encode("The cria", bos=True)
    whole = tiny_llm.generate([prompt], DRAWN)[0].token_ids
    rest = tiny_llm.generate([[*prompt, *whole[:5]]], replace(DRAWN, max_tokens=7))[0].token_ids
    assert rest == whole[5:]


def test_a_likelier_half_and_one_candidate_are_what_top_p_and_top_k_leave(tiny_llm: LLM) -> None:
    greedy = tiny_llm.chat(HELLO, GREEDY).token_ids
    assert tiny_llm.chat(HELLO, replace(DRAWN, top_k=1)).token_ids == greedy
    assert tiny_llm.chat(HELLO, replace(DRAWN, top_p=1e-9)).token_ids == greedy
    assert tiny_llm.chat(HELLO, replace(DRAWN, min_p=1.0)).token_ids == greedy


def test_without_max_tokens_an_answer_goes_on_to_the_end_of_the_context(tiny_llm: LLM) -> None:
    output = tiny_llm.generate([[65] * (CONTEXT - 9)], SamplingParams(temperature=0.0))[0]
    assert (output.usage.completion_tokens, output.finish_reason) == (9, "length")


def test_a_conversation_over_the_context_is_refused_with_its_counts(tiny_llm: LLM) -> None:
    long = [Message.user("grazes " * 600)]
    tokens = len(PromptFormat().encode(tiny_llm.tokenizer, long))
    with pytest.raises(ContextOverflowError, match=f"{tokens:,} tokens and the model's context is {CONTEXT}"):
        tiny_llm.chat(long)
    with pytest.raises(ContextOverflowError):
        tiny_llm.stream(long)


def test_the_prompt_format_can_be_chosen(tiny_folder: Path) -> None:
    form = PromptFormat(variant="huggingface")
    llm = LLM(tiny_folder, device="cpu", prompt_format=form)
    assert llm.chat(HELLO, GREEDY).usage.prompt_tokens == len(form.encode(llm.tokenizer, HELLO))


def test_weights_are_loaded_as_stored_or_in_the_dtype_asked_for(tiny_llm: LLM, tiny_folder: Path) -> None:
    assert tiny_llm.model.dtype == torch.float32
    narrow = LLM(tiny_folder, dtype="bfloat16", device="cpu")
    assert narrow.model.dtype == torch.bfloat16 and narrow.chat(HELLO, GREEDY).usage.completion_tokens == 12
    with pytest.raises(UsageError, match="'bfloat17' is not a dtype"):
        LLM(tiny_folder, dtype="bfloat17", device="cpu")


def test_a_model_is_found_by_path_and_by_its_name_below_herds_models(tiny_folder: Path, herd_home: Path) -> None:
    (herd_home / "models").mkdir(parents=True)
    (herd_home / "models" / "mine").symlink_to(tiny_folder)
    by_name, by_path = LLM("mine", device="cpu"), LLM(tiny_folder, device="cpu")
    assert (by_name.name, by_path.name) == ("mine", str(tiny_folder))
    assert by_name.chat(HELLO, GREEDY).token_ids == by_path.chat(HELLO, GREEDY).token_ids


def test_a_model_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(NotFoundError, match="'meta-llama/Nothing'") as caught:
        LLM("meta-llama/Nothing")
    assert caught.value.hint == "fetch it: herd pull meta-llama/Nothing"
    with pytest.raises(NotFoundError) as caught:
        LLM("lama3.1:8b")
    assert caught.value.hint == "did you mean 'llama3.1:8b'?"


def test_a_transformer_comes_with_its_tokenizer(tiny_llm: LLM) -> None:
    with pytest.raises(UsageError, match="without its tokenizer") as caught:
        LLM(tiny_llm.model)
    assert "load_tokenizer" in str(caught.value.hint)
    again = LLM(tiny_llm.model, tokenizer=tiny_llm.tokenizer)
    assert again.name == "model" and again.chat(HELLO, GREEDY).token_ids == tiny_llm.chat(HELLO, GREEDY).token_ids


def test_answering_leaves_no_trace_in_the_model(tiny_llm: LLM) -> None:
    before = {name: parameter.clone() for name, parameter in tiny_llm.model.named_parameters()}
    tiny_llm.chat(HELLO, DRAWN)
    for name, parameter in tiny_llm.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_two_streams_at_once_do_not_disturb_each_other(tiny_llm: LLM) -> None:
    alone = tiny_llm.generate("The sun", DRAWN).token_ids
    streams = [tiny_llm.inference.complete(CompletionRequest(prompt=prompt, params=DRAWN)) for prompt in ("The sun", "The herd", "The sun")]
    lasts: list[Finished | None] = [None, None, None]
    while streams:
        for number, stream in enumerate(list(streams)):
            event = next(stream, None)
            if event is None:
                streams.remove(stream)
            elif isinstance(event, Finished):
                lasts[number] = event
    assert lasts[0] is not None and lasts[0].token_ids == alone


def test_the_package_gives_its_public_names_from_where_they_live() -> None:
    assert herd.LLM is LLM and herd.SamplingParams is SamplingParams and herd.Message is Message
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        _ = herd.LMM  # type: ignore[attr-defined]


@needs_cria
def test_cria_answers_and_ends_by_itself() -> None:
    output = herd.LLM().chat(HELLO, SamplingParams(temperature=0.0, max_tokens=200))
    assert output.finish_reason == "stop" and output.text.strip() and "\ufffd" not in output.text


@needs_cria
def test_cria_gives_one_answer_for_one_seed() -> None:
    params = SamplingParams(seed=3, max_tokens=30)
    assert herd.LLM().chat(HELLO, params).token_ids == herd.LLM("cria").chat(HELLO, params).token_ids


def test_several_answers_are_those_that_each_seed_gives(tiny_llm: LLM) -> None:
    alone = tiny_llm.generate("The wind", DRAWN)
    several = tiny_llm.generate("The wind", DRAWN, n=3)
    assert several[0].token_ids == alone.token_ids and len({output.token_ids for output in several}) == 3
    lists = tiny_llm.generate(["The wind", "The sun"], DRAWN, n=3)
    assert [output.token_ids for output in lists[0]] == [output.token_ids for output in several] and len(lists[1]) == 3
    answers = tiny_llm.chat(HELLO, DRAWN, n=2)
    assert len(answers) == 2 and answers[0].token_ids == tiny_llm.chat(HELLO, DRAWN).token_ids


def test_a_number_of_answers_that_cannot_be_is_refused(tiny_llm: LLM) -> None:
    for n in (0, 257):
        with pytest.raises(UsageError, match=f"n is {n}"):
            tiny_llm.generate("The wind", DRAWN, n=n)


def test_a_draft_changes_no_token(tiny_llm: LLM, tiny_folder: Path) -> None:
    prompts = ["The herd grazes. The herd", "The sun", "one two three one two"]
    wanted = [output.token_ids for output in tiny_llm.generate(prompts, DRAWN)]
    for draft in ("ngram", tiny_folder, tiny_llm.model):
        llm = LLM(tiny_folder, device="cpu", draft=draft)
        assert [output.token_ids for output in llm.generate(prompts, DRAWN)] == wanted
        stepper = llm.inference.engine.stepper
        assert draft == "ngram" or stepper.results.num_guesses_accepted == stepper.results.num_guessed > 0
        llm.close()


def test_a_draft_with_another_tokenizer_is_refused(tiny_folder: Path, tiny_llm: LLM, tmp_path: Path) -> None:
    other = train_bpe([TEXT[::-1]] * 4, 320)
    save_model(tiny_llm.model, tmp_path / "other", tokenizer=other)
    with pytest.raises(ConfigError, match="has another tokenizer"):
        LLM(tiny_folder, device="cpu", draft=tmp_path / "other")
