"""`herd pull`: a model from the Hugging Face hub into herd's models folder, through huggingface_hub.

Resumes what broke off, checks the disk before the first byte and takes only what a model needs. Names and revisions are data: nothing that comes
down is run. A token, where a repository is gated, is huggingface_hub's business (`HF_TOKEN` or its login).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from herd.base.errors import DoesNotFitError, DownloadError, NotFoundError, UsageError
from herd.base.memory import free_disk, gib
from herd.base.paths import models_dir
from herd.checkpoint.resolve import hub_name, pulled_path

_WANTED = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "README.md", "LICENSE*", "USE_POLICY*")
_META = ("original/*",)
_RESERVE_BYTES = 2**30

Report = Callable[[int, str], None]
"""Called with bytes fetched so far and the file at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """A file of a repository and its bytes."""

    name: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PullPlan:
    """What a pull would fetch: the files, their bytes, and what of them is here already."""

    name: str
    revision: str
    target: Path
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files that are not here in full."""
        return sum(file.size_bytes for file in self.files if not self._here(file))

    def _here(self, file: HubFile) -> bool:
        path = self.target / file.name
        return path.is_file() and path.stat().st_size == file.size_bytes


def _failed(name: str, error: Exception) -> DownloadError | NotFoundError:
    """The hub's refusals in our words."""
    kind = type(error).__name__
    if "GatedRepo" in kind:
        return DownloadError(f"{name} is gated: its owner has to grant you access", hint="accept its licence on its page, then set HF_TOKEN")
    if "RepositoryNotFound" in kind or "RevisionNotFound" in kind:
        return NotFoundError(f"the hub has no {name}, or it is private ({kind})", hint="check the name; for a private one set HF_TOKEN")
    if "OfflineMode" in kind:
        return DownloadError(f"cannot fetch {name}: the hub is switched off (HF_HUB_OFFLINE)", hint="unset HF_HUB_OFFLINE")
    return DownloadError(
        f"cannot fetch {name}: {kind}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        hint="check the network and run the same command again: what has arrived is kept",
    )


def plan_pull(model: str, *, revision: str = "main", meta: bool = False, include: Sequence[str] = (), api: Any = None) -> PullPlan:
    """Ask the hub what a model is made of. Raises UsageError for a name that is none, NotFoundError, DownloadError.

    Args:
        model: ORG/NAME or an alias.
        revision: a branch, tag or commit.
        meta: take Meta's own files (`original/`) instead of the safetensors.
        include: patterns to take instead of the usual ones, as `*.gguf`.
        api: a stand-in for `huggingface_hub.HfApi()`.
    """
    name = hub_name(model)
    if name is None:
        raise UsageError(f"{model!r} is not a hub name", hint="names look like meta-llama/Llama-3.1-8B-Instruct; `herd models` lists aliases")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        info = api.model_info(name, revision=revision, files_metadata=True)
    except Exception as error:
        raise _failed(name, error) from error
    patterns = tuple(include) or (_META if meta else _WANTED)
    files = tuple(
        HubFile(name=entry.rfilename, size_bytes=int(entry.size or 0))
        for entry in info.siblings or ()
        if any(fnmatch(entry.rfilename, pattern) for pattern in patterns) and ("/" not in entry.rfilename or meta or include)
    )
    if not files:
        raise NotFoundError(f"{name} holds no file that matches {', '.join(patterns)}", hint="name what to take: --include '*.gguf'")
    return PullPlan(name=name, revision=revision, target=pulled_path(name), files=files)


def check_disk(plan: PullPlan) -> None:
    """Raises DoesNotFitError, with both numbers, if the disk cannot hold what is missing and a little more."""
    free = free_disk(plan.target)
    if plan.missing_bytes + _RESERVE_BYTES > free:
        raise DoesNotFitError(
            f"{plan.name} needs {gib(plan.missing_bytes)} more and {plan.target} has {gib(free)} free",
            hint=f"make room, or set HERD_HOME to a larger disk (models are in {models_dir()})",
        )


def pull(plan: PullPlan, *, report: Report | None = None, download: Callable[..., Any] | None = None) -> Path:
    """Fetch a plan's files into its target and return it. Files that are here in full are not fetched again; a broken one resumes.

    Raises DoesNotFitError before the first byte, DownloadError if the line breaks.
    """
    check_disk(plan)
    if download is None:
        from huggingface_hub import hf_hub_download

        download = hf_hub_download
    done = 0
    for file in sorted(plan.files, key=lambda file: file.size_bytes):
        if report is not None:
            report(done, file.name)
        try:
            download(repo_id=plan.name, filename=file.name, revision=plan.revision, local_dir=str(plan.target))
        except Exception as error:
            raise _failed(plan.name, error) from error
        done += file.size_bytes
        if report is not None:
            report(done, file.name)
    return plan.target
