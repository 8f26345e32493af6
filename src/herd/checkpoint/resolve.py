"""What a model argument means, wherever one is taken: a path, a bundled model, a pulled name, an alias or a hub name.

Looks at this machine only; fetching is `hub.pull`'s. Order: an existing path; what ships (`cria`, `cria-guard`); a folder below herd's
models; an alias; ORG/NAME as pulled by herd or as found in Hugging Face's own cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from herd.base.errors import NotFoundError, TokenizerError, UsageError, nearest
from herd.base.paths import bundled_guard, bundled_model, models_dir
from herd.base.registry import ALIASES, BUNDLED, BUNDLED_GUARD
from herd.text.tokenizer import Tokenizer, load_tokenizer

_SHIPPED = {BUNDLED: lambda: bundled_model(), BUNDLED_GUARD: lambda: bundled_guard()}
_MARKERS = ("config.json", "params.json", "*.gguf")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstalledModel:
    """A model on this machine: the name to call it by, where it is, its bytes on disk."""

    name: str
    path: Path
    size_bytes: int


def hub_name(model: str) -> str | None:
    """The hub name that an argument stands for (an alias's, or itself if it looks like ORG/NAME), else None."""
    name = ALIASES.get(model, model)
    org, slash, repository = name.partition("/")
    if not slash or "/" in repository or "\\" in name or "\0" in name:
        return None
    return name if all(part and not part.startswith((".", "~")) for part in (org, repository)) else None


def pulled_path(name: str) -> Path:
    """Where `herd pull ORG/NAME` puts a model."""
    return models_dir() / name


def _hub_cache(name: str) -> Path | None:
    """The newest snapshot of a repository in Hugging Face's cache, if there is one."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / ("models--" + name.replace("/", "--")) / "snapshots"
    found = [path for path in snapshots.glob("*") if (path / "config.json").is_file()] if snapshots.is_dir() else []
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def resolve_model(model: str | Path) -> Path:
    """The path of a model argument. Raises NotFoundError, naming what to do; UsageError for an empty one."""
    text = str(model)
    if not text.strip():
        raise UsageError("the model is empty", hint="give a path, a hub name (ORG/NAME) or an alias; `herd models` lists what is here")
    path = _existing(text)
    if path is not None and (isinstance(model, Path) or text not in _SHIPPED):
        return path
    if text in _SHIPPED:
        return _SHIPPED[text]()
    name = hub_name(text)
    for candidate in (str(models_dir() / text), *((str(pulled_path(name)),) if name else ())):
        found = _existing(candidate)
        if found is not None:
            return found
    cached = _hub_cache(name) if name else None
    if cached is not None:
        return cached
    raise NotFoundError(f"there is no model {text!r} on this machine", hint=_hint(text, name))


def _existing(text: str) -> Path | None:
    """The path that a text names, if there is something; names that no file system takes name nothing."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _hint(text: str, name: str | None) -> str:
    if name is not None:
        return f"fetch it: herd pull {text}"
    known = [*_SHIPPED, *ALIASES, *(model.name for model in installed_models())]
    close = nearest(text, known)
    return f"did you mean {close!r}?" if close else "give a path, a hub name (ORG/NAME) or one of: " + ", ".join(known[:6])


def installed_models() -> list[InstalledModel]:
    """What ships and everything below herd's models folder, by name. What is still being fetched or written is left out."""
    root = models_dir()
    paths = {name: place() for name, place in _SHIPPED.items() if (place() / "config.json").is_file()}
    markers = [path.relative_to(root) for pattern in _MARKERS for path in root.rglob(pattern)] if root.is_dir() else []
    paths |= {str(name): root / name for name in sorted({_model_of(path) for path in markers if not _hidden(path)})}
    return [InstalledModel(name=name, path=path, size_bytes=_size(path)) for name, path in paths.items()]


def cached_models() -> list[InstalledModel]:
    """What Hugging Face's own cache holds with a config.json, under its hub name, whatever its architecture."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--*--*")) if Path(HF_HUB_CACHE).is_dir() else []
    names = [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
    found = [(name, _hub_cache(name)) for name in names if hub_name(name) == name]
    return [InstalledModel(name=name, path=path, size_bytes=_size(path)) for name, path in found if path is not None]


def _model_of(marker: Path) -> Path:
    """The model that a marker file stands for: a GGUF file itself, else its folder; Meta's files lie one folder further down."""
    if marker.suffix == ".gguf":
        return marker
    return marker.parent.parent if marker.parent.name == "original" else marker.parent


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def load_checkpoint_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint: beside it, or inside a GGUF file. Raises NotFoundError or TokenizerError."""
    if path.is_file():
        if path.suffix == ".gguf":
            return _gguf_tokenizer(path)
        path = path.parent
    try:
        return load_tokenizer(path)
    except NotFoundError:
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise
        return _gguf_tokenizer(files[0])


def _gguf_tokenizer(path: Path) -> Tokenizer:
    from herd.checkpoint.gguf_tokenizer import gguf_tokenizer

    if any((path.parent / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return load_tokenizer(path.parent)
    tokenizer = gguf_tokenizer(path)
    if tokenizer is None:
        raise TokenizerError(f"{path} carries no tokenizer", hint="put tokenizer.model beside it")
    return tokenizer
