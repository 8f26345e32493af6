"""A whole model from the parts of a mesh, in the first process: what is exported, and what its card is written from.

The parts go over the disk that all ranks see, since what the ranks of a large model hold does not fit into messages to one of them. The
first process needs room for the weights in bfloat16.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from herd.model.transformer import Transformer
from herd.train.parallel.model import ShardedTransformer
from herd.train.parallel.pieces import box_of, is_first_copy, local_part
from herd.train.parallel.state import saved_parameters
from herd.train.pieces import PieceReader, piece_file, piece_name
from herd.train.state import MODEL


def whole_copy(model: ShardedTransformer, folder: Path) -> Transformer:
    """The model in bfloat16, on the first rank; a model without values on the others. `folder` holds the parts meanwhile."""
    rank = model.mesh.rank
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    pieces = {
        piece_name(name, box_of(parameter)): local_part(parameter).to(torch.bfloat16).cpu().contiguous()
        for name, parameter in saved_parameters(model).items()
        if is_first_copy(parameter, model.mesh.place) and not box_of(parameter).is_empty
    }
    if pieces:
        save_file(pieces, folder / piece_file(MODEL, rank))
    dist.barrier()
    with torch.device("meta"):
        whole = Transformer(model.config).to(torch.bfloat16)
    if rank == 0:
        whole.to_empty(device="cpu")
        with PieceReader(folder, [path.name for path in folder.iterdir()], MODEL) as reader, torch.no_grad():
            for name, parameter in whole.named_parameters():
                parameter.copy_(reader.whole(name))
        shutil.rmtree(folder)
    dist.barrier()
    return whole
