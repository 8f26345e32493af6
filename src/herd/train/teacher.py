"""A teacher's top-k log-probabilities on disk: the data of distillation, written once, read by any number of students.

A folder of safetensors files `teacher-00000.safetensors`, `teacher-00001.safetensors`, ..., each with R whole rows:

    tokens            int32   [R, T+1]     packed token ids
    documents         int16   [R, T+1]     document numbers within a row, -1 on padding
    counts            bool    [R, T+1]     whether a token counts as a target
    teacher_ids       int32   [R, T+1, k]  the k likeliest tokens at this place, likeliest first
    teacher_logprobs  float16 [R, T+1, k]  their log-probabilities in nats, over the whole vocabulary

The last two are the teacher's prediction of the token at the same place, from those before it in its document; they are 0 at the first
place of a row. Metadata of every file: `format` ("herd-teacher-1"), `top_k`, `teacher` (a name), `tokenizer` (a digest of its vocabulary),
`rows` (the digest of the rows that were read), `files` (how many there are). Files are written whole or not at all, in their order; a
writer that was stopped goes on after the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from herd.base.atomic import atomic_file
from herd.base.errors import CheckpointError, NotFoundError
from herd.model.transformer import Transformer
from herd.train.batch import Columns, some_rows, to_tensors
from herd.train.objectives.forward import hidden_states

FORMAT = "herd-teacher-1"
ROWS_PER_FILE = 512
_COLUMNS = ("tokens", "documents", "counts")


def rows_digest(columns: Columns) -> str:
    """A digest of rows: the same rows, the same digest."""
    digest = hashlib.sha256()
    for name in _COLUMNS:
        digest.update(f"{name}{columns[name].shape}{columns[name].dtype}".encode())
        digest.update(np.ascontiguousarray(columns[name]).tobytes())
    return digest.hexdigest()


def _top(model: Transformer, columns: Columns, top_k: int, dtype: torch.dtype, chunk: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities [B, T, k] of the likeliest next tokens, for the first T tokens of each row."""
    hidden = hidden_states(model, to_tensors(columns, model.device), dtype)
    weight = model.head_weight.to(dtype)
    flat = hidden.flatten(0, 1)
    found = [(part @ weight.t()).float().log_softmax(-1).topk(top_k) for part in flat.split(chunk)]
    shape = (*hidden.shape[:2], top_k)
    return torch.cat([pair.indices for pair in found]).view(shape), torch.cat([pair.values for pair in found]).view(shape)


@torch.no_grad()
def write_teacher(
    model: Transformer,
    columns: Columns,
    folder: Path,
    *,
    top_k: int,
    teacher: str,
    tokenizer: str,
    dtype: torch.dtype = torch.float32,
    micro_batch_size: int = 8,
    rows_per_file: int = ROWS_PER_FILE,
    chunk: int = 512,
    advance: Callable[[int, str], None] | None = None,
) -> None:
    """Run a teacher over rows and write what it predicts; files that are there already are kept.

    Args:
        model: the teacher.
        columns: `tokens`, `documents` and `counts`.
        folder: where the files go.
        top_k: how many tokens are stored for each place.
        teacher: its name, for the record.
        tokenizer: a digest of the vocabulary that the ids belong to.
        dtype: of the forward pass.
        micro_batch_size: rows in memory at once.
        rows_per_file: rows in one file.
        chunk: tokens whose logits exist at once.
        advance: told the rows done.

    Raises:
        CheckpointError: the folder holds predictions of other rows, another teacher, tokenizer or top_k.
    """
    model.eval()
    number = len(columns["tokens"])
    starts = range(0, number, rows_per_file)
    record = {"format": FORMAT, "top_k": str(top_k), "teacher": teacher, "tokenizer": tokenizer}
    record |= {"rows": rows_digest(columns), "files": str(len(starts))}
    for index, start in enumerate(starts):
        path = folder / f"teacher-{index:05d}.safetensors"
        if path.exists():
            _check_record(path, record)
            continue
        part = some_rows({name: columns[name] for name in _COLUMNS}, start, rows_per_file)
        shape = (*part["tokens"].shape, top_k)
        ids, logprobs = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float16)
        for row in range(0, len(ids), micro_batch_size):
            top_ids, top_logprobs = _top(model, some_rows(part, row, micro_batch_size), top_k, dtype, chunk)
            ids[row : row + micro_batch_size, 1:] = top_ids.cpu().numpy()
            logprobs[row : row + micro_batch_size, 1:] = top_logprobs.cpu().numpy()
            if advance is not None:
                advance(min(number, start + row + micro_batch_size), "")
        with atomic_file(path) as temporary:
            save_file({**part, "teacher_ids": ids, "teacher_logprobs": logprobs}, temporary, metadata=record)


def _read_record(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except Exception as error:  # the library raises an exception of its own for every damage
        raise CheckpointError(f"{path} is not a sound safetensors file: {error}", hint="delete it and let the teacher run again") from error


def _check_record(path: Path, expected: dict[str, str]) -> None:
    found = _read_record(path)
    for key, value in expected.items():
        if found.get(key) != value:
            raise CheckpointError(f"{path} has {key} {found.get(key)!r}, expected {value!r}", hint="choose another folder, or delete it")


def read_teacher(folder: Path, *, tokenizer: str | None = None) -> dict[str, NDArray[Any]]:
    """The columns of a folder that `write_teacher` filled.

    Raises NotFoundError for a folder without such files, CheckpointError where files are missing, do not belong together, or hold ids of
    another tokenizer than the one whose digest is given.
    """
    paths = sorted(folder.glob("teacher-*.safetensors"))
    if not paths:
        raise NotFoundError(f"there are no teacher-*.safetensors in {folder}", hint="write them with a teacher first")
    record = _read_record(paths[0])
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{paths[0]} has the format {record.get('format')!r}, expected {FORMAT!r}", hint="herd wrote no such file")
    if record.get("files") != str(len(paths)):
        raise CheckpointError(f"{folder} holds {len(paths)} of {record.get('files')} files", hint="let the teacher finish")
    if tokenizer is not None and record["tokenizer"] != tokenizer:
        raise CheckpointError(
            f"the teacher's ids in {folder} are those of another tokenizer", hint="teacher and student must share their vocabulary"
        )
    for path in paths[1:]:
        _check_record(path, record)
    parts = list(_load(paths))
    return {name: np.concatenate([part[name] for part in parts]) for name in (*_COLUMNS, "teacher_ids", "teacher_logprobs")}


def _load(paths: list[Path]) -> Iterator[dict[str, NDArray[Any]]]:
    for path in paths:
        yield load_file(path)
