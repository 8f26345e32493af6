"""The loop of one stage on one device: batches in order, steps, held-out loss, log, resumable states.

Knows a model, a mixture of packed rows and where to write; how rows were made and what becomes of the weights is the recipe's business.
The log is JSON lines: one object a logged step (`loss`, `lr`, `grad_norm`, `tokens_per_s`), one an evaluation (`heldout`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from herd.base.atomic import atomic_file
from herd.base.errors import HerdError
from herd.data.rows import Rows
from herd.model.transformer import Transformer
from herd.train.callback import BatchSource, Callback
from herd.train.config import StageConfig
from herd.train.objectives.next_token import NextToken
from herd.train.objectives.objective import Objective
from herd.train.optimizer import build_adamw
from herd.train.schedule import learning_rate
from herd.train.state import Progress, load_state, prune_states, save_state
from herd.train.step import StepResult, batch_loss_sum, some_rows, train_step

OnStep = Callable[[int, StepResult, float], None]
"""Called after each step with its number (from 1), what it measured and tokens a second."""


class DivergedError(HerdError):
    """The loss or the gradient is not a finite number."""

    code = "diverged"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Rows kept out of training, and the UTF-8 bytes they stand for: the unit of bits per byte."""

    rows: Rows
    num_bytes: int


@torch.no_grad()
def bits_per_byte(model: Transformer, heldout: HeldOut, *, dtype: torch.dtype, batch_size: int = 8) -> float:
    """Cross entropy of the held-out rows in bits, divided by the bytes of their text."""
    rows = heldout.rows
    batch = (rows.tokens, rows.documents, rows.counts)
    total = sum(batch_loss_sum(model, some_rows(batch, start, batch_size), dtype).item() for start in range(0, len(rows), batch_size))
    return total / float(np.log(2)) / heldout.num_bytes


class Trainer:
    """Trains `model` through a stage; `fit` returns its progress. After an interruption, `resume` and `fit` give the same result."""

    def __init__(
        self,
        model: Transformer,
        stage: StageConfig,
        mixture: BatchSource,
        *,
        folder: Path,
        run: str,
        heldout: Mapping[str, HeldOut] | None = None,
        on_step: OnStep | None = None,
        objective: Objective | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model, self.stage, self.mixture = model, stage, mixture
        self.folder, self.run = folder, run
        self.heldout = dict(heldout or {})
        self.on_step = on_step
        self.objective = objective or NextToken(z_loss=stage.z_loss)
        self.callbacks = callbacks
        self.optimizer = build_adamw(model, stage)
        self.progress = Progress()

    @property
    def states(self) -> Path:
        """Where the resumable states are."""
        return self.folder / "states"

    def resume(self) -> bool:
        """Restore the newest whole state, if there is one; says whether there was."""
        progress = load_state(self.states, self.model, self.optimizer, run=self.run)
        self.progress = progress or Progress()
        self._trim_log()
        return progress is not None

    def fit(self, *, until_step: int | None = None) -> Progress:
        """Train to the end of the stage (or `until_step`), saving states on the way. Raises DivergedError on a loss that is not finite."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.stage.num_steps if until_step is None else min(self.stage.num_steps, until_step)
        # A run killed between writing a state and deleting the oldest may have been in its last step.
        if self.progress.step == last:
            prune_states(self.states, keep=self.stage.keep_states)
        while self.progress.step < last:
            self._one_step()
            step = self.progress.step
            if step % self.stage.eval_every == 0 or step == self.stage.num_steps:
                self.evaluate()
            self._call_back(step)
            if step % self.stage.save_every == 0 or step == last:
                save_state(self.states, self.model, self.optimizer, self.progress, run=self.run, keep=self.stage.keep_states)
        return self.progress

    def _one_step(self) -> None:
        started = time.monotonic()
        done, stage = self.progress, self.stage
        lr = learning_rate(
            done.step, peak=stage.lr, warmup_steps=stage.warmup_steps, num_steps=stage.num_steps, final_fraction=stage.final_lr_fraction
        )
        batch = self.mixture.batch(done.num_samples, stage.batch_size)
        result = train_step(self.model, self.optimizer, batch, stage, lr=lr, objective=self.objective)
        if not np.isfinite(result.loss) or not np.isfinite(result.grad_norm):
            raise DivergedError(
                f"step {done.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}",
                hint=f"lower the learning rate (now {stage.lr:g}), lengthen the warm-up, or resume from the last state",
            )
        seconds = time.monotonic() - started
        self.progress = Progress(
            step=done.step + 1,
            num_samples=done.num_samples + stage.batch_size,
            num_counted=done.num_counted + result.num_counted,
            seconds=done.seconds + seconds,
        )
        tokens_per_s = stage.batch_size * stage.sequence_length / seconds
        if self.progress.step % stage.log_every == 0 or self.progress.step == 1:
            self._log(loss=result.loss, lr=lr, grad_norm=result.grad_norm, tokens_per_s=round(tokens_per_s, 1), **result.metrics)
        if self.on_step is not None:
            self.on_step(self.progress.step, result, tokens_per_s)

    def evaluate(self) -> dict[str, float]:
        """Bits per byte of every held-out set, logged and returned."""
        dtype = getattr(torch, self.stage.compute_dtype)
        self.model.eval()
        scores = {name: bits_per_byte(self.model, heldout, dtype=dtype) for name, heldout in self.heldout.items()}
        self.model.train()
        if scores:
            self._log(heldout={name: round(score, 4) for name, score in scores.items()})
        return scores

    def _call_back(self, step: int) -> None:
        for callback in self.callbacks:
            if step % callback.every == 0 or step == self.stage.num_steps:
                self.model.eval()
                with torch.no_grad():
                    scores = callback(self.model, step)
                self.model.train()
                if scores:
                    self._log(**{callback.name: {name: round(score, 6) for name, score in scores.items()}})

    def _log(self, **values: object) -> None:
        record = {"step": self.progress.step, "num_counted": self.progress.num_counted, **values}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _trim_log(self) -> None:
        """Drop log lines of steps after the restored one, which will be trained again, and what an interruption cut short."""
        path = self.folder / "log.jsonl"
        for stale in self.folder.glob(".log.jsonl.*"):
            stale.unlink()
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= self.progress.step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
