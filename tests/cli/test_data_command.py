"""`herd data`: every command from files to files, in text and in JSON, and its refusals."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand, environment  # pyright: ignore[reportMissingImports]

from herd.data.records import read_records
from herd.data.token_shards import TokenDataset
from herd.text.tokenizer import Tokenizer

PROSE = (
    "A herd of llamas moves slowly over the high meadow, and every animal keeps an eye on its neighbours. In the morning they leave the "
    "stone walls of the village and follow an old path along the river. The shepherd walks behind them with two dogs and a bag of bread."
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files: prose, a copy of it, a near copy, an evaluation question inside a text, a page of its own address twice."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    first = [
        {"text": PROSE, "id": "one", "lang": "en"},
        {"text": PROSE + " What is the capital city of the high kingdom of llamas?", "lang": "en"},
    ]
    second = [
        {"text": PROSE, "lang": "en"},
        {"text": "Ganz andere Wörter stehen hier, und keines davon kommt wieder.", "lang": "de"},
    ]
    for name, records in (("a", first), ("b", second)):
        write(folder / f"{name}.jsonl", records)
    return folder


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def documents(folder: Path) -> list[dict[str, Any]]:
    return [record for path in sorted((folder / "documents").iterdir()) for record in read_records(path)]


def test_a_preset_curates_and_tells_what_went(herd: HerdCommand, corpus: Path, tmp_path: Path) -> None:
    result = herd("data", "curate", "--preset", "dedup", corpus, "-o", tmp_path / "out", "--workers", "1")
    assert result.code == 0 and "same text" in result.out and "near duplicate" in result.out
    assert "2 documents" in result.out and "report.html" in result.out
    assert len(documents(tmp_path / "out")) == 2
    again = herd("data", "curate", "--preset", "dedup", corpus, "-o", tmp_path / "out", "--workers", "2", "--json")
    assert again.json["total"]["documents_out"] == 2
    report = herd("data", "report", tmp_path / "out", "--json")
    assert report.json == again.json == json.loads((tmp_path / "out" / "report.json").read_text())


def test_a_config_is_printed_changed_and_run(herd: HerdCommand, corpus: Path, tmp_path: Path) -> None:
    text = herd("data", "curate", "--preset", "clean", corpus, "--dry-run").out
    assert 'kind = "minhash_dedup"' in text
    (tmp_path / "mine.toml").write_text(text.replace("min_words = 10", "min_words = 1000"))
    result = herd("data", "curate", tmp_path / "mine.toml", "-o", tmp_path / "out", "--workers", "1", "--json")
    assert result.json["total"]["documents_out"] == 0
    only = herd("data", "curate", tmp_path / "mine.toml", corpus / "b.jsonl", "-o", tmp_path / "b", "--workers", "1", "--json")
    assert only.json["total"]["documents_in"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "a config or a preset"),
        (("x.toml", "--preset", "web"), 2, "a config or a preset"),
        (("--preset", "wep", "x"), 2, "unknown preset"),
        (("none.toml",), 3, "cannot read none.toml"),
        (("--preset", "web"), 1, "no sources"),
        (("--preset", "web", "none"), 3, "no file of records at none"),
    ],
)
def test_what_cannot_be_curated_is_refused(herd: HerdCommand, arguments: tuple[str, ...], code: int, message: str) -> None:
    assert message in herd("data", "curate", *arguments).refusal(code)[0]


def test_duplicates_are_removed_by_what_is_named(herd: HerdCommand, corpus: Path, tmp_path: Path) -> None:
    result = herd("data", "dedup", corpus, "-o", tmp_path / "out", "--by", "exact", "--workers", "1", "--json")
    assert result.json["total"]["documents_out"] == 3
    assert "did you mean 'exact'" in herd("data", "dedup", corpus, "--by", "exakt").refusal(2)[1]


def test_evaluation_sets_are_removed(herd: HerdCommand, corpus: Path, tmp_path: Path) -> None:
    write(tmp_path / "eval.jsonl", [{"question": "What is the capital city of the high kingdom of llamas?"}])
    result = herd("data", "decontaminate", corpus, "--against", tmp_path / "eval.jsonl", "-o", tmp_path / "out", "--workers", "1")
    assert result.code == 0 and "8-grams of an evaluation text" in result.out
    assert [record["text"] for record in documents(tmp_path / "out")].count(PROSE) == 2 and len(documents(tmp_path / "out")) == 3


def test_a_plan_is_carried_out_task_by_task_as_a_cluster_does(
    herd: HerdCommand, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    herd("data", "curate", "--preset", "dedup", corpus, "-o", whole, "--workers", "1")
    result = herd("data", "curate", "--preset", "dedup", corpus, "-o", tmp_path / "out", "--plan-only")
    assert result.code == 0 and not (tmp_path / "out" / "documents").exists()
    # An sbatch that runs every task of the array at once, as the cluster would.
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/bash\nscript=${@: -1}\nlast=$(grep -oP '(?<=array=0-)\\d+' $script)\n"
        "for n in $(seq 0 $last); do SLURM_ARRAY_TASK_ID=$n bash $script >&2 || exit 1; done\necho 7\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    plan = tmp_path / "out" / "plan.json"
    listed = herd("data", "slurm", plan)
    assert listed.code == 0 and "00-pass-0.sbatch" in listed.out
    submitted = herd("data", "slurm", plan, "--submit", "--json")
    assert submitted.code == 0 and set(submitted.json["jobs"]) == {"7"}, submitted.err
    assert herd("data", "report", tmp_path / "out").code == 0
    assert documents(tmp_path / "out") == documents(whole)
    assert herd("data", "run", plan, "--json", "--workers", "1").json == {"shards_done": 0}
    assert "--task and --tasks go with --step" in herd("data", "run", plan, "--task", "1").refusal(2)[0]
    assert "no step 'pass-9'" in herd("data", "run", plan, "--step", "pass-9").refusal(2)[0]


def test_a_report_needs_a_whole_run(herd: HerdCommand, corpus: Path, tmp_path: Path) -> None:
    assert "holds no run" in herd("data", "report", tmp_path).refusal(3)[0]
    herd("data", "curate", "--preset", "dedup", corpus, "-o", tmp_path / "out", "--plan-only")
    assert "is not done" in herd("data", "report", tmp_path / "out").refusal(3)[0]


def test_files_are_looked_at(herd: HerdCommand, corpus: Path) -> None:
    (corpus / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{broken')
    report = herd("data", "inspect", corpus, "--json").json
    assert (report["files"], report["records"], report["dialogues"]) == (3, 5, 1)
    assert report["languages"]["en"] >= 3 and next(iter(report["damaged"].values())).endswith("double quotes)")
    text = herd("data", "inspect", corpus, "--samples", "1").out
    assert "records" in text and PROSE[:50] in text


def test_tokens_are_made_looked_at_and_mixed(herd: HerdCommand, corpus: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    tiny_tokenizer.save(tmp_path / "tokenizer")
    made = herd("data", "tokenize", corpus, "-o", tmp_path / "tokens", "-m", tmp_path / "tokenizer" / "tokenizer.model", "--workers", "1")
    assert made.code == 0 and "documents  4" in made.out
    data = TokenDataset(tmp_path / "tokens")
    assert tiny_tokenizer.decode(data.document(0).tolist(), skip_special=True) == PROSE
    figures = herd("data", "inspect", tmp_path / "tokens", "--verify", "--json").json
    assert figures["documents"] == 4 and figures["tokens"] == data.num_tokens
    (tmp_path / "mix.toml").write_text(
        "sequence_length = 64\nseed = 3\n[sources.prose]\ntokens = 'tokens'\nmax_epochs = 2\n[sources.more]\ntokens = 'tokens'\n"
        "[[phases]]\nfrom_sample = 0\nweights = { prose = 3, more = 1 }\n[[phases]]\nfrom_sample = 4\nweights = { prose = 1 }\n"
    )
    mixed = herd("data", "mix", tmp_path / "mix.toml", "--json", "--samples", "6").json
    assert mixed["samples"] == 6 and mixed["sources"]["prose"]["epochs"] == round(5 / mixed["sources"]["prose"]["rows"], 3)
    assert "samples of 64 tokens" in herd("data", "mix", tmp_path / "mix.toml", "--samples", "6").out
    assert "the data ends after" in herd("data", "mix", tmp_path / "mix.toml", "--samples", "10000").refusal(4)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs [sources.NAME]"),
        ("[[", "not TOML"),
        ("seeds = 1", "unknown key 'seeds'"),
        ("[sources.a]\ntokens = 'x'\n[[phases]]\nfrom_sample = 0\nweights = {a = 1}", "sequence_length is missing"),
        ("sequence_length = 'x'\n[sources.a]\ntokens = 'x'\n[[phases]]\nfrom_sample = 0\nweights = {a = 1}", "sequence_length is 'x'"),
        ("sequence_length = 8\n[sources.a]\ntoken = 'x'\n[[phases]]\nfrom_sample = 0\nweights = {a = 1}", "unknown key 'sources.a.token'"),
        ("sequence_length = 8\n[sources.a]\ntokens = 'x'\n[[phases]]\nweights = {a = 1}", "phases.0 needs from_sample"),
        ("sequence_length = 8\n[sources.a]\ntokens = 'x'\n[[phases]]\nfrom_sample = 0\nweights = {a = 'x'}", "phases.0.weights.a is 'x'"),
        ("sequence_length = 8\n[sources.a]\ntokens = 'x'\n[[phases]]\nfrom_sample = '0'\nweights = {a = 1}", "phases.0: from_sample"),
    ],
)
def test_a_mix_file_that_is_none_is_refused_by_its_key(herd: HerdCommand, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mix.toml").write_text(text)
    assert message in herd("data", "mix", tmp_path / "mix.toml").refusal(1)[0]
    assert "cannot read" in herd("data", "mix", tmp_path / "none.toml").refusal(3)[0]


def test_a_classifier_is_labelled_by_a_model_trained_and_scores(
    herd: HerdCommand, says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, poor = "the herd grazes on the meadow by the river", "buy cheap click here discount now"
    write(tmp_path / "texts.jsonl", [{"text": f"{good if number % 2 else poor} {number}"} for number in range(60)])
    monkeypatch.setattr("herd.cli.data_classifier.load_llm", lambda *_, **__: says(*("4" if number % 2 else "1" for number in range(60))))
    labelled = herd("data", "classifier", "label", tmp_path / "texts.jsonl", "--limit", "50")
    assert labelled.code == 0, labelled.err
    lines = [json.loads(line) for line in labelled.out.splitlines()]
    assert len(lines) == 50 and [line["label"] for line in lines[:4]] == ["poor", "good", "poor", "good"] and lines[0]["points"] == 1
    (tmp_path / "labels.jsonl").write_text(labelled.out)
    trained = herd("data", "classifier", "train", tmp_path / "labels.jsonl", "-o", tmp_path / "q.npz", "--buckets", "4096", "--json")
    assert trained.json["accuracy"] == 1.0
    scored = herd("data", "classifier", "score", tmp_path / "texts.jsonl", "-c", tmp_path / "q.npz")
    scores = [json.loads(line)["scores"]["good"] for line in scored.out.splitlines()]
    assert all((value > 0.5) == bool(number % 2) for number, value in enumerate(scores))
    assert "accuracy" in herd("data", "classifier", "train", tmp_path / "labels.jsonl", "-o", tmp_path / "q.npz", "--buckets", "4096").out
    assert (
        "lacks 'text' or 'quality'"
        in herd("data", "classifier", "train", tmp_path / "labels.jsonl", "-o", tmp_path / "x.npz", "--label-field", "quality").refusal(1)[
            0
        ]
    )
    assert herd("data", "classifier", "score", tmp_path / "texts.jsonl", "-c", tmp_path / "none.npz").refusal(3)


def test_no_torch_is_loaded_to_curate(corpus: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom herd.cli.app import run\n"
        "if __name__ == '__main__':\n    code = run(sys.argv[1:]); print(code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    (tmp_path / "program.py").write_text(program)
    words = ["data", "curate", "--preset", "clean", str(corpus), "-o", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), *words], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stderr.splitlines()[-1] == "0 False"
