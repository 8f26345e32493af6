"""`herd pull`: a model from the Hugging Face hub into herd's models folder, through huggingface_hub.

Resumes what broke off, checks the disk before the first byte and takes only what a model needs. A file appears under its name when it is
whole and not before; a pull that broke off leaves a folder with some of them, which the same command completes. All files come from the one
commit that the plan saw. Names and revisions are data: nothing that comes down is run. A token, where a repository is gated, is
huggingface_hub's business (`HF_TOKEN` or its login).
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from herd.base.errors import CheckpointError, DoesNotFitError, DownloadError, HerdError, NotFoundError, UsageError
from herd.base.memory import free_disk, gib
from herd.base.paths import models_dir
from herd.checkpoint.resolve import hub_name, pulled_path

_WANTED = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "README.md", "LICENSE*", "USE_POLICY*")
_META = ("original/*",)
_WEIGHTS = ("*.safetensors", "*.pth", "*.gguf")
_RESERVE_BYTES = 2**30

Report = Callable[[int, str], None]
"""Called with the bytes that are here so far and the file at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """A file of a repository, its bytes, and the digest by which the hub knows its content (None where it gave none)."""

    name: str
    size_bytes: int
    digest: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PullPlan:
    """What a pull would fetch. `revision` is what was asked for, `commit` what it was when asked."""

    name: str
    revision: str
    commit: str
    target: Path
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def missing(self) -> tuple[HubFile, ...]:
        """The files that are not here in full, small ones first."""
        return tuple(sorted((file for file in self.files if not self._here(file)), key=lambda file: file.size_bytes))

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files that are not here in full."""
        return sum(file.size_bytes for file in self.missing)

    def _here(self, file: HubFile) -> bool:
        """Whether a file has its size and, where huggingface_hub noted the digest when it fetched it, its content."""
        path = self.target / file.name
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return False
        noted = self.target / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
        if file.digest is None or not noted.is_file():
            return True
        return file.digest in noted.read_text(encoding="utf-8", errors="replace").split()


def _failed(name: str, error: Exception) -> HerdError:
    """The hub's refusals in our words."""
    kind = type(error).__name__
    if "GatedRepo" in kind:
        return DownloadError(
            f"{name} is gated: its owner has to grant you access", hint="accept its licence on its page, then set HF_TOKEN"
        )
    if any(missing in kind for missing in ("RepositoryNotFound", "RevisionNotFound", "RemoteEntryNotFound")):
        return NotFoundError(f"the hub has no {name}, or it is private ({kind})", hint="check the name; for a private one set HF_TOKEN")
    if "HFValidation" in kind:
        return UsageError(f"{name!r} is not a hub name: {_first_line(error)}", hint="names look like meta-llama/Llama-3.1-8B-Instruct")
    if "OfflineMode" in kind:
        return DownloadError(f"cannot fetch {name}: the hub is switched off (HF_HUB_OFFLINE)", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFitError(f"the disk became full while fetching {name}", hint="make room and run the same command again: it goes on")
    return DownloadError(
        f"cannot fetch {name}: {kind}: {_first_line(error)}",
        hint="check the network and run the same command again: what has arrived is kept",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def plan_pull(model: str, *, revision: str = "main", meta: bool = False, include: Sequence[str] = (), api: Any = None) -> PullPlan:
    """Ask the hub what a model is made of.

    Args:
        model: ORG/NAME or an alias.
        revision: a branch, tag or commit.
        meta: take Meta's own files (`original/`) instead of the safetensors.
        include: patterns to take instead of the usual ones, as `*.gguf`.
        api: a stand-in for `huggingface_hub.HfApi()`.

    Raises:
        UsageError: a name that is none.
        NotFoundError: no such repository or revision, or no weights in it that herd reads.
        DownloadError: the hub refused or cannot be reached.
        CheckpointError: a file name that leads out of the folder.
    """
    name = hub_name(model)
    if name is None:
        raise UsageError(
            f"{model!r} is not a hub name",
            hint="names look like meta-llama/Llama-3.1-8B-Instruct; `herd models --aliases` lists short ones",
        )
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        info = api.model_info(name, revision=revision, files_metadata=True)
    except Exception as error:
        raise _failed(name, error) from error
    entries = list(info.siblings or ())
    patterns = tuple(include) or (_META if meta else _WANTED)
    files = tuple(_file(name, entry) for entry in entries if _wanted(entry.rfilename, patterns, deep=meta or bool(include)))
    if not files or not (include or any(_matches(file.name, _WEIGHTS) for file in files)):
        raise NotFoundError(
            f"{name} holds no weights that match {', '.join(patterns)}", hint=_other_weights([entry.rfilename for entry in entries])
        )
    commit = getattr(info, "sha", None) or revision
    return PullPlan(name=name, revision=revision, commit=commit, target=pulled_path(name), files=files)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _wanted(name: str, patterns: Sequence[str], *, deep: bool) -> bool:
    return _matches(name, patterns) and (deep or "/" not in name)


def _file(repository: str, entry: Any) -> HubFile:
    """One file of the hub's answer. Raises CheckpointError for a name that would be written elsewhere."""
    path = PurePosixPath(entry.rfilename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.rfilename:
        raise CheckpointError(
            f"{repository} holds a file named {entry.rfilename!r}, which leads out of its folder", hint="do not use this repository"
        )
    lfs = getattr(entry, "lfs", None)
    digest = getattr(lfs, "sha256", None) or getattr(entry, "blob_id", None)
    return HubFile(name=entry.rfilename, size_bytes=int(entry.size or 0), digest=digest)


def _other_weights(names: Sequence[str]) -> str:
    """What to do about a repository without the wanted weights."""
    if _matches_any(names, "*.gguf"):
        return "it holds GGUF files; name the one to take: --include '*Q8_0.gguf'"
    if _matches_any(names, "original/*.pth"):
        return "it holds Meta's own files: --meta"
    if _matches_any(names, "*.bin"):
        return "herd reads no pickled weights (.bin), which can hold code: look for the model as safetensors"
    return "name what to take: --include '*.gguf'"


def _matches_any(names: Sequence[str], pattern: str) -> bool:
    return any(fnmatch(name, pattern) for name in names)


def check_disk(plan: PullPlan) -> None:
    """Raises DoesNotFitError, with both numbers, if the disk cannot hold what is missing and a little more."""
    free = free_disk(plan.target)
    if plan.missing_bytes and plan.missing_bytes + _RESERVE_BYTES > free:
        raise DoesNotFitError(
            f"{plan.name} needs {gib(plan.missing_bytes)} more and {gib(_RESERVE_BYTES)} to spare, and {plan.target} has {gib(free)} free",
            hint=f"make room, or set HERD_HOME to a larger disk (models are in {models_dir()})",
        )


def pull(plan: PullPlan, *, report: Report | None = None, download: Callable[..., Any] | None = None) -> Path:
    """Fetch a plan's files into its target and return it. Files that are here in full are not fetched again; a broken one resumes.

    Args:
        plan: from `plan_pull`.
        report: told the progress, byte by byte.
        download: a stand-in for `huggingface_hub.hf_hub_download`.

    Raises:
        DoesNotFitError: before the first byte, or when the disk fills up all the same.
        DownloadError, NotFoundError: the line broke, or the hub refused.
    """
    check_disk(plan)
    if download is None:
        from huggingface_hub import hf_hub_download

        download = hf_hub_download
    missing = plan.missing
    done = plan.size_bytes - sum(file.size_bytes for file in missing)
    for file in missing:
        if report is not None:
            report(done, file.name)
        _fetch(plan, file, download, _bar(download, report, done, file.name))
        done += file.size_bytes
        if report is not None:
            report(done, file.name)
    return plan.target


def _fetch(plan: PullPlan, file: HubFile, download: Callable[..., Any], extra: dict[str, Any]) -> None:
    """One file, checked for its size."""
    try:
        download(repo_id=plan.name, filename=file.name, revision=plan.commit, local_dir=str(plan.target), **extra)
    except Exception as error:
        raise _failed(plan.name, error) from error
    path = plan.target / file.name
    size = path.stat().st_size if path.is_file() else 0
    if size != file.size_bytes:
        raise DownloadError(
            f"{file.name} of {plan.name} came with {size:,} bytes, the hub says {file.size_bytes:,}",
            hint=f"delete {path} and run the command again",
        )


def _bar(download: Callable[..., Any], report: Report | None, done: int, name: str) -> dict[str, Any]:
    """The argument that sends the library's progress to `report` instead of to bars of its own, where it takes one."""
    if report is None or "tqdm_class" not in inspect.signature(download).parameters:
        return {}
    from huggingface_hub.utils import tqdm

    class Meter(tqdm):  # pyright: ignore[reportMissingTypeArgument]
        """Draws nothing and passes the count on."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self._arrived = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            """Count bytes that arrived."""
            self._arrived += int(n or 0)
            report(done + self._arrived, name)

    return {"tqdm_class": Meter}
