"""Post-training runs from records to a folder that chat and transformers load; resumed, refused, measured."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from herd.base.config_io import apply_overrides, from_toml, to_toml
from herd.base.errors import ConfigError, ContextOverflowError, FormatError, NotFoundError, UsageError
from herd.checkpoint.load import load_model, save_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer
from herd.inference.llm import LLM
from herd.inference.reward import RewardScorer
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.recipes import tune
from herd.recipes.mask_view import check_answers_end, mask_sample
from herd.recipes.pipeline import run_recipe
from herd.recipes.registry import RECIPES, find_recipe, read_config
from herd.recipes.tune_config import TuneConfig
from herd.recipes.tune_data import joined, prepare_source, tokenizer_digest
from herd.recipes.tune_run import TuneResult, resolved_stage
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer
from herd.train.adapters.files import load_adapter
from tiny_model import tiny_config, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

TUNED = [name for name, make in RECIPES.items() if isinstance(make(), TuneConfig)]
FULL = os.environ.get("HERD_TEST_FULL") == "1"
# The others differ from these by settings of their objectives, which have tests of their own.
# Recovery from rounding has tests of its own (test_recover).
RUN = [name for name in TUNED if not name.startswith("qat")] if FULL else ["sft", "lora", "reward", "dpo", "kto", "distill"]
QUICK = (
    *("epochs=2", "train.sequence_length=160", "train.batch_size=2", "train.micro_batch_size=1", "train.compute_dtype=float32"),
    *("train.lr=5e-3", "train.eval_every=4", "train.save_every=4", "train.log_every=1", "sample_prompts=Hi", "heldback_one_in=6"),
)
SELDOM = ("train.save_every=1000", "train.eval_every=1000")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:  # noqa: F811
    """A model to start from: that of the other tests, but not made to talk for ever."""
    with torch.device("meta"):
        model = Transformer(tiny_config(tiny_tokenizer.vocab_size))
    initialise(model, seed=5)
    folder = tmp_path_factory.mktemp("start") / "model"
    save_model(model, folder, tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A chat file, a preference file and a labelled one."""
    folder, rng = tmp_path_factory.mktemp("files"), random.Random(0)
    words = ["sun", "moon", "hill", "herd", "wind", "cria", "wool", "path"]
    chats, pairs, labelled = [], [], []
    for _ in range(40):
        word = rng.choice(words)
        number = rng.randrange(1000)
        chats.append({"messages": [{"role": "user", "content": f"{number} {word}?"}, {"role": "assistant", "content": f"The {word}."}]})
        pairs.append({"prompt": f"{number} {word}?", "chosen": f"The {word}.", "rejected": "No."})
        labelled.append({"prompt": f"{number} {word}?", "completion": f"The {word}." if number % 2 else "No.", "label": bool(number % 2)})
    found = {}
    for name, records in (("chats", chats), ("pairs", pairs), ("labelled", labelled)):
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return found


def quick(name: str, start: Path, *overrides: str) -> TuneConfig:
    teacher = (f"teacher={start}",) if name == "distill" else ()
    config = apply_overrides(find_recipe(name), [*QUICK, f"model={start}", *teacher, *overrides])
    assert isinstance(config, TuneConfig)
    return config


def data_of(name: str, files: dict[str, Path]) -> Path:
    if name == "kto":
        return files["labelled"]
    return files["pairs"] if find_recipe(name).method in ("reward", "preference") else files["chats"]  # type: ignore[union-attr]


def run(config: TuneConfig, data: Path, output: Path, **rest: Any) -> TuneResult:
    result = run_recipe(config, data=data, output=output, **rest)
    assert isinstance(result, TuneResult)
    return result


def log_of(output: Path) -> list[dict[str, Any]]:
    lines = (output / "train" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ("tokens_per_s", "machine")} for line in lines]


@pytest.mark.parametrize("name", RUN)
def test_every_recipe_runs_and_measures_what_it_kept_back(name: str, start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    config = quick(name, start)
    result = run(config, data_of(name, files), tmp_path / "run")
    report = result.stages[0]
    assert result.model == tmp_path / "run" / "model" and report.num_steps == log_of(tmp_path / "run")[-1]["step"] > 3
    assert report.num_records == 40 and report.num_dropped == 0 and report.after["loss"] < report.before["loss"]
    assert report.epochs["data"] >= 2
    assert log_of(tmp_path / "run")[-1]["heldback"]["loss"] == pytest.approx(report.after["loss"], abs=1e-3)
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert f"# {name}" in card and "Kept-back records" in card and str(start) in card
    facts = json.loads((result.model / "training.json").read_text(encoding="utf-8"))
    assert facts["recipe"] == name and facts["num_steps"] == report.num_steps and facts["after"] == report.after
    assert read_config((tmp_path / "run" / "config.toml").read_text(encoding="utf-8")) == config
    if name == "reward":
        assert report.after["accuracy"] >= 0.5 and "RewardScorer" in result.next_step
        return
    assert result.next_step == f"herd chat --model {result.model}" and "## Samples" in card
    assert load_model(result.model).dtype == torch.bfloat16
    assert (tmp_path / "run" / "adapter").exists() is bool(config.lora.rank)
    before = load_model(start).state_dict()
    assert any(not torch.equal(value.float(), before[key].float()) for key, value in load_model(result.model).state_dict().items())


def test_a_tuned_model_answers_as_its_file_and_ends_its_turn(start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    result = run(quick("sft", start, "epochs=20", "train.lr=1e-2", *SELDOM), files["chats"], tmp_path / "run")
    llm = LLM(load_model(result.model), tokenizer=load_checkpoint_tokenizer(result.model))
    from herd.inference.params import SamplingParams

    answers = [
        llm.chat([Message.user(f"5 {word}?")], params=SamplingParams(temperature=0.0, max_tokens=20)) for word in ("sun", "herd", "wool")
    ]
    assert {answer.finish_reason for answer in answers} == {"stop"}
    assert sum(answer.text.startswith("The ") for answer in answers) >= 2
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(result.model, dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(other(ids).logits, load_model(result.model, dtype="float32")(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dpo", "qlora"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    name: str, start: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(name, start, "train.save_every=3", *(("lora.dropout=0.2",) if name == "qlora" else ()))
    data = data_of(name, files)
    run(config, data, tmp_path / "whole")
    from herd.train.trainer import Trainer

    one_step = Trainer._one_step

    def stops(self: Trainer) -> bool:
        if self.progress.step == 5:
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(config, data, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "_one_step", one_step)
    run(config, data, tmp_path / "cut")
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    left, right = (load_file(tmp_path / folder / "model" / "model.safetensors") for folder in ("whole", "cut"))
    assert all(torch.equal(value, right[key]) for key, value in left.items())


def test_a_changed_file_is_read_again_and_a_changed_config_is_refused(start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    lines = files["chats"].read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(lines[:20]), encoding="utf-8")
    config = quick("sft", start)
    assert run(config, data, tmp_path / "run").stages[0].num_records == 20
    with pytest.raises(UsageError, match="another configuration"):
        run(quick("sft", start, "seed=4"), data, tmp_path / "run")
    data.write_text("".join(lines), encoding="utf-8")
    assert run(config, data, tmp_path / "run", restart=True).stages[0].num_records == 40


def test_a_folder_of_files_and_several_sources_are_read(start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for part in (1, 2):
        (folder / f"{part}.jsonl").write_text(files["chats"].read_text(encoding="utf-8"), encoding="utf-8")
    result = run(quick("sft", start, "epochs=0", "train.num_steps=2", "train.warmup_steps=1"), folder, tmp_path / "run")
    assert result.stages[0].num_records == 80 and result.stages[0].num_steps == 2


@pytest.mark.parametrize("name", ["sft", "lora"] if FULL else ["lora"])
def test_checkpoints_are_averaged_and_blocks_recomputed_when_a_stage_says_so(
    name: str, start: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    steps = ("epochs=0", "train.num_steps=4", "train.warmup_steps=1", "merge=true")
    last = run(quick(name, start, *steps), files["chats"], tmp_path / "last")
    same = run(quick(name, start, *steps, "train.recompute=full"), files["chats"], tmp_path / "same")
    mean = run(quick(name, start, *steps, "train.average_every=1"), files["chats"], tmp_path / "mean")
    states = [load_file(result.model / "model.safetensors") for result in (last, same, mean)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())
    assert mean.stages[0].after["loss"] != last.stages[0].after["loss"]


def test_an_adapter_is_not_merged_when_it_is_not_to_be(start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    result = run(quick("lora", start, "merge=false"), files["chats"], tmp_path / "run")
    assert not result.model.exists() and result.next_step.startswith("herd merge ")
    adapted = load_adapter(load_model(start), tmp_path / "run" / "adapter")
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(start)
    assert adapted.dtype == torch.float32


def test_a_reward_model_scores_answers(start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    result = run(quick("reward", start, "epochs=8", *SELDOM), files["pairs"], tmp_path / "run")
    scorer = RewardScorer.load(result.model)
    ask = {"role": "user", "content": "5 sun?"}
    good, bad = (scorer.score([ask, {"role": "assistant", "content": text}]) for text in ("The sun.", "No."))
    assert good > bad and scorer.score([ask, {"role": "assistant", "content": "The sun."}]) == good
    with pytest.raises(FormatError, match="last message is none"):
        scorer.score([ask])
    with pytest.raises(ContextOverflowError, match="context is 512"):
        scorer.score([ask, {"role": "assistant", "content": "sun " * 600}])
    assert result.stages[0].after["accuracy"] > 0.8


def test_preferences_below_the_wanted_strength_are_left_out(
    start: Path,
    files: dict[str, Path],
    tmp_path: Path,
    tiny_tokenizer: Tokenizer,  # noqa: F811
) -> None:
    records = [json.loads(line) for line in files["pairs"].read_text(encoding="utf-8").splitlines()]
    for number, record in enumerate(records):
        record["strength"] = ("significantly better", "slightly better")[number % 2]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = quick("dpo", start, "heldback_one_in=0")
    prepared = prepare_source(config.train.sources[0], config, data, tiny_tokenizer, context=512, digest="a", cache=tmp_path)
    assert prepared.num_records == 20 and not len(prepared.heldback["tokens"])


def test_what_does_not_fit_is_left_out_and_counted(start: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:  # noqa: F811
    long = {"prompt": "Q", "chosen": "sun " * 100, "rejected": "x"}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(long) + "\n" + json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}) + "\n", encoding="utf-8")
    config = quick("dpo", start, "heldback_one_in=0")
    prepared = prepare_source(config.train.sources[0], config, pairs, tiny_tokenizer, context=512, digest="a", cache=tmp_path / "a")
    assert (prepared.num_records, prepared.num_dropped) == (2, 1)
    # Rows may be longer than the context, a prompt with one answer may not.
    wide = quick("dpo", start, "heldback_one_in=0", "train.sequence_length=1000")
    both = prepare_source(wide.train.sources[0], wide, pairs, tiny_tokenizer, context=512, digest="b", cache=tmp_path / "b")
    narrow = prepare_source(wide.train.sources[0], wide, pairs, tiny_tokenizer, context=50, digest="c", cache=tmp_path / "c")
    assert (both.num_dropped, narrow.num_dropped) == (0, 1)


@pytest.mark.parametrize(
    ("name", "record", "fragment"),
    [
        ("sft", {"messages": [{"role": "user", "content": "Hi"}]}, "without an assistant's turn"),
        ("sft", {"text": "x"}, "holds no dialogue"),
        ("dpo", {"prompt": "Q", "chosen": "x"}, "holds no preference"),
        ("kto", {"prompt": "Q", "completion": "x", "label": 1}, "label is 1"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(name: str, record: dict[str, Any], fragment: str, start: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    good = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        "label": True,
        "chosen": "a",
        "rejected": "b",
    }
    data.write_text(json.dumps(good) + "\n" + json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(FormatError) as refused:
        run(quick(name, start, "heldback_one_in=0"), data, tmp_path / "run")
    assert f"{data}, record 2: " in refused.value.message and fragment in refused.value.message and refused.value.hint


def test_runs_that_cannot_be_are_refused(start: Path, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="--data"):
        run_recipe(quick("sft", start), data=None, output=tmp_path / "a")
    with pytest.raises(NotFoundError, match="cannot read"):
        run(quick("sft", start), tmp_path / "none.jsonl", tmp_path / "b")
    with pytest.raises(ConfigError, match="context of 512"):
        run(quick("sft", start, "train.sequence_length=513"), files["chats"], tmp_path / "c")
    with pytest.raises(FormatError, match="gives no rows: 40 records, 40 of them too long"):
        run(quick("sft", start, "train.sequence_length=4", "heldback_one_in=0"), files["chats"], tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no records"):
        run(quick("sft", start), tmp_path / "empty", tmp_path / "e")
    with pytest.raises(ConfigError, match="different tokenizers"):
        run(quick("distill", start, "teacher=cria"), files["chats"], tmp_path / "f")


def test_data_whose_answers_never_end_are_refused(tiny_tokenizer: Tokenizer) -> None:  # noqa: F811
    tokens = np.array([tiny_tokenizer.encode("abc")[:1] * 4], dtype=np.int32)
    columns = {"tokens": tokens, "counts": np.ones((1, 4), dtype=np.bool_)}
    with pytest.raises(FormatError, match="never stop"):
        check_answers_end("mine", columns, tiny_tokenizer)
    with pytest.raises(FormatError, match="no token of source 'mine' counts"):
        check_answers_end("mine", {**columns, "counts": ~columns["counts"]}, tiny_tokenizer)
    ended = {**columns, "tokens": np.array([[*tokens[0, :3], tiny_tokenizer.eot_id]], dtype=np.int32)}
    check_answers_end("mine", ended, tiny_tokenizer)


def test_a_sample_shows_what_counts(tiny_tokenizer: Tokenizer) -> None:  # noqa: F811
    ids = tiny_tokenizer.encode("The herd")
    columns = {
        "tokens": np.array([[*ids, tiny_tokenizer.eot_id, 0]], dtype=np.int32),
        "documents": np.array([[0] * (len(ids) + 1) + [-1]], dtype=np.int16),
        "counts": np.array([[False] * (len(ids) - 1) + [True, True, False]]),
    }
    first, last = (tiny_tokenizer.decode(part) for part in (ids[:-1], ids[-1:]))
    assert mask_sample(columns, tiny_tokenizer, colour=False) == f"{first}⟦{last}<|eot_id|>⟧"
    assert mask_sample(columns, tiny_tokenizer, colour=True) == f"\x1b[2m{first}\x1b[0m\x1b[32m{last}<|eot_id|>\x1b[0m"
    assert mask_sample(columns, tiny_tokenizer, colour=False, limit=1).endswith(" ...")


def test_steps_follow_from_the_rows() -> None:
    config = apply_overrides(tune.sft(), ["epochs=3", "train.batch_size=4", "train.warmup_steps=20"])
    stage = resolved_stage(config, 50)
    assert (stage.num_steps, stage.warmup_steps) == (38, 3)
    assert resolved_stage(config, 1).num_steps == 1
    fixed = apply_overrides(config, ["epochs=0", "train.num_steps=7", "train.warmup_steps=1"])
    assert resolved_stage(fixed, 50) == fixed.train


@pytest.mark.parametrize("name", TUNED)
def test_a_recipe_is_told_apart_from_a_pre_training_one_when_read_back(name: str) -> None:
    config = find_recipe(name)
    assert read_config(to_toml(config)) == config == from_toml(TuneConfig, to_toml(config)) and config.name == name
    assert (RECIPES[name].__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize(
    ("name", "override", "fragment"),
    [
        ("sft", "epochs=-1", "epochs is -1"),
        ("sft", "seed=-1", "seed is -1"),
        ("sft", "heldback_one_in=1", "nothing to train on"),
        ("distill", "teacher=", "needs a teacher"),
        ("dpo", "train.sources.data.kind=text", "judged answers"),
        ("dpo", "preference.beta=0", "beta is 0"),
        ("sft", "lora.nf4=true", "lora.rank is 0"),
    ],
)
def test_configs_that_cannot_be_are_refused(name: str, override: str, fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        apply_overrides(find_recipe(name), [override])


def test_tokenizers_with_the_same_ids_have_one_digest(start: Path, tiny_tokenizer: Tokenizer) -> None:  # noqa: F811
    assert tokenizer_digest(load_checkpoint_tokenizer(start)) == tokenizer_digest(tiny_tokenizer)
    assert joined([{"a": np.zeros(2)}, {"a": np.ones(1)}])["a"].tolist() == [0, 0, 1]
