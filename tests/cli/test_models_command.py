"""`herd models` and `herd pull`: what is here, what short names stand for, and fetching, with a stand-in for the hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.base.registry import ALIASES

COMMIT = "0123456789abcdef"


class GatedRepoError(Exception):
    """Named as huggingface_hub names it."""


class RepositoryNotFoundError(Exception):
    """Named as huggingface_hub names it."""


class Hub:
    """A hub with one repository; `fetched` has what was asked for. `fails` maps file names to what fetching them raises."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.fetched: list[tuple[str, str, str]] = []
        self.fails: dict[str, Exception] = {}
        self.refuses: Exception | None = None
        self.cuts: set[str] = set()

    def model_info(self, name: str, *, revision: str, files_metadata: bool) -> Any:
        assert files_metadata
        if self.refuses is not None:
            raise self.refuses
        entries = [SimpleNamespace(rfilename=name, size=len(data), lfs=None, blob_id=None) for name, data in self.files.items()]
        return SimpleNamespace(sha=COMMIT, siblings=entries)

    def download(self, *, repo_id: str, filename: str, revision: str, local_dir: str) -> None:
        self.fetched.append((repo_id, filename, revision))
        if filename in self.fails:
            raise self.fails[filename]
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[filename][: -1 if filename in self.cuts else None])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Callable[..., Hub]:
    """Puts a hub up that holds the tiny model and other files."""

    def make(**others: bytes) -> Hub:
        files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()} | others
        stand_in = Hub(files)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: stand_in)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", stand_in.download)
        return stand_in

    return make


def install(tiny_folder: Path, herd_home: Path, name: str) -> Path:
    target = herd_home / "models" / name
    shutil.copytree(tiny_folder, target)
    return target


def test_nothing_installed_is_an_empty_list(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: tmp_path / "no-cria")
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_guard", lambda: tmp_path / "no-guard")
    assert herd("models", "--json").json == []
    plain = herd("models")
    assert plain.code == 0 and plain.out.split() == ["name", "size", "path"] and "herd pull" in plain.err


def test_installed_models_are_listed_with_bytes_and_path(
    herd: HerdCommand, tiny_folder: Path, herd_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: tmp_path / "no-cria")
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_guard", lambda: tmp_path / "no-guard")
    first, second = install(tiny_folder, herd_home, "ORG/Model"), install(tiny_folder, herd_home, "mine")
    (herd_home / "models" / "quantised.gguf").write_bytes(b"12345")
    size = sum(file.stat().st_size for file in tiny_folder.iterdir())
    assert herd("models", "--json").json == [
        {"name": "ORG/Model", "path": str(first), "size_bytes": size},
        {"name": "mine", "path": str(second), "size_bytes": size},
        {"name": "quantised.gguf", "path": str(herd_home / "models" / "quantised.gguf"), "size_bytes": 5},
    ]
    assert [line.split()[0] for line in herd("models").out.splitlines()] == ["name", "ORG/Model", "mine", "quantised.gguf"]


def test_the_bundled_model_is_listed_first(herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: tiny_folder)
    assert [model["name"] for model in herd("models", "--json").json[:2]] == ["cria", "cria-guard"]


def test_what_fits_is_told_with_what_it_takes(
    herd: HerdCommand, tiny_folder: Path, herd_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    install(tiny_folder, herd_home, "mine")
    monkeypatch.setattr("herd.base.memory.available_memory", lambda: 2**40)
    told = {model["name"]: model for model in herd("models", "--fits", "--json").json}
    assert told["mine"]["fits"] and told["mine"]["options"] == [] and told["mine"]["needs_bytes"] > told["mine"]["size_bytes"]
    monkeypatch.setattr("herd.base.memory.available_memory", lambda: 2**20)
    lines = herd("models", "--fits").out.splitlines()
    assert lines[0].split() == ["name", "on", "disk", "to", "serve", "fits", "now"]
    assert all("no: 1.0 MiB are free" in line for line in lines[1:]) and any(line.startswith("mine") for line in lines)


def test_a_listed_name_runs(herd: HerdCommand, tiny_folder: Path, herd_home: Path) -> None:
    install(tiny_folder, herd_home, "ORG/Model")
    assert herd("run", "-m", "ORG/Model", "--max-tokens", "1", "x").code == 0
    install(tiny_folder, herd_home, ALIASES["llama3.2:1b"])
    assert herd("run", "-m", "llama3.2:1b", "--max-tokens", "1", "x").code == 0


def test_aliases_are_listed_with_what_they_stand_for(herd: HerdCommand) -> None:
    assert herd("models", "--aliases", "--json").json == ALIASES
    rows = herd("models", "--aliases").out.splitlines()
    assert "llama3.1:8b" in rows[3] and "meta-llama/Llama-3.1-8B-Instruct" in rows[3] and len(rows) == 1 + len(ALIASES)


def test_pulling_fetches_what_a_model_needs_and_it_then_answers(herd: HerdCommand, hub: Any, herd_home: Path) -> None:
    stand_in = hub(**{"README.md": b"card", "pytorch_model.bin": b"pickle", "original/params.json": b"{}", "tests/x.json": b"{}"})
    result = herd("pull", "ORG/Model")
    assert (result.code, result.out) == (0, "")
    target = herd_home / "models" / "ORG" / "Model"
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "README.md"} <= names
    assert not names & {"pytorch_model.bin", "original", "tests"}
    assert {revision for _, _, revision in stand_in.fetched} == {COMMIT}, "all files are of the one commit that was looked at"
    assert f"commit {COMMIT[:8]}" in result.err and "done: herd chat --model ORG/Model" in result.err
    assert herd("run", "-m", "ORG/Model", "--max-tokens", "1", "x").code == 0


def test_pulling_again_fetches_nothing_and_a_missing_file_alone(herd: HerdCommand, hub: Any, herd_home: Path) -> None:
    stand_in = hub()
    assert herd("pull", "ORG/Model").code == 0
    (herd_home / "models" / "ORG" / "Model" / "config.json").unlink()
    stand_in.fetched.clear()
    assert herd("pull", "ORG/Model").code == 0 and [name for _, name, _ in stand_in.fetched] == ["config.json"]
    stand_in.fetched.clear()
    again = herd("pull", "ORG/Model")
    assert again.code == 0 and stand_in.fetched == [] and "0.0 MiB of them to fetch" in again.err


def test_a_pull_is_reported_as_json_with_the_rest_on_stderr(herd: HerdCommand, hub: Any, herd_home: Path) -> None:
    hub()
    result = herd("pull", "ORG/Model", "--json")
    assert result.code == 0
    data = result.json
    assert list(data) == ["name", "path", "size_bytes", "files"]
    assert (data["name"], data["path"]) == ("ORG/Model", str(herd_home / "models" / "ORG" / "Model"))
    assert data["size_bytes"] == sum(file["size_bytes"] for file in data["files"])
    assert {file["name"] for file in data["files"]} >= {"config.json", "model.safetensors"}


def test_a_dry_run_fetches_nothing(herd: HerdCommand, hub: Any, herd_home: Path) -> None:
    stand_in = hub()
    result = herd("pull", "ORG/Model", "--dry-run", "--json")
    assert result.code == 0 and result.json["name"] == "ORG/Model"
    assert stand_in.fetched == [] and not herd_home.exists()


def test_an_alias_fetches_the_repository_it_stands_for(herd: HerdCommand, hub: Any) -> None:
    stand_in = hub()
    result = herd("pull", "llama3.2:1b")
    assert result.code == 0 and {name for name, _, _ in stand_in.fetched} == {"meta-llama/Llama-3.2-1B-Instruct"}
    assert "herd chat --model llama3.2:1b" in result.err


def test_metas_files_or_named_ones_are_taken_instead(herd: HerdCommand, hub: Any, herd_home: Path) -> None:
    hub(**{"original/params.json": b"{}", "original/consolidated.00.pth": b"weights", "m-Q8_0.gguf": b"8", "m-Q4_0.gguf": b"4"})
    assert herd("pull", "ORG/Model", "--meta").code == 0
    assert {path.name for path in (herd_home / "models/ORG/Model/original").iterdir()} == {"params.json", "consolidated.00.pth"}
    assert herd("pull", "ORG/Other", "--include", "*Q8_0.gguf").code == 0
    assert [path.name for path in (herd_home / "models/ORG/Other").iterdir()] == ["m-Q8_0.gguf"]


def test_a_pull_that_breaks_off_keeps_what_came_and_the_same_command_goes_on(herd: HerdCommand, hub: Any, herd_home: Path) -> None:
    stand_in = hub()
    stand_in.fails["model.safetensors"] = ConnectionError("the line broke\nand more")
    message, hint = herd("pull", "ORG/Model").refusal(1)
    assert message == "cannot fetch ORG/Model: ConnectionError: the line broke" and "run the same command again" in hint
    assert (herd_home / "models/ORG/Model/config.json").is_file()
    stand_in.fails.clear()
    stand_in.fetched.clear()
    assert herd("pull", "ORG/Model").code == 0
    assert "config.json" not in [name for _, name, _ in stand_in.fetched]


@pytest.mark.parametrize(
    ("error", "code", "fragments"),
    [
        (GatedRepoError("403"), 1, ("is gated", "HF_TOKEN")),
        (RepositoryNotFoundError("404"), 3, ("the hub has no ORG/Model", "check the name")),
        (ConnectionError("no route"), 1, ("cannot fetch ORG/Model", "check the network")),
        (OSError(28, "No space left on device"), 4, ("the disk became full", "make room")),
    ],
)
def test_a_refusal_of_the_hub_is_told_in_herds_words(
    herd: HerdCommand, hub: Any, herd_home: Path, error: Exception, code: int, fragments: tuple[str, str]
) -> None:
    hub().refuses = error
    message, hint = herd("pull", "ORG/Model").refusal(code)
    assert fragments[0] in message and fragments[1] in hint and not herd_home.exists()


@pytest.mark.parametrize("name", ["llama", "a/b/c", "../x", "~/model", "llama3.1:9b"])
def test_a_name_that_is_none_of_the_hubs_is_refused_without_asking(herd: HerdCommand, hub: Any, name: str) -> None:
    stand_in = hub()
    message, hint = herd("pull", name).refusal(2)
    assert f"{name!r} is not a hub name" in message and "herd models --aliases" in hint and stand_in.fetched == []


def test_a_file_that_came_short_is_refused(herd: HerdCommand, hub: Any) -> None:
    hub().cuts.add("model.safetensors")
    message, hint = herd("pull", "ORG/Model").refusal(1)
    assert "model.safetensors of ORG/Model came with" in message and "delete" in hint


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(herd: HerdCommand, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = hub()
    monkeypatch.setattr("herd.checkpoint.hub.free_disk", lambda _: 1000)
    message, hint = herd("pull", "ORG/Model").refusal(4)
    assert "1.0 GiB to spare" in message and "HERD_HOME" in hint and stand_in.fetched == []


def test_a_repository_without_weights_that_herd_reads_says_what_it_holds(herd: HerdCommand, hub: Any) -> None:
    stand_in = hub()
    stand_in.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    assert "can hold code" in herd("pull", "ORG/Model").refusal(3)[1]
    stand_in.files = {"config.json": b"{}", "model-Q8_0.gguf": b"x"}
    assert "--include" in herd("pull", "ORG/Model").refusal(3)[1]
