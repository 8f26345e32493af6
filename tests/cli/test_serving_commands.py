"""The commands around a server: keys, the memory plan, benchmarks and the replay of receipts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.engine.stream import TokenRequest
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import CompletionRequest, Finished
from herd.stack.receipts import make_receipt
from herd.stack.worker import kernels_in_use, weights_digest


def test_a_new_key_is_a_line_of_a_key_file(herd: HerdCommand, tmp_path: Path) -> None:
    lines = [herd("keys", "new", "anna").out, herd("keys", "new").out]
    assert lines[0].startswith("anna herd-") and lines[1].startswith("herd-") and len(lines[1].strip()) > 40
    file = tmp_path / "keys.txt"
    file.write_text(lines[0].strip() + " rpm=60 priority=2  # of the web page\n\n" + lines[1])
    told = herd("keys", "check", file).out
    assert "anna" in told and "60" in told and "no limit" in told
    assert lines[1].strip() not in told and lines[0].split()[1] not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no keys"),
        ("anna short", "line 1: the key has 5 characters, the least is 16"),
        ("anna 0123456789abcdef rpm=many", "line 1: rpm is 'many'"),
        ("anna 0123456789abcdef tmp=3", "line 1: 3 words besides the limits"),
        ("anna 0123456789abcdef\nbob 0123456789abcdef", "two lines have the same key"),
        ("anna 0123456789abcdef\nanna 1123456789abcdef", "two lines have the same name"),
        ("anna 0123456789abcdef concurrent=0", "concurrent is 0, it must be at least 1"),
    ],
)
def test_a_wrong_key_file_is_refused_by_line_and_without_the_key(herd: HerdCommand, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    told, _ = herd("serve", "--api-key-file", file).refusal(1)
    assert message in told and "0123456789abcdef" not in told


def test_the_world_is_not_let_in_without_keys(herd: HerdCommand) -> None:
    message, hint = herd("serve", "--host", "0.0.0.0").refusal(1)
    assert "0.0.0.0 without keys" in message and "--api-key-file" in hint


def test_guesses_without_a_guesser_are_refused(herd: HerdCommand) -> None:
    message, hint = herd("serve", "--num-draft", "4").refusal(2)
    assert message == "--num-draft 4 goes with --draft" and "--draft ngram" in hint


def test_a_server_of_a_model_that_is_not_there_is_refused(herd: HerdCommand, tmp_path: Path) -> None:
    message, _ = herd("serve", tmp_path / "absent").refusal(3)
    assert "absent" in message


def test_the_plan_is_what_the_engine_allocates(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    plan = herd("plan", "serve", tiny_folder, "--context", "256", "--max-sequences", "4", "--json").json
    assert plan["context"] == 256 and plan["dtype"] == "float32"
    assert plan["total_bytes"] == sum(plan[name] for name in plan if name.endswith("_bytes") and name != "total_bytes")
    assert plan["cache_bytes"] == plan["num_blocks"] * 16 * tiny_llm.model.config.kv_bytes_per_token(4)
    assert "cache holds" in herd("plan", "serve", tiny_folder).out


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_plan_of_keys_and_values_in_a_byte_a_number(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM, kind: str) -> None:
    plan = herd("plan", "serve", tiny_folder, "--kv-dtype", kind, "--json").json
    config = tiny_llm.model.config
    vectors = 2 * config.num_hidden_layers * config.num_key_value_heads
    assert plan["cache_bytes"] == plan["num_blocks"] * 16 * vectors * (config.head_dim + 4)
    message, hint = herd("plan", "serve", tiny_folder, "--kv-dtype", "int4").refusal(1)
    assert "'int4'" in message and "int8, fp8" in hint


def test_a_plan_that_does_not_fit_says_by_how_much(herd: HerdCommand, tiny_folder: Path) -> None:
    message, hint = herd("plan", "serve", tiny_folder, "--memory", "100MiB").refusal(4)
    assert "the limit is 100.0 MiB" in message and "context" in hint
    message, hint = herd("plan", "serve", tiny_folder, "--memory", "lots").refusal(2)
    assert "'lots' is no size" in message and "16GiB" in hint


def test_benchmarks_print_json_and_tables(herd: HerdCommand, tiny_folder: Path) -> None:
    sizes = ("--prompt-tokens", "12", "--new-tokens", "6")
    latency = herd("bench", "latency", tiny_folder, *sizes, "--repeats", "1", "--json").json
    assert latency["model"] == str(tiny_folder) and latency["decode_tokens_per_s"] > 0
    throughput = herd("bench", "throughput", tiny_folder, *sizes, "--requests", "5", "--mix", "uniform")
    assert "time to first token" in throughput.out and "tokens/s" in throughput.out
    message, _ = herd("bench", "throughput", tiny_folder, "--prompt-tokens", "600").refusal(4)
    assert "600 + 64 tokens" in message
    message, _ = herd("bench", "serve", "--url", "http://127.0.0.1:9/v1").refusal(1)
    assert "http://127.0.0.1:9/v1 does not list its models" in message


def receipt(llm: LLM, folder: Path) -> dict[str, object]:
    """As the server makes it, of an answer that an `LLM` gave."""
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=12, logprobs=0, ignore_eos=True)
    request = CompletionRequest(prompt="The herd", n=2, params=params)
    answers = {part.index: part.event for part in llm.inference.complete_parts(request) if isinstance(part.event, Finished)}
    tokens = TokenRequest(
        prompt=tuple(llm.tokenizer.encode("The herd", bos=True)),
        params=params.token_params(room=12, model_stops=llm.tokenizer.stop_ids),
        n=2,
        tenant="anna",
        salt=b"secret",
    )
    info = {"weights_digest": weights_digest(folder), "dtype": "float32", "device": "cpu", "kernels": kernels_in_use("cpu")}
    return make_receipt(str(folder), info, tokens, answers.items())


def test_a_receipt_is_replayed_bit_for_bit(herd: HerdCommand, tmp_path: Path, tiny_folder: Path, tiny_llm: LLM) -> None:
    made = receipt(tiny_llm, tiny_folder)
    assert "anna" not in json.dumps(made) and b"secret".hex() not in json.dumps(made)
    file = tmp_path / "answer.json"
    for data in (made, {"id": "cmpl-1", "receipt": made}):
        file.write_text(json.dumps(data))
        result = herd("replay", file)
        assert result.code == 0 and "the same: 24 tokens and log-probabilities" in result.err
    assert herd("replay", file, "--json").json["same"] is True


def test_an_answer_that_was_changed_is_found_out(herd: HerdCommand, tmp_path: Path, tiny_folder: Path, tiny_llm: LLM) -> None:
    made: dict[str, dict[str, dict[str, list[float]]]] = json.loads(json.dumps(receipt(tiny_llm, tiny_folder)))
    file = tmp_path / "receipt.json"
    made["answers"]["1"]["token_ids"][3] += 1
    file.write_text(json.dumps(made))
    message, _ = herd("replay", file).refusal(5)
    assert message.startswith("answer 1: token 3 was")
    made["answers"]["1"]["token_ids"][3] -= 1
    made["answers"]["0"]["logprobs"][2] += 1e-9
    file.write_text(json.dumps(made))
    message, _ = herd("replay", file).refusal(5)
    assert message == "answer 0: the tokens are the same, the log-probability of token 2 is not"


def test_what_is_no_receipt_or_of_other_weights_is_refused(herd: HerdCommand, tmp_path: Path, tiny_folder: Path, tiny_llm: LLM) -> None:
    file = tmp_path / "receipt.json"
    for text, message in (("{", "cannot be read as JSON"), ("[1]", "this is no receipt"), ('{"receipt": 1}', "the receipt is damaged")):
        file.write_text(text)
        assert message in herd("replay", file).refusal(1)[0]
    assert "no file" in herd("replay", tmp_path / "absent").refusal(3)[0]
    file.write_text(json.dumps({**receipt(tiny_llm, tiny_folder), "weights_sha256": "0" * 64}))
    message, hint = herd("replay", file).refusal(5)
    assert "the receipt's 0000000000000000" in message and "--model" in hint


def test_a_receipt_names_the_kernels_of_its_device_alone() -> None:
    assert all(name.endswith(" cpu") for name in kernels_in_use("cpu"))
    assert list(kernels_in_use("cuda:0")) == ["all of the engine cuda"] and list(kernels_in_use("mps")) == ["all any other"]
