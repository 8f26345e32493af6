"""What mesh tests run in every process: training on a mesh, and what a single process makes of the same."""

from __future__ import annotations

import gc
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from small_run import VOCAB, small_mixture, small_rows, small_stage  # pyright: ignore[reportMissingImports]

from herd.kernels.torch_compat import allocation_peak, local_tensor
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.attention import MASKED_UP_TO
from herd.train.mixing import cut_rows
from herd.train.numerics import prepare_model
from herd.train.objectives.by_source import next_token_for, with_sources
from herd.train.optimizer import build_adamw
from herd.train.parallel import context, state
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.export import whole_copy
from herd.train.parallel.mesh import build_mesh
from herd.train.parallel.model import ShardedTransformer, build_sharded
from herd.train.parallel.step import ParallelStep
from herd.train.parallel.trainer import ParallelTrainer
from herd.train.preemption import PreemptedError
from herd.train.replicas import tensor_hash
from herd.train.schedule import stage_learning_rate
from herd.train.step import train_step
from herd.train.trainer import HeldOut, Trainer

STEPS = 20
LENGTH = 32


def mesh_config(*, tied: bool = False, layers: int = 2) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )


def mesh_stage(**changes: Any) -> Any:
    fields = {"sequence_length": LENGTH, "batch_size": 8, "micro_batch_size": 2, "num_steps": STEPS, "z_loss": 1e-4}
    return small_stage(**(fields | changes))


def plain_losses(*, tied: bool = False, layers: int = 2, **changes: Any) -> list[list[float]]:
    """Loss, gradient norm and a source's loss of every step in one process."""
    stage = mesh_stage(**changes)
    with torch.device("meta"):
        model = Transformer(mesh_config(tied=tied, layers=layers))
    initialise(model, seed=3)
    prepare_model(model, stage)
    mixture, optimizer = small_mixture(stage), build_adamw(model, stage)
    objective = next_token_for(mixture, z_loss=stage.z_loss)
    found: list[list[float]] = []
    for step in range(STEPS):
        first = step * stage.batch_size
        batch = with_sources(mixture, mixture.batch(first, stage.batch_size), first=first)
        result = train_step(model, optimizer, batch, stage, lr=stage_learning_rate(stage, step), objective=objective)
        found.append([result.loss, result.grad_norm, result.metrics.get("loss/a", 0.0), float(result.num_counted)])
    return found


def train_on_mesh(
    *, folder: Path, mesh: dict[str, Any], tied: bool = False, layers: int = 2, steps: int = STEPS, masks: bool = True, **changes: Any
) -> dict[str, Any]:
    """The same on this rank of a mesh. Without `masks` context parallel goes document by document, as it does on long rows."""
    if not masks:
        context.MASKED_UP_TO = 0  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return _train_on_mesh(folder=folder, mesh=mesh, tied=tied, layers=layers, steps=steps, **changes)
    finally:
        context.MASKED_UP_TO = MASKED_UP_TO  # pyright: ignore[reportAttributeAccessIssue]


def _train_on_mesh(*, folder: Path, mesh: dict[str, Any], tied: bool, layers: int, steps: int, **changes: Any) -> dict[str, Any]:
    stage = mesh_stage(**changes)
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    model: ShardedTransformer = build_sharded(
        mesh_config(tied=tied, layers=layers), ranks, seed=3, compute_dtype=getattr(torch, stage.compute_dtype)
    )
    prepare_model(model, stage)
    mixture, optimizer = small_mixture(stage), build_adamw(model, stage)
    step_on = ParallelStep(model, z_loss=stage.z_loss, source_names=mixture.names)
    per_rank = stage.batch_size // ranks.config.dp
    found: list[list[float]] = []
    for step in range(steps):
        first = step * stage.batch_size + ranks.dp_index * per_rank
        batch = cut_rows(with_sources(mixture, mixture.batch(first, per_rank), first=first), stage.sequence_length)
        result = step_on(optimizer, batch, stage, lr=stage_learning_rate(stage, step))
        found.append([result.loss, result.grad_norm, result.metrics.get("loss/a", 0.0), float(result.num_counted)])
    rows = mixture.batch(ranks.dp_index * 2, 2)
    return {"steps": found, "heldout": step_on.loss_sum(rows, micro_batch_size=1)}


CASES: dict[str, Any] = {"train": train_on_mesh}


def trainer_on_mesh(
    folder: Path, mesh: dict[str, Any], *, tied: bool, until: int, run: str = "this run", **changes: Any
) -> ParallelTrainer:
    """A trainer of this rank that has resumed what it found."""
    stage = mesh_stage(**(TRAINER | changes))
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    model = build_sharded(mesh_config(tied=tied), ranks, seed=3)
    trainer = ParallelTrainer(model, stage, small_mixture(stage), folder=folder, run=run, heldout=heldout())
    trainer.resume()
    trainer.fit(until_step=until)
    return trainer


def plain_trainer(folder: Path, *, tied: bool, until: int, **changes: Any) -> Trainer:
    """The same in one process."""
    stage = mesh_stage(**(TRAINER | changes))
    with torch.device("meta"):
        model = Transformer(mesh_config(tied=tied))
    trainer = Trainer(initialise(model, seed=3), stage, small_mixture(stage), folder=folder, run="this run", heldout=heldout())
    trainer.resume()
    trainer.fit(until_step=until)
    return trainer


TRAINER: dict[str, Any] = {"num_steps": 8, "save_every": 2, "eval_every": 4, "average_every": 3, "hash_every": 4}


def heldout() -> dict[str, HeldOut]:
    return {"en": HeldOut(rows=small_rows(10, seed=3), num_bytes=500), "th": HeldOut(rows=small_rows(4, seed=4), num_bytes=90)}


def bits(trainer: ParallelTrainer) -> str:
    """A hash of everything that a state of this rank holds."""
    snapshot = trainer.saver.snapshot(trainer.model, trainer.optimizer, trainer.progress, average=trainer.average)
    parts = {f"{kind}/{name}": tensor_hash(value) for kind, tensors in snapshot.files().items() for name, value in tensors.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def relay(*, folder: Path, mesh: dict[str, Any], place: str, until: int, tied: bool = True, **changes: Any) -> dict[str, Any]:
    """Go on with the run in `place` on this mesh."""
    trainer = trainer_on_mesh(Path(place), mesh, tied=tied, until=until, **changes)
    return {"step": trainer.progress.step, "bits": bits(trainer)}


def relay_interrupted(*, folder: Path, mesh: dict[str, Any], place: str, tied: bool = True) -> dict[str, Any]:
    """Stop at step 3, begin again as new processes would and go to the end, beside the run that was not interrupted."""
    whole = trainer_on_mesh(Path(place) / "whole", mesh, tied=tied, until=8)
    before = bits(whole)
    trainer_on_mesh(Path(place) / "cut", mesh, tied=tied, until=3)
    dist.barrier()
    again = trainer_on_mesh(Path(place) / "cut", mesh, tied=tied, until=8)
    return {"same": before == bits(again), "count": again.average.count}


def stopped(*, folder: Path, mesh: dict[str, Any], place: str) -> dict[str, Any]:
    """A signal reaches the last rank alone, in step 3: all save that step and leave."""
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    stage = mesh_stage(**TRAINER)
    model = build_sharded(mesh_config(), ranks, seed=3)
    trainer = ParallelTrainer(model, stage, small_mixture(stage), folder=Path(place), run="this run")
    trainer.should_stop = lambda: ranks.rank == ranks.config.world_size - 1 and trainer.progress.step == 3
    try:
        trainer.fit()
    except PreemptedError as error:
        return {"step": trainer.progress.step, "code": error.exit_code, "newest": max(path.name for path in trainer.states.iterdir())}
    return {}


def unsaved(*, folder: Path, mesh: dict[str, Any], place: str) -> dict[str, Any]:
    """The last rank cannot write its pieces of step 4: every rank counts one failure, and the states before it stay."""
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    stage = mesh_stage(**(TRAINER | {"save_async": False, "num_steps": 6}))
    model = build_sharded(mesh_config(), ranks, seed=3)
    trainer = ParallelTrainer(model, stage, small_mixture(stage), folder=Path(place), run="this run")
    honest = state._write_files

    def failing(target: Path, snapshot: Any, rank: int) -> Any:
        full = ranks.rank == ranks.config.world_size - 1 and snapshot.progress.step == 4
        return "OSError: no space left on device" if full else honest(target, snapshot, rank)

    state._write_files = failing
    try:
        trainer.fit(until_step=5)
        failures = trainer.saver.num_failures
        kept = sorted(path.name for path in trainer.states.iterdir())
    finally:
        state._write_files = honest
    return {"failures": failures, "kept": kept}


CASES |= {"stopped": stopped, "unsaved": unsaved}
CASES |= {"relay": relay, "interrupted": relay_interrupted}


def whole_scores(*, folder: Path, mesh: dict[str, Any], tied: bool = False) -> dict[str, Any]:
    """Whole hidden states' logits and the exported weights against the model of one process."""
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    model = build_sharded(mesh_config(tied=tied), ranks, seed=3)
    with torch.device("meta"):
        plain = Transformer(mesh_config(tied=tied))
    initialise(plain, seed=3)
    tokens = torch.arange(2 * 13).view(2, 13) % VOCAB
    with torch.no_grad():
        expected = plain(tokens)
    found = model.logits(model.hidden(tokens))
    whole = whole_copy(model, folder / f"pieces-{mesh}")
    same = ranks.rank > 0 or all(
        torch.equal(ours, theirs.to(torch.bfloat16)) for ours, theirs in zip(whole.parameters(), plain.parameters(), strict=True)
    )
    return {"difference": float((found - expected).abs().max()), "same": same}


CASES |= {"whole": whole_scores}


MEMORY_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "single": ({}, {}),
    "fsdp": ({"dp_shard": 2, "zero": 3}, {}),
    "tp": ({"tp": 2}, {}),
    "pp": ({"pp": 2}, {}),
    "long context": ({"cp": 2}, {"sequence_length": 2048, "batch_size": 1, "recompute": "full"}),
}


def memory_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=0.02,
    )


def memory_stage(changes: dict[str, Any]) -> Any:
    return small_stage(**({"sequence_length": 512, "batch_size": 4, "micro_batch_size": 1} | changes))


def memory_rows(first: int, rows: int, length: int) -> Any:
    tokens = np.random.default_rng(first).integers(0, 1024, (rows, length + 1)).astype(np.int32)
    return tokens, np.zeros(tokens.shape, np.int16), np.ones(tokens.shape, np.bool_)


def measured_in_one_process() -> dict[str, int]:
    """The peak of a real step of the plain model, which knows nothing of meshes."""
    stage = memory_stage({})
    with torch.device("meta"):
        model = Transformer(memory_config())
    initialise(model, seed=3)
    optimizer, batch = build_adamw(model, stage), memory_rows(0, stage.batch_size, stage.sequence_length)
    train_step(model, optimizer, batch, stage, lr=1e-4)
    static = sum(value.nbytes for value in [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())])
    return {"peak": static + allocation_peak(lambda: train_step(model, optimizer, batch, stage, lr=1e-4)), "static": static}


def bytes_alive() -> int:
    """Of every tensor's storage in this process."""
    gc.collect()
    plain = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in plain)}.values())


def measured_memory(*, folder: Path, name: str) -> dict[str, Any]:
    """The peak of a real step, by the allocator's record, on every rank."""
    mesh, changes = MEMORY_RUNS[name]
    stage = memory_stage(changes)
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    model = build_sharded(memory_config(), ranks, seed=3)
    prepare_model(model, stage)
    optimizer, step = build_adamw(model, stage), ParallelStep(model)
    batch = memory_rows(ranks.dp_index, stage.batch_size // ranks.config.dp, stage.sequence_length)
    step(optimizer, batch, stage, lr=1e-4)
    static = sum(
        local_tensor(tensor).nbytes for tensor in [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    )
    held = bytes_alive()  # a stage of a pipeline keeps what it receives into
    # Threads of gloo give back a message's tensors when they come to it: the least of some steps is the step's own.
    return {"peak": held + min(allocation_peak(lambda: step(optimizer, batch, stage, lr=1e-4)) for _ in range(8)), "static": static}


CASES |= {"memory": measured_memory}
