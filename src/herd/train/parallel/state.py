"""States of a run on a mesh: every rank writes its pieces, the first one writes the record and moves the folder into place.

Whole or absent, with digests, as the states of one process are (`train.state`), and either is read by the other and by any mesh. The ranks
agree on how a write ended, so all count the same failures. The folder has to be on storage that all of them see.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError
from herd.kernels.torch_compat import local_tensor
from herd.train.averaging import WeightAverage
from herd.train.parallel.model import ShardedTransformer
from herd.train.parallel.pieces import box_of, is_first_copy, local_part
from herd.train.pieces import PieceReader, piece_file, piece_name
from herd.train.saver import StateSaver
from herd.train.state import (
    AVERAGE,
    MODEL,
    OPTIMIZER,
    Progress,
    Snapshot,
    find_state,
    optimizer_tensors,
    progress_of,
    prune_states,
    seal,
    set_aside,
    to_host,
)


def sharded_snapshot(
    model: ShardedTransformer,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    run: str,
    average: WeightAverage | None = None,
    into: Snapshot | None = None,
) -> Snapshot:
    """Copy the pieces that this rank speaks for to host memory, as `state.take_snapshot` copies whole tensors."""
    parameters = saved_parameters(model)

    def pieces(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parameter = parameters.get(name.rpartition("/")[0] or name)
            box = box_of(tensor)
            if parameter is None or not is_first_copy(parameter, model.mesh.place) or box.is_empty:
                continue
            key = piece_name(name, box)
            found[key] = to_host(local_part(tensor).contiguous(), buffers.get(key))
        return found

    old = into or Snapshot(progress=progress, run=run, model={}, optimizer={})
    means = {} if average is None or not average.count else average.mean
    averages = pieces(means, old.average)
    if means and model.mesh.rank == 0:
        averages["count@"] = torch.tensor(average.count if average else 0)
    snapshot = Snapshot(
        progress=progress,
        run=run,
        model=pieces(dict(model.named_parameters()), old.model),
        optimizer=pieces(_moments(model, optimizer), old.optimizer),
        average=averages,
    )
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return snapshot


def _moments(model: ShardedTransformer, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors; the step counts, of which every rank has all, only on the first rank that has the parameter."""
    place = model.mesh.place
    first = all(place[name] == 0 for name in ("dp_replicate", "dp_shard", "cp", "tp"))
    return {name: value for name, value in optimizer_tensors(model, optimizer).items() if value.dim() or first}


def saved_parameters(model: ShardedTransformer) -> dict[str, nn.Parameter]:
    """The parameters that this rank's stage has of its own: a tied matrix is the first stage's."""
    is_copy = model.mesh.config.pp > 1 and not model.has_embedding
    return {name: value for name, value in model.named_parameters() if not (is_copy and "embed_tokens" in name)}


def _share(value: Any, group: Any) -> Any:
    """The first rank's value, on all."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def _collect(value: Any, group: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=group)
    return found


def write_sharded(root: Path, snapshot: Snapshot, *, group: Any, keep: int, keep_every: int = 0) -> None:
    """Write a state together with all other ranks. Raises CheckpointError on all where it failed on any."""
    rank, target = dist.get_rank(), root / f"step-{snapshot.progress.step:08d}"
    if rank:
        folder = _share(None, group)
        if folder is not None:
            _collect(_write_files(Path(folder), snapshot, rank), group)
        outcome = _share(None, group)
    else:
        outcome = _write_first(root, target, snapshot, group)
        if outcome is None:
            prune_states(root, keep=keep, keep_every=keep_every, newest=snapshot.progress.step)
        _share(outcome, group)
    if outcome is not None:
        raise CheckpointError(outcome, hint="free space or mend the disk, then run the same command")


def _write_first(root: Path, target: Path, snapshot: Snapshot, group: Any) -> str | None:
    """The first rank's part; what went wrong, if anything."""
    shared = False
    try:
        with atomic_directory(target, overwrite=True) as folder:
            shared = True
            _share(str(folder), group)
            written = _collect(_write_files(folder, snapshot, 0), group)
            errors = [f"rank {rank}: {found}" for rank, found in enumerate(written) if isinstance(found, str)]
            if errors:
                raise CheckpointError("; ".join(errors[:4]), hint="look at the disks of these ranks")
            digests = {name: digest for found in written for name, digest in found.items()}
            record = {**asdict(snapshot.progress), "run": snapshot.run, "sha256": digests, "pieces": len(written)}
            record = json.loads(json.dumps(record))
            (folder / "state.json").write_text(json.dumps({**record, "seal": seal(record)}, indent=1), encoding="utf-8")
    except Exception as error:  # told on every rank, by `write_sharded`
        if not shared:
            _share(None, group)
        return str(error)
    return None


def _write_files(folder: Path, snapshot: Snapshot, rank: int) -> dict[str, str] | str:
    """This rank's files and their digests; or what went wrong."""
    digests: dict[str, str] = {}
    try:
        for kind, tensors in snapshot.files().items():
            if not tensors:
                continue
            path = folder / piece_file(kind, rank)
            save_file(tensors, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # whatever it is, the other ranks wait for an answer
        return f"{type(error).__name__}: {error}"
    return digests


class ShardedSaver(StateSaver):
    """`StateSaver` on a mesh: each rank's thread writes its pieces, by a process group of their own."""

    def __init__(self, root: Path, *, timeout_s: float, **settings: Any) -> None:
        super().__init__(root, **settings)
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def snapshot(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, average: WeightAverage | None = None
    ) -> Snapshot:
        """This rank's pieces."""
        assert isinstance(model, ShardedTransformer)
        return sharded_snapshot(model, optimizer, progress, run=self.run, average=average, into=self._buffers)

    def write(self, snapshot: Snapshot) -> None:
        """With all others."""
        write_sharded(self.root, snapshot, group=self._group, keep=self.keep, keep_every=self.keep_every)


def load_sharded(
    root: Path, model: ShardedTransformer, optimizer: torch.optim.Optimizer, *, run: str, average: WeightAverage | None = None
) -> Progress | None:
    """Restore the newest whole state, written by any mesh or by one process; `state.load_state` on a mesh. All ranks read the same one."""
    found = _share(_find(root) if model.mesh.rank == 0 else None, None)
    if found is None:
        return None
    folder, record = Path(found[0]), found[1]
    if record["run"] != run:
        raise CheckpointError(
            f"{folder} was written by a run of another configuration ({record['run'][:12]}, this one is {run[:12]})",
            hint="choose another output folder, or pass --restart to begin anew",
        )
    if model.mesh.rank == 0:
        set_aside(root, newer_than=record["step"])
    dist.barrier()
    with _reader(folder, record, MODEL) as reader:
        for name, parameter in model.named_parameters():
            _fill(parameter, reader, name)
    with _reader(folder, record, OPTIMIZER) as reader:
        _restore_moments(model, optimizer, reader)
    if average is not None:
        _restore_average(model, average, folder, record)
    return progress_of(record)


def _find(root: Path) -> tuple[str, dict[str, Any]] | None:
    found = find_state(root)
    return None if found is None else (str(found[0]), found[1])


class _WholeReader(PieceReader):
    """The same of a state in whole tensors."""

    def __init__(self, folder: Path, kind: str, *, exists: bool) -> None:
        super().__init__(folder, [], kind)
        self._files = [kind] if exists else []

    def __enter__(self) -> _WholeReader:
        from safetensors import safe_open

        from herd.train.pieces import whole_box

        for name in self._files:
            file = safe_open(self.folder / name, framework="pt")
            self._open.append(file.__enter__())
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                self._pieces[key] = [(whole_box(file.get_slice(key).get_shape()), file, key)]
        return self


def _reader(folder: Path, record: Mapping[str, Any], kind: str) -> PieceReader:
    if record.get("pieces"):
        return PieceReader(folder, record["sha256"], kind)
    return _WholeReader(folder, kind, exists=kind in record["sha256"])


@torch.no_grad()
def _fill(tensor: Tensor, reader: PieceReader, name: str) -> Tensor:
    """Read this rank's part of a tensor into it."""
    box = box_of(tensor)
    if not box.is_empty:
        local_tensor(tensor).copy_(reader.read(name, box))
    return tensor


def _restore_moments(model: ShardedTransformer, optimizer: torch.optim.Optimizer, reader: PieceReader) -> None:
    known = reader.names()
    for name, parameter in model.named_parameters():
        optimizer.state.pop(parameter, None)
        keys = [key.removeprefix(f"{name}/") for key in known if key.startswith(f"{name}/")]
        if keys:
            optimizer.state[parameter] = {key: _moment(parameter, reader, f"{name}/{key}") for key in keys}


def _moment(parameter: nn.Parameter, reader: PieceReader, name: str) -> Tensor:
    shape = reader.shape(name)
    if not shape:
        return reader.whole(name).to(parameter.device)
    return _fill(torch.empty_like(parameter.detach()), reader, name)


def _restore_average(model: ShardedTransformer, average: WeightAverage, folder: Path, record: Mapping[str, Any]) -> None:
    average.count, average.mean = 0, {}
    with _reader(folder, record, AVERAGE) as reader:
        if not reader.names():
            return
        average.count = int(reader.whole("count"))
        for name, parameter in model.named_parameters():
            average.mean[name] = _fill(torch.empty_like(parameter.detach(), dtype=torch.float32), reader, name)
