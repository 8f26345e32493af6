"""Write trl_losses.json: what TRL's own loss functions give for the tests' small model and answers. Needs trl, which herd's tests do not.

Run: `PYTHONPATH=tests/train:src python tests/golden/make_trl_losses.py`. The models are Hugging Face Llamas with the weights of
`small_model(3)` (policy) and `small_model(11)` (reference), the answers those of `small_judged(6, seed=21)`, each in a padded row of its
own.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from objective_rows import small_judged  # pyright: ignore[reportMissingImports]
from small_run import PAD, small_model  # pyright: ignore[reportMissingImports]
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from herd.checkpoint.load import save_model

HERE = Path(__file__).parent


def hugging_face(seed: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_model(small_model(seed), Path(folder) / "model")
        return transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model").double().eval()


class Scored:
    """A model called as TRL's patched models are: with labels, giving log-probabilities of the counted tokens."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.training = False

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        targets = labels[:, 1:]
        logprobs = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
        nothing = torch.zeros_like(logprobs)
        return SimpleNamespace(log_probs=logprobs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def padded() -> dict[str, Any]:
    """Better answers, then worse ones; only content counts."""
    judged = small_judged(6, seed=21)
    rows = [(item.prompt, item.answers[side]) for side in (0, 1) for item in judged]
    length = max(len(prompt) + len(answer.ids) for prompt, answer in rows)
    ids = torch.full((len(rows), length), PAD)
    mask, attention = torch.zeros(len(rows), length), torch.zeros(len(rows), length)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer.ids)
        ids[row, :end] = torch.tensor([*prompt, *answer.ids])
        attention[row, :end] = 1
        mask[row, len(prompt) : end] = torch.tensor(answer.counts, dtype=torch.float32)
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}


def dpo(name: str, policy: Any, reference: Any, batch: dict[str, Any], **settings: Any) -> float:
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=policy, ref_model=reference, accelerator=accelerator, aux_loss_enabled=False, precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None), ld_alpha=None,
        f_divergence_type="reverse_kl", loss_types=[name], loss_weights=[1.0], use_weighting=False, label_smoothing=0.0, beta=0.1,
        _metrics={"eval": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    vars(trainer).update(settings)
    return float(trl.DPOTrainer._compute_loss(trainer, policy, batch, return_outputs=False))


def main() -> None:
    from contextlib import nullcontext

    import trl.trainer.dpo_trainer as module

    module.disable_gradient_checkpointing = lambda *_, **__: nullcontext()
    module.is_peft_model = lambda *_: False
    policy, reference, batch = Scored(hugging_face(3)), Scored(hugging_face(11)), padded()
    found: dict[str, float] = {
        "sigmoid": dpo("sigmoid", policy, reference, batch),
        "sigmoid_norm": dpo("sigmoid_norm", policy, reference, batch, beta=2.0),
        "hinge": dpo("hinge", policy, reference, batch),
        "ipo": dpo("ipo", policy, reference, batch),
        "robust": dpo("robust", policy, reference, batch, label_smoothing=0.2),
        "sft": dpo("sft", policy, reference, batch),
    }
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        logprobs = policy(batch["input_ids"], batch["attention_mask"], labels).log_probs.sum(-1)
    better, worse = (logprobs / batch["completion_mask"][:, 1:].sum(1)).chunk(2)
    device = SimpleNamespace(device="cpu")
    for smoothing in (0.0, 0.1):
        stub = SimpleNamespace(alpha=0.0, beta=2.0, loss_type="simpo", simpo_gamma=1.0, label_smoothing=smoothing, accelerator=device)
        found[f"simpo {smoothing}"] = float(CPOTrainer.cpo_loss(stub, better, worse)[0].mean())
    stub = SimpleNamespace(beta=0.1, accelerator=device)
    found["orpo"] = -float(ORPOTrainer.odds_ratio_loss(stub, better, worse)[0].mean())
    record = {"trl": trl.__version__, "transformers": transformers.__version__, "losses": found}
    (HERE / "trl_losses.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
