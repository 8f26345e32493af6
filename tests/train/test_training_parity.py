"""Training against transformers: the same rows through a plain loop around LlamaForCausalLM give the same losses and the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_run import log_of, small_mixture, small_model, small_stage  # pyright: ignore[reportMissingImports]
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from herd.model.transformer import Transformer
from herd.train.config import StageConfig
from herd.train.mixing import StageMixture
from herd.train.step import Batch
from herd.train.trainer import Trainer


def twin(ours: Transformer) -> LlamaForCausalLM:
    """transformers' model with the same weights."""
    config = ours.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attn_implementation="sdpa",
        )
    )
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return theirs


def allowed(documents: Tensor) -> Tensor:
    """Who sees whom, written out: an additive mask [B, 1, T, T]."""
    batch, length = documents.shape
    mask = torch.full((batch, 1, length, length), float("-inf"))
    for row in range(batch):
        for place in range(length):
            for earlier in range(place + 1):
                if documents[row, place] == documents[row, earlier]:
                    mask[row, 0, place, earlier] = 0.0
    return mask


def their_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    tokens, documents, counts = (torch.from_numpy(part) for part in batch)
    logits = model(tokens[:, :-1].long(), attention_mask=allowed(documents[:, :-1])).logits
    targets = tokens[:, 1:].long().masked_fill(~counts[:, 1:], -100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def plain_loop(model: LlamaForCausalLM, mixture: StageMixture, stage: StageConfig) -> tuple[list[float], list[float]]:
    """The loop that anyone would write: torch's AdamW, schedule and clipping. Returns losses and gradient norms."""
    matrices = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    groups = [{"params": matrices, "weight_decay": stage.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=(stage.beta1, stage.beta2), eps=stage.eps, foreach=False, fused=False)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / stage.warmup_steps, 1.0, total_iters=stage.warmup_steps - 1)
    descent = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, stage.num_steps - 1 - stage.warmup_steps, eta_min=stage.lr * stage.final_lr_fraction
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, descent], [stage.warmup_steps])
    losses: list[float] = []
    grad_norms: list[float] = []
    for step in range(stage.num_steps):
        loss = their_loss(model, mixture.batch(step * stage.batch_size, stage.batch_size))
        loss.backward()
        grad_norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.grad_clip)))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses, grad_norms


@pytest.mark.parametrize("tied", [True, False])
def test_a_hundred_steps_equal_those_of_transformers_in_a_plain_loop(tmp_path: Path, tied: bool) -> None:
    stage = small_stage(num_steps=100, warmup_steps=10, lr=3e-3, final_lr_fraction=0.1, log_every=1, micro_batch_size=2)
    ours = small_model(tied=tied)
    theirs = twin(ours)
    Trainer(ours, stage, small_mixture(stage), folder=tmp_path, run="parity").fit()
    losses, grad_norms = plain_loop(theirs, small_mixture(stage), stage)

    log = log_of(tmp_path)
    assert [record["loss"] for record in log] == pytest.approx(losses, rel=1e-4)
    assert [record["grad_norm"] for record in log] == pytest.approx(grad_norms, rel=1e-3)
    # Not a comparison of two runs that stood still, nor of one that was never clipped.
    assert losses[-1] < losses[0] - 0.3
    assert max(grad_norms) > stage.grad_clip
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs_by_name[name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
