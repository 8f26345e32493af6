"""Find out what a path holds and open it: a Hugging Face folder, a Meta folder, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from herd.base.errors import NotFoundError, UsageError
from herd.checkpoint.hf import HfSource
from herd.checkpoint.hf_config import CONFIG_FILE, is_quantised
from herd.checkpoint.source import TensorSource

PARAMS_FILE = "params.json"


def open_checkpoint(path: Path | str, *, strict: bool = True) -> TensorSource:
    """Open a checkpoint for reading, whichever format it has.

    Args:
        path: a folder with config.json, or params.json (also below `original/`), or one .gguf file; or a .gguf file itself.
        strict: raise for the first problem; else the source of a folder gathers them in `problems`.

    Raises:
        NotFoundError: there is nothing at the path, or nothing that herd reads.
        CheckpointError: the files are damaged, hostile, or do not match their config.
        ConfigError: the config is impossible or of another architecture.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no checkpoint at {path}", hint="check the path; `herd models` lists what is installed")
    if path.is_file():
        return _open_file(path)
    if (path / CONFIG_FILE).is_file():
        return _open_hf(path, strict=strict)
    for folder in (path, path / "original"):
        if (folder / PARAMS_FILE).is_file():
            from herd.checkpoint.meta import MetaSource

            return MetaSource(folder, strict=strict)
    return _open_gguf_of(path)


def _open_hf(path: Path, *, strict: bool) -> TensorSource:
    from herd.checkpoint.quant_hf import QuantHfSource

    return QuantHfSource(path, strict=strict) if is_quantised(path) else HfSource(path, strict=strict)


def _open_file(path: Path) -> TensorSource:
    if path.suffix == ".gguf":
        from herd.checkpoint.gguf_read import GgufSource

        return GgufSource(path)
    if path.name.endswith((".safetensors", ".safetensors.index.json", ".pth")) or path.name in (CONFIG_FILE, PARAMS_FILE):
        raise UsageError(f"{path} is one file of a checkpoint", hint=f"give the folder: {path.parent}")
    raise NotFoundError(
        f"{path} is not a checkpoint that herd knows", hint="give a folder with config.json or params.json, or a .gguf file"
    )


def _open_gguf_of(folder: Path) -> TensorSource:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return _open_file(files[0])
    if files:
        raise UsageError(f"{folder} holds {len(files)} GGUF files", hint="name one: " + ", ".join(file.name for file in files[:8]))
    names = sorted(entry.name for entry in folder.iterdir())
    listing = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    raise NotFoundError(
        f"no checkpoint in {folder}: it holds {listing}",
        hint=f"a checkpoint has {CONFIG_FILE} and .safetensors, {PARAMS_FILE} and .pth, or a .gguf file",
    )
