"""The loop of one stage on one device: batches in order, steps, held-out loss, log, resumable states.

Knows a model, a source of packed rows and where to write; how rows were made and what becomes of the weights is the recipe's business.
What the loop asks others is in modules of their own: what a step is (`schedule`), whether it may be made (`guard`), states (`saver`), the
log (`run_log`), who hangs (`heartbeat`). After an interruption, `resume` and `fit` give the same bits as a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.base.errors import HerdError
from herd.data.rows import Rows
from herd.model.transformer import Transformer
from herd.train.averaging import WeightAverage
from herd.train.batch import AnyBatch
from herd.train.callback import BatchSource, Callback
from herd.train.config import StageConfig
from herd.train.energy import EnergyMeter, find_meter
from herd.train.guard import Judgement, LossGuard
from herd.train.heartbeat import Heartbeat, Phase
from herd.train.mixing import cut_rows
from herd.train.numerics import prepare_model, uncompiled
from herd.train.objectives.by_source import next_token_for, with_sources
from herd.train.objectives.objective import Objective
from herd.train.optimizer import build_adamw
from herd.train.precision import compute_dtype
from herd.train.preemption import PreemptedError
from herd.train.profiling import StepProfiler
from herd.train.read_ahead import ReadAhead
from herd.train.replicas import parameter_hash
from herd.train.run_log import RunLog, read_lines
from herd.train.saver import StateSaver
from herd.train.schedule import Phase as StepPhase
from herd.train.schedule import stage_learning_rate, step_plan
from herd.train.speed import peak_memory_bytes, utilisation
from herd.train.state import Progress, load_state, optimizer_tensors, prune_states, restore_optimizer
from herd.train.step import StepResult, batch_loss_sum, some_rows, train_step
from herd.train.update import Accept

OnStep = Callable[[int, StepResult, float], None]
"""Called after each step with its number (from 1), what it measured and tokens a second."""

Gate = Callable[[Transformer, int, Mapping[str, float]], bool]
"""Asked after each evaluation, with the held-out scores, whether the stage may end before its last step."""


class DivergedError(HerdError):
    """The loss or the gradient is not a finite number, or spikes more often than the guard allows."""

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
    """Trains `model` through a stage; `fit` returns its progress.

    `callbacks` score the model in their intervals, `gate` may end the stage early, `should_stop` is asked after every step whether the
    run is to be saved and left (`preemption`). `moments` are those of an earlier stage's optimiser, to begin with.
    """

    num_devices = 1

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
        gate: Gate | None = None,
        should_stop: Callable[[], object] = lambda: False,
        meter: EnergyMeter | None = None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.stage, self.mixture = model, stage, mixture
        self.folder, self.run = folder, run
        self.heldout = dict(heldout or {})
        self.on_step, self.callbacks, self.gate, self.should_stop = on_step, callbacks, gate, should_stop
        self.on_phase: Callable[[Phase, int], None] | None = None
        self.objective = objective or next_token_for(mixture, z_loss=stage.z_loss)
        self.plan = step_plan(stage)
        prepare_model(model, stage)
        self.optimizer = build_adamw(model, stage)
        self.moments = moments
        self.ahead = ReadAhead(self._batch, device=model.device.type)
        self.average = WeightAverage()
        self.guard = LossGuard(stage.guard)
        self.log = RunLog(folder)
        self.meter = meter or find_meter(device=model.device.type, gpu_indices=(model.device.index or 0,))
        self.heartbeat = Heartbeat(folder, limit_s=stage.hang_timeout_s)
        self.profiler = StepProfiler(stage.profile_steps, folder / "profile")
        self.saver = StateSaver(
            self.states,
            run=run,
            keep=stage.keep_states,
            keep_every=stage.keep_every,
            background=stage.save_async,
            max_failures=stage.max_failed_saves,
        )
        self.progress = Progress()
        self.first_start = time.time()

    @property
    def states(self) -> Path:
        """Where the resumable states are."""
        return self.folder / "states"

    @property
    def dtype(self) -> torch.dtype:
        """What the matrix products are computed in."""
        return compute_dtype(self.stage, self.model.device)

    def resume(self) -> bool:
        """Restore the newest whole state, if there is one; says whether there was."""
        found = self._restore()
        if found is None and self.moments is not None:
            restore_optimizer(self.model, self.optimizer, self.moments)
        self.progress = found or Progress()
        self.log.trim(self.progress.step)
        return found is not None

    def _restore(self) -> Progress | None:
        progress = load_state(self.states, self.model, self.optimizer, run=self.run, average=self.average)
        if progress is not None:
            self.guard.losses = list(progress.recent_losses)
        return progress

    def fit(self, *, until_step: int | None = None) -> Progress:
        """Train to the end of the stage (or `until_step`), saving states on the way.

        Raises DivergedError where the guard stops the run, StateNotSavedError where states cannot be written, PreemptedError when it was
        asked to stop.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.stage.num_steps if until_step is None else min(self.stage.num_steps, until_step)
        if self.progress.finished or self.progress.step == last:
            # A run killed between writing a state and deleting the oldest may have been in its last step.
            self._prune()
        else:
            self._train(last)
        if self.progress.finished or self.progress.step == self.stage.num_steps:
            self._apply_average()
        return self.progress

    def _prune(self) -> None:
        prune_states(self.states, keep=self.stage.keep_states, keep_every=self.stage.keep_every)

    def _train(self, last: int) -> None:
        self.log.event("start", step=self.progress.step)
        self.first_start = self.log.first_start() or self.first_start
        reason = "error"
        try:
            self.log.open_sinks(tensorboard=self.stage.tensorboard, wandb=self.stage.wandb, done=self.progress.step)
            self.meter.lap()
            with self.heartbeat, self.saver, self.ahead:
                while self.progress.step < last and not self.progress.finished:
                    if self._one_step():
                        self._after_step(last)
            reason = "done"
        except PreemptedError:
            reason = "preempted"
            raise
        finally:
            self._enter("idle")
            self.log.close_sinks()
            self.log.event("end", step=self.progress.step, reason=reason, seconds=round(self.progress.seconds, 3))

    def _enter(self, phase: Phase) -> None:
        step = self.progress.step + 1
        self.heartbeat.enter(phase, step)
        if self.on_phase is not None:
            self.on_phase(phase, step)

    def _one_step(self) -> bool:
        """One step of the plan, made or skipped; false when it was the reason for going back to the newest state."""
        started = time.monotonic()
        done, number = self.progress, self.progress.step + 1
        phase = self.plan.at(done.step)
        self._enter("loader")
        batch = self.ahead.rows(done.num_samples, phase, self.plan.at(number) if number < self.stage.num_steps else None)
        self._enter("step")
        self.profiler.before(number)
        # Whatever draws random numbers in a step draws those of (run, step), interrupted or not.
        torch.manual_seed(int.from_bytes(hashlib.blake2b(f"{self.run}/{number}".encode(), digest_size=7).digest(), "little"))
        judgement = Judgement(verdict="ok")

        def accept(loss: float, grad_norm: float) -> bool:
            nonlocal judgement
            judgement = self.guard.judge(loss, grad_norm)
            return judgement.verdict == "ok"

        lr = stage_learning_rate(self.stage, done.step)
        result = self._train_step(batch, self._stage_of(phase), lr=lr, accept=accept)
        self.profiler.after(number)
        if judgement.verdict == "ok":
            self._made(result, phase, lr=lr, seconds=time.monotonic() - started)
        elif judgement.verdict == "skip" and done.num_skipped < self.stage.guard.max_skips:
            self._skip(judgement.reason, phase)
        elif judgement.verdict == "rollback" and done.num_rollbacks < self.stage.guard.max_rollbacks:
            self._roll_back(judgement.reason, phase)
            return False
        else:
            raise self._diverged(judgement)
        return True

    def _batch(self, first: int, phase: StepPhase) -> AnyBatch:
        """The rows of a step that begins at sample `first`: those of them that this process trains on."""
        batch = with_sources(self.mixture, self.mixture.batch(first, phase.num_samples), first=first)
        return cut_rows(batch, phase.sequence_length)

    def _train_step(self, batch: AnyBatch, stage: StageConfig, *, lr: float, accept: Accept) -> StepResult:
        return train_step(self.model, self.optimizer, batch, stage, lr=lr, objective=self.objective, accept=accept)

    def _score(self, heldout: HeldOut) -> float:
        return bits_per_byte(self.model, heldout, dtype=self.dtype)

    def _parameter_hash(self) -> str:
        return parameter_hash(self.model)

    def _is_asked_to_stop(self) -> bool:
        return bool(self.should_stop())

    def _stage_of(self, phase: StepPhase) -> StageConfig:
        """The stage with the batch of a phase."""
        if (phase.batch_size, phase.micro_batch_size) == (self.stage.batch_size, self.stage.micro_batch_size):
            return self.stage
        return replace(self.stage, batch_size=phase.batch_size, micro_batch_size=phase.micro_batch_size, ramp=())

    def _made(self, result: StepResult, phase: StepPhase, *, lr: float, seconds: float) -> None:
        done = self.progress
        self.guard.accept(result.loss)
        self.progress = replace(
            done,
            step=done.step + 1,
            num_samples=done.num_samples + phase.num_samples,
            num_counted=done.num_counted + result.num_counted,
            seconds=done.seconds + seconds,
            recent_losses=tuple(self.guard.losses),
        )
        step, tokens_per_s = self.progress.step, phase.tokens_per_step / seconds
        if self.stage.average_every and step % self.stage.average_every == 0:
            self.average.add(self.model)
        if step % self.stage.log_every == 0 or step == 1:
            self._log_step(result, phase, lr=lr, tokens_per_s=tokens_per_s)
        if self.on_step is not None:
            self.on_step(step, result, tokens_per_s)

    def _log_step(self, result: StepResult, phase: StepPhase, *, lr: float, tokens_per_s: float) -> None:
        self._count_energy()
        flops = self.model.config.training_flops_per_token(phase.sequence_length)
        elapsed = time.time() - self.first_start
        machine = {
            **utilisation(tokens_per_s / self.num_devices, flops, self.model.device, self.dtype),
            "peak_memory_bytes": peak_memory_bytes(self.model.device),
            "energy_j": round(self.progress.energy_j, 3),
            "seconds": round(self.progress.seconds, 3),
            "time": round(time.time(), 3),
            "effective": round(min(1.0, self.progress.seconds / elapsed), 4) if elapsed > 0 else 1.0,
        }
        shape = {"sequence_length": phase.sequence_length, "batch_size": phase.batch_size} if self.stage.ramp else {}
        rate = round(tokens_per_s, 1)
        self._log(loss=result.loss, lr=lr, grad_norm=result.grad_norm, tokens_per_s=rate, **shape, **result.metrics, machine=machine)

    def _count_energy(self) -> None:
        self.progress = replace(self.progress, energy_j=self.progress.energy_j + self._energy_j())

    def _energy_j(self) -> float:
        """What was used since the last time."""
        return self.meter.lap()

    def _skip(self, reason: str, phase: StepPhase) -> None:
        done = self.progress
        self.progress = replace(
            done, step=done.step + 1, num_samples=done.num_samples + phase.num_samples, num_skipped=done.num_skipped + 1
        )
        self._log(skipped=reason)
        self.log.event("skipped", step=self.progress.step, why=reason)

    def _roll_back(self, reason: str, phase: StepPhase) -> None:
        """Go back to the newest whole state and on with the data after the bad step's."""
        bad = self.progress
        self.saver.wait()
        found = self._restore()
        if found is None:
            raise DivergedError(
                f"step {bad.step + 1}: {reason}, and there is no state to roll back to", hint="save more often: set save_every lower"
            )
        self.progress = replace(
            found, num_samples=bad.num_samples + phase.num_samples, num_rollbacks=bad.num_rollbacks + 1, energy_j=bad.energy_j
        )
        self.log.trim(found.step)
        # As a record of the next step it is dropped and written again when the run is interrupted before a new state.
        self.log.write({"step": found.step + 1, "num_counted": found.num_counted, "rolled_back_from": bad.step + 1, "reason": reason})
        self.log.event("rolled back", step=found.step, from_step=bad.step + 1, why=reason)

    def _diverged(self, judgement: Judgement) -> DivergedError:
        done, guard = self.progress, self.stage.guard
        often = {
            "skip": f", after {done.num_skipped} skipped steps (max_skips {guard.max_skips})",
            "rollback": f", after {done.num_rollbacks} rollbacks (max_rollbacks {guard.max_rollbacks})",
        }
        return DivergedError(
            f"step {done.step + 1}: {judgement.reason}{often.get(judgement.verdict, '')}",
            hint=f"lower the learning rate (now {self.stage.lr:g}), lengthen the warm-up, or resume from the last state",
        )

    def _after_step(self, last: int) -> None:
        """What is due after a step: evaluation, callbacks, hash, state, and the end if it was asked for."""
        stage, step = self.stage, self.progress.step
        at_end = step == stage.num_steps
        if step % stage.eval_every == 0 or at_end:
            scores = self.evaluate()
            if self.gate is not None and self.gate(self.model, step, scores):
                self.progress = replace(self.progress, finished=True)
        self._call_back(step)
        if stage.hash_every and (step % stage.hash_every == 0 or at_end):
            self._log(parameter_hash=self._parameter_hash())
        ends = step == last or self.progress.finished
        stop = self._is_asked_to_stop() and not ends
        if step % stage.save_every == 0 or ends or stop:
            self.save(last=ends or stop)
        if stop:
            raise PreemptedError(
                f"stopped after step {step} of {stage.num_steps}; its state is saved in {self.states}",
                hint="run the same command again: it goes on from there, bit for bit",
            )

    def save(self, *, last: bool = False) -> None:
        """Save a state of this moment; `last` waits until it is on the disk."""
        self._enter("save")
        self._count_energy()
        self.saver.save(self.model, self.optimizer, self.progress, average=self.average, last=last)

    def evaluate(self) -> dict[str, float]:
        """Bits per byte of every held-out set, logged and returned."""
        self._enter("evaluate")
        self.model.eval()
        with uncompiled(self.model):
            scores = {name: self._score(heldout) for name, heldout in self.heldout.items()}
        self.model.train()
        if scores:
            self._log(heldout={name: round(score, 4) for name, score in scores.items()})
        return scores

    def _call_back(self, step: int) -> None:
        for callback in self.callbacks:
            if step % callback.every == 0 or step == self.stage.num_steps:
                self._enter("evaluate")
                self.model.eval()
                with torch.no_grad(), uncompiled(self.model):
                    scores = callback(self.model, step)
                self.model.train()
                if scores:
                    self._log(**{callback.name: {name: round(score, 6) for name, score in scores.items()}})

    def _apply_average(self) -> None:
        """The end of a stage that averages: the model takes the mean of its weights, and its scores are logged once."""
        if not self.average.count:
            return
        self.average.apply(self.model)
        if not self._was_averaged():
            self._log(averaged=self.average.count)
            self.evaluate()

    def _was_averaged(self) -> bool:
        return any("averaged" in record for record in read_lines(self.log.path))

    def moments_of(self) -> dict[str, Tensor]:
        """The optimiser's moments, for a stage that goes on with them."""
        return optimizer_tensors(self.model, self.optimizer)

    def _log(self, **values: Any) -> None:
        self.log.write({"step": self.progress.step, "num_counted": self.progress.num_counted, **values})
