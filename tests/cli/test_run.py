"""`herd run`: flags, JSON, streams and exit codes are a contract that others script against."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand, spawn  # pyright: ignore[reportMissingImports]

from herd.base.paths import bundled_model
from herd.cli.app import run
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.text.messages import Message
from herd.text.prompt import PromptFormat

needs_cria = pytest.mark.skipif(not (bundled_model() / "config.json").is_file(), reason="needs cria, the bundled model")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[LLM], None]:
    """Lets `herd run` find this model, whichever is named."""
    return lambda llm: monkeypatch.setattr("herd.cli.run_prompt.load_llm", lambda *_, **__: llm)


def test_the_json_is_a_contract(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    words = ("--model", tiny_folder, "--temperature", "0.7", "--top-p", "0.8", "--max-tokens", "6", "--seed", "5", "--json", "Hello")
    result = herd("run", *words)
    assert (result.code, result.err) == (0, "")
    expected = tiny_llm.chat([Message.user("Hello")], SamplingParams(temperature=0.7, top_p=0.8, max_tokens=6, seed=5))
    data = result.json
    assert list(data) == ["text", "token_ids", "finish_reason", "usage", "timings"]
    assert data["text"] == expected.text and data["token_ids"] == list(expected.token_ids) and data["finish_reason"] == "length"
    assert data["usage"] == {"prompt_tokens": expected.usage.prompt_tokens, "completion_tokens": 6}
    assert set(data["timings"]) == {"prefill_s", "decode_s", "tokens_per_s"}
    assert all(isinstance(value, float) and value >= 0 for value in data["timings"].values())


def test_raw_completes_the_prompt_as_plain_text(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    data = herd("run", "-m", tiny_folder, "--raw", "--temperature", "0", "--max-tokens", "6", "--json", "The herd").json
    expected = tiny_llm.generate("The herd", SamplingParams(temperature=0.0, max_tokens=6))
    assert data["token_ids"] == list(expected.token_ids)
    assert data["usage"]["prompt_tokens"] == len(tiny_llm.tokenizer.encode("The herd", bos=True))


def test_without_raw_the_prompt_is_one_user_turn(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    turn = PromptFormat().encode(tiny_llm.tokenizer, [Message.user("The herd")])
    data = herd("run", "-m", tiny_folder, "--max-tokens", "1", "--json", "The herd").json
    assert data["usage"]["prompt_tokens"] == len(turn)


def test_the_text_is_on_stdout_with_a_line_end_and_nothing_else_is(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("A river is water."))
    result = herd("run", "What is a river?")
    assert (result.code, result.out, result.err) == (0, "A river is water.\n", "")


def test_flags_may_stand_behind_the_prompt(herd: HerdCommand, tiny_folder: Path) -> None:
    before = herd("run", "-m", tiny_folder, "--seed", "1", "--max-tokens", "4", "--json", "Hello").json
    behind = herd("run", "Hello", "-m", tiny_folder, "--seed", "1", "--max-tokens", "4", "--json").json
    assert before["token_ids"] == behind["token_ids"]


def test_a_seed_replays_and_another_one_does_not(herd: HerdCommand, tiny_folder: Path) -> None:
    words = ("run", "-m", tiny_folder, "-t", "1", "--max-tokens", "12", "Hello", "--seed")
    assert herd(*words, "3").out == herd(*words, "3").out != herd(*words, "4").out


def test_temperature_zero_takes_the_likeliest_whatever_the_seed(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    words = ("run", "-m", tiny_folder, "--temperature", "0", "--max-tokens", "8", "--json", "Hello", "--seed")
    expected = tiny_llm.chat([Message.user("Hello")], SamplingParams(temperature=0.0, max_tokens=8))
    assert herd(*words, "1").json["token_ids"] == herd(*words, "2").json["token_ids"] == list(expected.token_ids)


def test_top_k_and_min_p_reach_the_sampler(herd: HerdCommand, tiny_folder: Path) -> None:
    words = ("run", "-m", tiny_folder, "--max-tokens", "8", "Hello")
    greedy = herd(*words, "--temperature", "0").out
    assert herd(*words, "--temperature", "1", "--top-k", "1").out == greedy
    assert herd(*words, "--temperature", "1", "--min-p", "1").out == greedy


@pytest.mark.parametrize("words", [(), ("-",)])
def test_the_prompt_may_be_piped_in_and_the_line_end_of_echo_is_not_part_of_it(
    herd: HerdCommand, tiny_folder: Path, words: tuple[str, ...]
) -> None:
    flags = ("run", "-m", tiny_folder, "--seed", "1", "--max-tokens", "4", "--json")
    argument = herd(*flags, "Où est le troupeau?").json
    for ending in ("", "\n", "\r\n"):
        piped = herd(*flags, *words, stdin="Où est le troupeau?" + ending).json
        assert (piped["token_ids"], piped["usage"]) == (argument["token_ids"], argument["usage"])


def test_a_raw_prompt_from_a_pipe_is_taken_to_its_last_byte(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    data = herd("run", "-m", tiny_folder, "--raw", "--max-tokens", "1", "--json", stdin="a\n\n").json
    assert data["usage"]["prompt_tokens"] == len(tiny_llm.tokenizer.encode("a\n\n", bos=True))


def test_a_prompt_that_looks_like_a_flag_stands_behind_two_dashes(herd: HerdCommand, tiny_folder: Path) -> None:
    assert herd("run", "-m", tiny_folder, "--max-tokens", "1", "--", "--debug").code == 0


def test_without_a_prompt_a_terminal_is_not_waited_for(herd: HerdCommand) -> None:
    message, hint = herd("run").refusal(2)
    assert message == "no prompt was given" and "pipe it in" in hint


def test_instructions_go_before_the_prompt_and_not_into_raw_text(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    data = herd("run", "-m", tiny_folder, "--system", "Be short.", "--max-tokens", "1", "--json", "Hello").json
    turns = PromptFormat().encode(tiny_llm.tokenizer, [Message.system("Be short."), Message.user("Hello")])
    assert data["usage"]["prompt_tokens"] == len(turns)
    assert "no place in a raw completion" in herd("run", "-m", tiny_folder, "--system", "x", "--raw", "Hello").refusal(2)[0]


def test_stop_texts_end_the_answer_and_are_not_part_of_it(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("One. Two! Three."))
    data = herd("run", "--stop", "!", "--stop", "Three", "--json", "x").json
    assert (data["text"], data["finish_reason"]) == ("One. Two", "stop")


def test_an_answer_that_ends_by_itself_says_stop_and_its_ids_have_the_end(herd: HerdCommand, given: Any, says: Any) -> None:
    llm = says("Hi.")
    given(llm)
    data = herd("run", "--json", "x").json
    assert (data["text"], data["finish_reason"]) == ("Hi.", "stop")
    assert data["token_ids"][-1] == llm.tokenizer.eot_id
    assert data["usage"]["completion_tokens"] == len(data["token_ids"])


def test_json_keeps_letters_and_escapes_what_json_must(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says('ลามะ "quoted"\nline'))
    result = herd("run", "--json", "x")
    assert 'ลามะ \\"quoted\\"\\nline' in result.out and result.json["text"] == 'ลามะ "quoted"\nline'


def test_text_reaches_stdout_token_by_token(given: Any, says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = says("abc")
    given(llm)
    seen: list[tuple[int, str]] = []

    class Recorder(io.StringIO):
        def flush(self) -> None:
            seen.append((llm.model.calls, self.getvalue()))

    monkeypatch.setattr(sys, "stdout", Recorder())
    assert run(["run", "x"]) == 0
    assert [item for item in seen if item[0] < 4] == [(1, "a"), (2, "ab"), (3, "abc")]


def test_ctrl_c_ends_with_130_and_keeps_what_was_said(herd: HerdCommand, given: Any, says: Any) -> None:
    given(says("xyz", fails={2: KeyboardInterrupt()}))
    result = herd("run", "x")
    assert (result.code, result.out, result.err) == (130, "xy", "\n")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--temperature", "-1"), "temperature is -1.0, it must be 0 (greedy) to 100"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--temperature", "hot"), "invalid value for '--temperature'"),
        (("--top-p", "0"), "top_p is 0.0"),
        (("--top-p", "1.5"), "top_p is 1.5"),
        (("--top-k", "-1"), "top_k is -1"),
        (("--min-p", "2"), "min_p is 2.0"),
        (("--max-tokens", "0"), "max_tokens is 0"),
        (("--max-tokens", "some"), "invalid value for '--max-tokens'"),
        (("--seed", "1.5"), "invalid value for '--seed'"),
        (("--stop", ""), "a stop text is empty"),
        (("--threads", "-1"), "threads is -1"),
        (("--threads", "100000"), "threads is 100000, it must be 0 (all cores) to 1024"),
        (("--threads", "99999999999999999999"), "threads is 99999999999999999999"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--device", "cuda:x"), "unknown device 'cuda:x'"),
        (("--dtype", "float8"), "'float8' is not a dtype"),
        (("Hello", "again"), "again"),
        (("--model",), "requires an argument"),
    ],
)
def test_a_flag_that_means_nothing_ends_with_2(herd: HerdCommand, tiny_folder: Path, words: tuple[str, ...], fragment: str) -> None:
    message, _ = herd("run", "-m", tiny_folder, "Hello", *words).refusal(2)
    assert fragment in message


def test_a_gpu_that_is_not_there_is_told(herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    message, hint = herd("run", "-m", tiny_folder, "--device", "cuda:1", "Hello").refusal(2)
    assert message == "there is no cuda:1 on this machine" and "--device cpu" in hint


def test_a_model_that_is_not_there_ends_with_3(herd: HerdCommand) -> None:
    assert herd("run", "-m", "ORG/NAME", "Hello").refusal(3) == (
        "there is no model 'ORG/NAME' on this machine",
        "fetch it: herd pull ORG/NAME",
    )
    assert herd("run", "-m", "", "Hello").refusal(2)[0] == "the model is empty"


def test_a_prompt_over_the_context_ends_with_4_and_both_numbers(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    tokens = len(tiny_llm.tokenizer.encode("grazes " * 400, bos=True))
    message, hint = herd("run", "-m", tiny_folder, "--raw", "grazes " * 400).refusal(4)
    assert f"the prompt has {tokens:,} tokens and the model's context is 512" in message and "nothing was cut" in hint


def test_weights_that_do_not_fit_are_refused_before_loading(herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.cli.fits.available_memory", lambda: 1000)
    monkeypatch.setattr("herd.inference.llm.load", lambda *_, **__: pytest.fail("the weights were loaded"))
    message, hint = herd("run", "-m", tiny_folder, "Hello").refusal(4)
    assert f"the weights of {tiny_folder} take 0.2 MiB and cpu has 0.0 MiB free" in message and "smaller model" in hint


def test_a_narrower_dtype_is_what_the_weights_are_measured_in(
    herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.cli.fits.available_memory", lambda: 3 * tiny_llm.model.config.num_parameters)
    assert herd("run", "-m", tiny_folder, "--max-tokens", "1", "Hello").code == 4
    assert herd("run", "-m", tiny_folder, "--max-tokens", "1", "--dtype", "bfloat16", "Hello").code == 0


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 10 bytes"), type("OutOfMemoryError", (RuntimeError,), {})()],
)
def test_memory_that_runs_out_ends_with_4(herd: HerdCommand, given: Any, says: Any, error: BaseException) -> None:
    given(says("The herd", fails={0: error}))
    message, hint = herd("run", "x").refusal(4)
    assert message.startswith("out of memory") and "--dtype bfloat16" in hint


def test_scores_that_are_no_numbers_end_with_1_and_name_verify(herd: HerdCommand, given: Any, says: Any) -> None:
    llm = says("The herd")
    nan = llm.model.logits.__func__
    llm.model.logits = lambda hidden: nan(llm.model, hidden) * float("nan")
    given(llm)
    message, hint = herd("run", "x").refusal(1)
    assert "not finite" in message and "herd verify" in hint


def test_a_prompt_and_texts_of_flags_that_are_not_utf8_are_refused(herd: HerdCommand, tiny_folder: Path) -> None:
    broken = b"one\xe9".decode("utf-8", "surrogateescape")
    assert "the prompt is not UTF-8, from character 3 on" in herd("run", "-m", tiny_folder, broken).refusal(1)[0]
    assert "the prompt on stdin is not UTF-8" in herd("run", "-m", tiny_folder, stdin=b"one\xe9").refusal(1)[0]
    assert "--system is not UTF-8" in herd("run", "-m", tiny_folder, "--system", broken, "x").refusal(1)[0]
    assert "--stop is not UTF-8" in herd("run", "-m", tiny_folder, "--stop", broken, "x").refusal(1)[0]


def test_answering_writes_no_file_but_packed_weights(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    assert herd("run", "-m", tiny_folder, "--max-tokens", "2", "Hello").code == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != tmp_path / "home" / "packed"] == []


def test_in_a_process_of_its_own_stdout_has_the_answer_and_nothing_else(tiny_folder: Path) -> None:
    result = spawn("run", "-m", tiny_folder, "--temperature", "0", "--max-tokens", "6", "--json", stdin=b"Hello")
    assert (result.code, result.err) == (0, "") and result.json["finish_reason"] == "length"
    assert "\x1b" not in result.out


def test_an_answer_goes_to_a_stdout_of_few_characters_with_question_marks(tiny_folder: Path) -> None:
    words = ("run", "-m", tiny_folder, "--temperature", "0", "--max-tokens", "20", "Hello")
    plain = spawn(*words, variables={"PYTHONIOENCODING": "ascii"})
    assert (plain.code, plain.err) == (0, "") and "?" in plain.out and plain.out.isascii()


@needs_cria
def test_cria_answers_hello_in_a_sentence_and_stops_by_itself(herd: HerdCommand) -> None:
    data = herd("run", "--temperature", "0", "--json", "Hello!").json
    assert data["finish_reason"] == "stop"
    assert data["text"].strip()[-1] in ".!?" and " " in data["text"].strip() and "\ufffd" not in data["text"]


@needs_cria
def test_cria_is_the_model_when_none_is_named(herd: HerdCommand) -> None:
    flags = ("--temperature", "0", "--max-tokens", "10", "--json", "Hello!")
    assert herd("run", *flags).json["token_ids"] == herd("run", "--model", "cria", *flags).json["token_ids"]
