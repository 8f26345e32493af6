"""lm-eval, unchanged, against the server: it scores and generates over HTTP, and what it scores is what the model's own forward gives."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from client_server import LiveServer, needs_cria  # pyright: ignore[reportMissingImports]
from foreign_python import python_with, run_foreign  # pyright: ignore[reportMissingImports]

import herd
from herd.base.paths import bundled_model

ROWS = [
    {"question": "Where does a river end?", "choices": ["in the sea", "on the moon", "in a book"], "answer": 0},
    {"question": "What is a cria?", "choices": ["a stone", "a young llama", "a kind of bread"], "answer": 1},
    {"question": "Is fire hot?", "choices": ["yes", "no", "only on Sundays, when it rains"], "answer": 0},
    {"question": "Où est le troupeau ?", "choices": ["à la montagne", "sur la lune", "nulle part, hélas"], "answer": 0},
]
COMMON = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\ntest_split: test\n"
SCORED = COMMON + (
    'task: herd_scored\noutput_type: multiple_choice\ndoc_to_text: "Question: {{{{question}}}}\\nAnswer:"\n'
    "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
)
WRITTEN = COMMON + (
    'task: herd_written\noutput_type: generate_until\ndoc_to_text: "{{{{question}}}}"\ndoc_to_target: "{{{{choices[answer]}}}}"\n'
    'generation_kwargs:\n  until: ["\\n", "."]\n  max_gen_toks: 24\n  temperature: 0\nmetric_list:\n  - metric: exact_match\n'
)


def evaluate(server: LiveServer, folder: Path, model: str, path: str, tasks: str, *options: str) -> dict[str, list[dict[str, Any]]]:
    """Run lm-eval over the tasks; its samples by task."""
    python = python_with("lm_eval")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("scored", SCORED), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.format(file=rows))
    arguments = f"model=cria,base_url={server.url}{path},tokenizer_backend=remote,num_concurrent=4,seed=1"
    command = [python, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", tasks, "--include_path", str(folder)]
    run_foreign([*command, "--output_path", str(folder / "out"), "--log_samples", *options], folder, {"OPENAI_API_KEY": "none"})
    found: dict[str, list[dict[str, Any]]] = {}
    for file in (folder / "out").rglob("samples_*.jsonl"):
        name = re.sub(r"^samples_|_\d{4}-.*$", "", file.name)
        found[name] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


def own_score(llm: herd.LLM, model: herd.Transformer, context: str, continuation: str) -> tuple[float, bool]:
    """The continuation's log-probability after the context by one plain forward in float32, and whether greedy would have written it."""
    # lm-eval encodes both together, and counts what the context alone has.
    first = len(llm.tokenizer.encode(context, bos=False))
    ids = llm.tokenizer.encode(context + continuation, bos=False)
    with torch.inference_mode():
        scores = model(torch.tensor([ids]))[0].float().log_softmax(-1)
    places = range(first - 1, len(ids) - 1)
    chosen = [scores[place, ids[place + 1]].item() for place in places]
    return sum(chosen), all(int(scores[place].argmax()) == ids[place + 1] for place in places)


@pytest.fixture(scope="module")
def float32_server() -> Iterator[LiveServer]:
    """In float32, where rounding stays far below what is compared."""
    needs_cria()
    python_with("lm_eval")
    with tempfile.TemporaryDirectory(prefix="herd-live-") as home:
        server = LiveServer("--dtype", "float32", home=Path(home))
        yield server
        server.stop()


@pytest.mark.slow
def test_lm_evals_scores_are_those_of_the_models_own_forward(float32_server: LiveServer, tmp_path: Path) -> None:
    options = ("--batch_size", "4")
    samples = evaluate(float32_server, tmp_path, "local-completions", "/v1/completions", "herd_scored,herd_written", *options)
    llm = herd.LLM("cria", device="cpu", dtype="float32")
    model = herd.load_model(bundled_model(), device="cpu", dtype="float32")
    worst, num_scored = 0.0, 0
    for sample in samples["herd_scored"]:
        for request, answer in zip(sample["arguments"].values(), sample["resps"], strict=True):
            told = float(answer[0][0])
            own, greedy = own_score(llm, model, request["arg_0"], request["arg_1"])
            assert (str(answer[0][1]) == "True") == greedy
            worst, num_scored = max(worst, abs(told - own)), num_scored + 1
    print(f"{num_scored} scores, the largest difference {worst:.2e}")
    assert num_scored == 12 and worst < 1e-3
    greedy_params = herd.SamplingParams(temperature=0.0, max_tokens=24, stop=("\n", "."))
    # lm-eval sends ids, without <|begin_of_text|>.
    for sample in samples["herd_written"]:
        prompt = llm.tokenizer.encode(sample["arguments"]["gen_args_0"]["arg_0"], bos=False)
        assert sample["resps"][0][0] == llm.generate([prompt], greedy_params)[0].text


@pytest.mark.slow
def test_lm_eval_chats(live_server: LiveServer, tmp_path: Path) -> None:
    options = ("--apply_chat_template", "--num_fewshot", "1", "--fewshot_as_multiturn", "true")
    samples = evaluate(live_server, tmp_path, "local-chat-completions", "/v1/chat/completions", "herd_written", *options)
    assert len(samples["herd_written"]) == len(ROWS)
    assert all(isinstance(sample["resps"][0][0], str) and sample["resps"][0][0] for sample in samples["herd_written"])
