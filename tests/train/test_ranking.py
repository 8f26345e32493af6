"""The reward model: its loss, its answers to transformers, its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from objective_rows import columns_of, small_judged, small_reward_model  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file
from small_run import small_model, small_stage  # pyright: ignore[reportMissingImports]

from herd.base.errors import CheckpointError, ConfigError, UsageError
from herd.checkpoint.load import save_model
from herd.checkpoint.reward import is_reward_model, load_reward_model, save_reward_model
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.reward import RewardModel
from herd.text.bpe_train import train_bpe
from herd.text.tokenizer import Tokenizer
from herd.train.callback import measure
from herd.train.objectives.branches import find_answers
from herd.train.objectives.config import RewardConfig
from herd.train.objectives.ranking import Ranking, answer_rewards
from herd.train.step import train_step
from tiny_model import TEXT  # pyright: ignore[reportMissingImports]

PLAIN = Ranking(config=RewardConfig())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT] * 4, 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> RewardModel:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    with torch.device("meta"):
        made = RewardModel(config)
    initialise(made, seed=2)
    return made


@torch.no_grad()
def test_the_loss_is_the_papers_over_rewards_of_separate_rows() -> None:
    model = small_reward_model()
    judged = small_judged(5, seed=1, grades=(1, 3, 2))
    losses, right = [], []
    for item in judged:
        rewards = [float(model.score_of(model.hidden(torch.tensor([[*item.prompt, *answer.ids]]))[0, -1])) for answer in item.answers]
        for better, worse in ((1, 0), (1, 2), (2, 0)):
            losses.append(-F.logsigmoid(torch.tensor(rewards[better] - rewards[worse])))
            right.append(rewards[better] > rewards[worse])
    found = measure(model, PLAIN, columns_of(judged, length=60))
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["margin"] == pytest.approx(found["reward_better"] - found["reward_worse"], abs=1e-5)


def test_answers_do_not_depend_on_their_order_in_the_row() -> None:
    import dataclasses

    model, judged = small_reward_model(), small_judged(5, seed=1, grades=(1, 3, 2))
    turned = [dataclasses.replace(item, answers=item.answers[::-1]) for item in judged]
    left, right = (measure(model, PLAIN, columns_of(some, length=60)) for some in (judged, turned))
    assert left == pytest.approx(right, rel=1e-4, abs=1e-6)


def test_a_new_head_is_undecided_and_training_orders_the_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(small_model(), tmp_path / "base")
    model = load_reward_model(tmp_path / "base", dtype="float32")
    columns = columns_of(small_judged(8, seed=1))
    before = measure(model, PLAIN, columns)
    assert before["loss"] == pytest.approx(float(np.log(2))) and before["accuracy"] == 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stage = small_stage(batch_size=len(columns["tokens"]), micro_batch_size=1)
    for _ in range(30):
        train_step(model, optimizer, columns, stage, lr=3e-3, objective=PLAIN)
    after = measure(model, PLAIN, columns)
    assert after["accuracy"] == 1.0 and after["loss"] < 0.3


def test_centring_adds_the_square_of_the_pairs_sum() -> None:
    model, columns = small_reward_model(), columns_of(small_judged(1, seed=1))
    plain, centred = (measure(model, Ranking(config=RewardConfig(center_weight=weight)), columns) for weight in (0.0, 0.5))
    expected = plain["loss"] + 0.5 * (plain["reward_better"] + plain["reward_worse"]) ** 2
    assert centred["loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="center_weight is -1"):
        RewardConfig(center_weight=-1.0)


def test_a_model_without_a_head_is_refused() -> None:
    columns = columns_of(small_judged(2, seed=1))
    with pytest.raises(ConfigError, match="scalar head"):
        answer_rewards(small_model(), columns, find_answers(columns), torch.float32)


@torch.no_grad()
def test_transformers_reads_the_folder_and_gives_the_same_rewards(tmp_path: Path, model: RewardModel, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForSequenceClassification

    save_reward_model(model, tmp_path / "reward", tokenizer=tokenizer)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert type(other).__name__ == "LlamaForSequenceClassification" and other.config.num_labels == 1
    ids = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = tokenizer.eot_id
    ids[1, 9:] = tokenizer.pad_id
    expected = other(input_ids=ids, attention_mask=(ids != tokenizer.pad_id).long()).logits[:, 0]
    found = [model.score_of(model.hidden(row[row != tokenizer.pad_id][None])[0, -1]) for row in ids]
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_transformers_is_read_back(tmp_path: Path, model: RewardModel, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForSequenceClassification

    save_reward_model(model, tmp_path / "ours", tokenizer=tokenizer)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    for folder in ("ours", "theirs"):
        assert is_reward_model(tmp_path / folder)
        again = load_reward_model(tmp_path / folder)
        assert all(torch.equal(value, dict(again.named_parameters())[name]) for name, value in model.named_parameters())
    with pytest.raises(UsageError):
        save_reward_model(model, tmp_path / "ours", tokenizer=tokenizer)


def test_a_folder_with_other_labels_or_tensors_is_refused(tmp_path: Path, model: RewardModel, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "reward"
    save_reward_model(model, folder, tokenizer=tokenizer)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(CheckpointError, match="labels"):
        load_reward_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value for name, value in tensors.items() if name != "score.weight"}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="score"):
        load_reward_model(folder)
    assert not is_reward_model(tmp_path)
