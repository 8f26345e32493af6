"""Damaged, hostile and mistaken input through the command line: the right exit code, a named error with a hint, and nothing left behind."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import zstandard
from test_malformed_gguf import HUGE, MALFORMED, counts, key, one_tensor  # pyright: ignore[reportMissingImports]
from test_malformed_hf import (  # pyright: ignore[reportMissingImports]
    duplicate_key,
    extend,
    header_over_the_file,
    huge_header,
    overlap,
    put,
    with_bytes,
    with_config,
    with_header,
    with_norm,
    with_tensors,
)
from test_malformed_meta import Bomb  # pyright: ignore[reportMissingImports]

from herd.base.config_io import to_toml
from herd.checkpoint.convert import convert
from herd.cli.app import run
from herd.recipes.registry import find_recipe
from herd.text.bpe_train import train_bpe
from tiny_model import TEXT, tiny_folder, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

NORM = "model.norm.weight"
NO_SPACE = OSError(28, "No space left on device")
Words = list[str]
Fault = Callable[[Path], Words]
"""Prepares what is wrong in the working folder, where `model` is a sound one; returns the command line that meets it."""


class Command:
    """Runs herd in the working folder and looks at what it did."""

    def __init__(self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self._capsys, self._monkeypatch = here, capsys, monkeypatch

    def refuses(self, fault: Fault, code: int, fragment: str, *, stdin: bytes = b"") -> str:
        """Assert that the command line is refused as it must be; returns what was on stdout."""
        words = fault(self.here)
        before = everything(self.here)
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._capsys.readouterr()
        found = run(words)
        out, err = self._capsys.readouterr()
        assert found == code, err
        assert "Traceback" not in err and "herd failed" not in err
        message, _, hint = err[err.index("error: ") :].partition("\n\nhint: ")
        assert fragment in message and hint.strip()
        assert everything(self.here) == before, "a command that is refused leaves nothing behind and changes nothing"
        return out


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """Every file below a folder with its content, folders and links by name; without the packed weights, which any sound model leaves."""
    found: dict[str, bytes | str | None] = {}
    packed = folder / "home" / "packed"
    for path in sorted(folder.rglob("*")):
        if path in (packed.parent, packed) or packed in path.parents:
            continue
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 10_000_000
        found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_bytes() if small else None
    return found


@pytest.fixture
def command(
    tmp_path: Path,
    tiny_folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """herd in a folder of its own with a sound `model`, and a home that does not exist yet."""
    for name in [name for name in os.environ if name.startswith("HERD_") and name != "HERD_KERNELS_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "model")
    return Command(tmp_path, capsys, monkeypatch)


def test_the_model_that_the_next_tests_spoil_is_sound(command: Command) -> None:
    for words in (ask(), ["show", "model"], ["verify", "model"], ["convert", "model", "out.gguf", "--to", "gguf"]):
        assert run(words) == 0


def ask(model: str = "model", prompt: str = "Hi") -> Words:
    return ["run", "--model", model, "--device", "cpu", "--max-tokens", "1", prompt]


# Checkpoints. Every command that opens one refuses it; `verify` reports it and ends with 5.


def with_index(**files: str) -> Callable[[Path], None]:
    """Weights behind an index that names these files."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        names = safetensors.torch.load_file(folder / "model-00001-of-00001.safetensors")
        weight_map = dict.fromkeys(names, "model-00001-of-00001.safetensors") | {NORM: next(iter(files.values()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def truncated(keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(len(content) * keep)])

    return damage


def without_config_key(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config[name]
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def huge_config(folder: Path) -> None:
    with open(folder / "config.json", "ab") as file:
        file.truncate(200_000_000)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights of no bytes": (with_bytes("model.safetensors", b""), "too few for a header"),
    "weights that are a pointer of git-lfs": (
        with_bytes("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n" * 3),
        "header",
    ),
    "weights cut in half": (truncated(0.5), "data_offsets"),
    "weights cut in the header": (truncated(0.001), "header claims"),
    "weights with bytes behind the end": (extend, "4 bytes at its end"),
    "a header of 2**63 bytes": (huge_header, "9,223,372,036,854,775,808"),
    "a header over the end": (header_over_the_file, "at most 2"),
    "a header that is no JSON": (lambda folder: put(folder, b"{]", b""), "not valid JSON"),
    "a header that is not UTF-8": (lambda folder: put(folder, b'{"\xff":1}', b""), "not valid JSON"),
    "a header nested 100,000 deep": (lambda folder: put(folder, b'{"a":' * 100_000, b""), "model.safetensors"),
    "a tensor named twice": (duplicate_key, "twice"),
    "tensors that overlap": (with_header(overlap), "overlaps"),
    "offsets beyond the file": (with_norm(data_offsets=[2**40, 2**40 + 128]), "data_offsets"),
    "a shape whose size overflows": (with_norm(shape=[2**62, 2**62]), "needs"),
    "an unknown dtype": (with_norm(dtype="F12"), "F12"),
    "a missing tensor": (with_tensors(**{NORM: None}), NORM),
    "a tensor of another shape": (with_tensors(**{NORM: torch.ones(33)}), "[33]"),
    "a tensor too many": (with_tensors(**{"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}), "q_proj.bias"),
    "a tensor of integers": (with_tensors(**{NORM: torch.ones(32, dtype=torch.int64)}), "I64"),
    "an index that leads up": (with_index(norm="../secret.safetensors"), "../secret.safetensors"),
    "an index that leads to the root": (with_index(norm="/etc/secret.safetensors"), "/etc/secret.safetensors"),
    "an index to a pickle": (with_index(norm="pytorch_model.bin"), "pytorch_model.bin"),
    "an index with a null": (with_index(norm="a\0.safetensors"), "no .safetensors file of the folder"),
    "an index to a missing file": (with_index(norm="model-00002-of-00002.safetensors"), "not there"),
    "a config that is no JSON": (with_bytes("config.json", b"{"), "config.json is not valid JSON"),
    "a config that is a list": (with_bytes("config.json", b"[]"), "holds a JSON list"),
    "a config that is not UTF-8": (with_bytes("config.json", b'{"model_type": "ll\xffama"}'), "config.json is not valid JSON"),
    "a config with NaN": (with_config(rope_theta=float("nan")), "NaN is not a JSON number"),
    "a config with a number of 5,000 digits": (with_bytes("config.json", b'{"hidden_size": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "a config nested 100,000 deep": (with_bytes("config.json", b"[" * 100_000), "config.json is not valid JSON"),
    "a config of 200 MB": (huge_config, "over the limit"),
    "a config of another architecture": (with_config(architectures=["GPT2LMHeadModel"], model_type="gpt2"), "GPT2LMHeadModel"),
    "a config of no architecture": (with_bytes("config.json", b"{}"), "no architecture"),
    "a config without the hidden size": (without_config_key("hidden_size"), "has no hidden_size"),
    "a config whose hidden size is text": (with_config(hidden_size="32"), "must be an integer"),
    "a config whose hidden size is true": (with_config(hidden_size=True), "must be an integer"),
    "a config of zero heads": (with_config(num_attention_heads=0), "num_attention_heads"),
    "a config of a negative vocabulary": (with_config(vocab_size=-1), "vocab_size"),
    "a config of a billion layers": (with_config(num_hidden_layers=10**9), "1000000000"),
    "a config of another vocabulary": (with_config(vocab_size=577), "577"),
    "a config of heads that do not share": (with_config(num_key_value_heads=3), "3 KV heads"),
    "a config of another scaling": (with_config(rope_parameters=None, rope_scaling={"rope_type": "yarn", "factor": 2}), "yarn"),
    "a config of quantised weights": (with_config(quantization_config={"quant_method": "aqlm"}), "aqlm"),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize(
    "words", [ask(), ["show", "model", "--json"], ["convert", "model", "out", "--to", "meta"]], ids=lambda words: words[0]
)
def test_a_damaged_checkpoint_is_refused(command: Command, case: str, words: Words) -> None:
    damage, fragment = DAMAGED[case]
    damage(command.here / "model")
    assert command.refuses(lambda _: words, 1, fragment) == ""


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint_fails_its_verification(command: Command, case: str) -> None:
    damage, fragment = DAMAGED[case]
    damage(command.here / "model")
    report = json.loads(command.refuses(lambda _: ["verify", "model", "--json"], 5, "problem(s)"))
    assert report["ok"] is False and any(fragment in problem["message"] for problem in report["problems"])


GGUF = {
    "nothing": b"",
    "another format": MALFORMED["another format"],
    "a magic and nothing more": b"GGUF\x03",
    "an unknown version": MALFORMED["version 99"],
    "2**60 tensors": counts(HUGE, 0) + bytes(64),
    "a string of 2**60 bytes": MALFORMED["a string of 2**60 bytes"],
    "an array of 2**60 numbers": MALFORMED["an array of 2**60 numbers"],
    "arrays nested 1000 deep": MALFORMED["arrays nested 1000 deep"],
    "a key that is not UTF-8": MALFORMED["a key that is not UTF-8"],
    "an alignment of zero": counts(0, 1) + key("general.alignment", 4, bytes(4)) + bytes(64),
    "a tensor of 2**60 values": one_tensor([HUGE]),
    "a tensor whose size overflows": MALFORMED["a tensor whose size overflows 64 bits"],
    "data that is cut short": MALFORMED["data that is cut short"],
    "tensors that overlap": MALFORMED["tensors that overlap"],
}


@pytest.mark.parametrize("case", GGUF)
def test_a_damaged_gguf_file_is_refused_by_every_command(command: Command, case: str) -> None:
    (command.here / "bad.gguf").write_bytes(GGUF[case])
    for words in (ask("bad.gguf"), ["show", "bad.gguf"], ["convert", "bad.gguf", "out", "--to", "hf"]):
        command.refuses(lambda _, words=words: words, 1, "bad.gguf")
    command.refuses(lambda _: ["verify", "bad.gguf"], 5, "1 problem(s)")


def meta_with(change: Callable[[Path], object]) -> Fault:
    """A Meta folder with something wrong."""

    def fault(here: Path) -> Words:
        convert(here / "model", here / "meta", to="meta")
        change(here / "meta")
        return ask("meta")

    return fault


def bomb(folder: Path) -> None:
    torch.save({"norm.weight": Bomb(str(folder.parent / "bang"))}, folder / "consolidated.00.pth")


def bare_bomb(folder: Path) -> None:
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Bomb(str(folder.parent / "bang"))))


def half(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])


# Tokenizers.


def with_tokenizer(vocab_size: int) -> Fault:
    """The model with a tokenizer of another size."""

    def fault(here: Path) -> Words:
        train_bpe([TEXT] * 4, vocab_size).save(here / "model")
        return ask()

    return fault


def with_tokenizer_model(content: bytes | Callable[[bytes], bytes]) -> Fault:
    def fault(here: Path) -> Words:
        path = here / "model" / "tokenizer.model"
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))
        return ask()

    return fault


def with_tokenizer_json(change: bytes | Callable[[dict[str, Any]], object]) -> Fault:
    """The model with a changed tokenizer.json alone."""

    def fault(here: Path) -> Words:
        (here / "model" / "tokenizer.model").unlink()
        path = here / "model" / "tokenizer.json"
        if isinstance(change, bytes):
            path.write_bytes(change)
        else:
            data = json.loads(path.read_text(encoding="utf-8"))
            change(data)
            path.write_text(json.dumps(data))
        return ask()

    return fault


def huge_tokenizer(here: Path) -> Words:
    with open(here / "model" / "tokenizer.model", "ab") as file:
        file.truncate(100 * 2**20)
    return ask()


def no_tokenizer(here: Path) -> Words:
    for path in (here / "model").glob("tokenizer*"):
        path.unlink()
    return ask()


def split_of(data: dict[str, Any]) -> dict[str, Any]:
    return data["pre_tokenizer"]["pretokenizers"][0]


# Settings, recipes, data, targets.


def settings(content: str | bytes, words: Words | None = None) -> Fault:
    """A herd.toml in the working folder."""

    def fault(here: Path) -> Words:
        (here / "herd.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return words or ["config", "show"]

    return fault


def recipe(change: Callable[[str], str] | bytes) -> Fault:
    """The config of a run, changed."""

    def fault(here: Path) -> Words:
        text = to_toml(find_recipe("tiny"))
        (here / "recipe.toml").write_bytes(change if isinstance(change, bytes) else change(text).encode())
        return ["train", "recipe.toml", "--dry-run"]

    return fault


def replaced(old: str, new: str) -> Fault:
    return recipe(lambda text: text.replace(old, new, 1))


def data(name: str, content: bytes, vocab_size: int = 256) -> Fault:
    """A file of training text."""

    def fault(here: Path) -> Words:
        (here / name).write_bytes(content)
        return ["tokenizer", "train", name, "-o", "out", "--vocab-size", str(vocab_size)]

    return fault


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def zeros(num_mib: int) -> bytes:
    """A zstd file of a few kilobytes that unpacks to so many MiB without one line end."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(num_mib)) + compressor.flush()


def occupied(target: str, to: str) -> Fault:
    def fault(here: Path) -> Words:
        (here / "precious").mkdir()
        (here / "precious" / "file.gguf").write_text("mine")
        return ["convert", "model", target, "--to", to]

    return fault


def below_a_file(words: Words) -> Fault:
    def fault(here: Path) -> Words:
        (here / "file").touch()
        (here / "text.txt").write_text(TEXT)
        return words

    return fault


def link(name: str, target: str, words: Words) -> Fault:
    def fault(here: Path) -> Words:
        path = here / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return words

    return fault


def two_gguf_files(here: Path) -> Words:
    (here / "both").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (here / "both" / name).write_bytes(b"GGUF")
    return ask("both")


def always(*words: str) -> Fault:
    return lambda _: list(words)


NOT_UTF8 = b"one\xe9".decode("utf-8", "surrogateescape")

CASES: dict[str, tuple[Fault, int, str]] = {
    "a pickle that runs a command": (meta_with(bomb), 1, "its pickle calls"),
    "a bare pickle that runs a command": (meta_with(bare_bomb), 1, "not a zip archive"),
    "a shard cut in half": (meta_with(half("consolidated.00.pth")), 1, "cut short"),
    "params cut in half": (meta_with(half("params.json")), 1, "params.json is not valid JSON"),
    "params with infinity": (meta_with(with_bytes("params.json", b'{"dim": Infinity}')), 1, "Infinity"),
    "no shards": (meta_with(lambda folder: (folder / "consolidated.00.pth").unlink()), 3, "no weights"),
    "a tokenizer of more ids than the model has rows": (with_tokenizer(330), 1, "the tokenizer has 586 ids, the model only 576 rows"),
    "a tokenizer of sentencepiece": (with_tokenizer_model(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n"), 1, "`base64 rank`"),
    "a tokenizer cut short": (with_tokenizer_model(lambda content: content[:1000]), 1, "tokenizer.model"),
    "a tokenizer without bytes": (with_tokenizer_model(base64.b64encode(b"a") + b" 0\n"), 1, "lacks 255 of the 256 single bytes"),
    "a tokenizer of no bytes at all": (with_tokenizer_model(b""), 1, "lacks 256"),
    "a tokenizer that is not UTF-8": (with_tokenizer_model(lambda content: b"\xff\xfe 0\n" + content), 1, "is not base64"),
    "a tokenizer with a token twice": (
        with_tokenizer_model(lambda content: content + content.splitlines()[0][:-1] + b"320\n"),
        1,
        "there twice",
    ),
    "a tokenizer with a hole": (with_tokenizer_model(lambda content: b"".join(content.splitlines(True)[1:])), 1, "rank"),
    "a tokenizer of 100 MB": (huge_tokenizer, 1, "104,857,600 bytes"),
    "no tokenizer": (no_tokenizer, 3, "no tokenizer.model or tokenizer.json"),
    "a tokenizer.json that is no JSON": (with_tokenizer_json(b"{"), 1, "is not JSON"),
    "a tokenizer.json that is not UTF-8": (with_tokenizer_json(b'{"model": "\xff"}'), 1, "is not JSON"),
    "a tokenizer.json nested deeply": (with_tokenizer_json(b"[" * 100_000), 1, "is not JSON"),
    "a tokenizer.json that is a list": (with_tokenizer_json(b"[]"), 1, "list, not an object"),
    "a tokenizer.json of another kind": (with_tokenizer_json(lambda data: data["model"].update(type="WordPiece")), 1, "'WordPiece' model"),
    "a tokenizer.json of GPT-2": (with_tokenizer_json(lambda data: data.update(pre_tokenizer={"type": "ByteLevel"})), 1, "does not split"),
    "a tokenizer.json with another split": (
        with_tokenizer_json(lambda d: split_of(d)["pattern"].update(Regex=r"\w+")),
        1,
        "not as Llama 3",
    ),
    "a tokenizer.json that normalises": (with_tokenizer_json(lambda data: data.update(normalizer={"type": "NFKC"})), 1, "normalises"),
    "a tokenizer.json with an id of text": (with_tokenizer_json(lambda data: data["model"]["vocab"].update(zz="7")), 1, "has the id '7'"),
    "a tokenizer.json with a stray merge": (
        with_tokenizer_json(lambda data: data["model"]["merges"].append(["q", "q"])),
        1,
        "makes no token",
    ),
    "a tokenizer.json without Llama's tokens": (with_tokenizer_json(lambda data: data.update(added_tokens=[])), 1, "no special token"),
    "a prompt that is not UTF-8": (always(*ask(prompt=NOT_UTF8)), 1, "the prompt is not UTF-8"),
    "instructions that are not UTF-8": (always(*ask(), "--system", NOT_UTF8), 1, "--system is not UTF-8"),
    "a prompt over the context": (always(*ask(prompt="grazes " * 600)), 4, "the model's context is 512"),
    "raw text over the context": (always(*ask(prompt="grazes " * 600), "--raw"), 4, "the model's context is 512"),
    "a token id out of range": (always("tokenizer", "decode", "-m", "model", "576"), 1, "token id 576 is out of range"),
    "a token id of 30 digits": (always("tokenizer", "decode", "-m", "model", "9" * 30), 1, "out of range"),
    "a negative token id": (always("tokenizer", "decode", "-m", "model", "--", "-1"), 1, "token id -1"),
    "an unwritten number of threads": (always(*ask(), "--threads", "9" * 30), 2, "threads is"),
    "a herd.toml that is no TOML": (settings("model = \n"), 1, "is not TOML"),
    "a herd.toml that is not UTF-8": (settings(b'model = "\xff"\n'), 1, "is not TOML"),
    "a herd.toml nested without end": (settings("x = " + "[" * 100_000), 1, "is not TOML"),
    "a herd.toml with a number of 5,000 digits": (settings("threads = " + "9" * 5000), 1, "is not TOML"),
    "a herd.toml with an unknown key": (settings("mudel = 'x'\n"), 1, "unknown setting 'mudel'"),
    "a herd.toml with text for a number": (settings('temperature = "hot"\n'), 1, "temperature is 'hot'"),
    "a herd.toml with true for a number": (settings("threads = true\n"), 1, "threads is True"),
    "a herd.toml with a table for a name": (settings("[model]\nname = 'x'\n"), 1, "model is {'name': 'x'}"),
    "a herd.toml with NaN": (settings("temperature = nan\n", ask()), 2, "temperature is nan"),
    "a herd.toml with too many threads": (settings(f"threads = {10**15}\n", ask()), 2, "threads is 1000000000000000"),
    "a herd.toml with a null in a path": (settings('model = "a\\u0000b"\n', ["run", "Hi"]), 3, "there is no model"),
    "a recipe that is no TOML": (recipe(b"name ="), 1, "not TOML"),
    "a recipe that is not UTF-8": (recipe(b'name = "\xff"'), 1, "not UTF-8"),
    "a recipe of nothing": (recipe(b""), 1, "is missing"),
    "a recipe of another schema": (replaced("schema_version = 1", "schema_version = 99"), 1, "schema_version 99"),
    "a recipe with an unknown key": (replaced("num_steps", "num_stpes"), 1, "num_stpes"),
    "a recipe with text for a number": (replaced("num_steps = 200", 'num_steps = "many"'), 1, "num_steps is 'many'"),
    "a recipe with NaN": (replaced("lr = 0.004", "lr = nan"), 1, "lr is nan"),
    "a recipe of a list for a table": (replaced("[tokenizer]", "[[tokenizer]]"), 1, "tokenizer"),
    "a recipe that contradicts itself": (replaced("vocab_size = 1024", "vocab_size = 1000"), 1, "1280 rows for a tokenizer of 1000"),
    "a recipe that is a folder": (lambda here: (here / "r.toml").mkdir() or ["train", "r.toml"], 3, "no config file"),
    "a recipe whose name leads out": (
        lambda here: [*replaced('name = "tiny"', 'name = "../../outside"')(here)[:2], "pretrain.num_steps=1", "pretrain.warmup_steps=0"],
        1,
        "'../../outside', which is no name of a folder",
    ),
    "data that is not UTF-8": (data("text.txt", b"fine\none\xe9\n"), 1, "UTF-8"),
    "data that is no JSON": (data("text.jsonl", b'{"text": "a"}\n{"text": \n'), 1, "line 2"),
    "data of numbers": (data("text.jsonl", b"7\n"), 1, "not an object"),
    "data nested deeply": (data("text.jsonl", b"[" * 100_000), 1, "not JSON"),
    "data with half a surrogate": (data("text.jsonl", b'{"text": "\\ud800"}\n'), 1, "surrogate"),
    "data without text": (data("text.jsonl", b'{"title": "a"}\n'), 1, "title"),
    "data whose messages are a number": (data("text.jsonl", b'{"messages": 5}\n'), 1, "messages"),
    "data that is not packed as it says": (data("text.txt.zst", b"plain text"), 1, "damaged or not compressed"),
    "data cut short": (data("text.txt.zst", packed(TEXT.encode() * 200)[:-40]), 1, "damaged"),
    "data cut short in gzip": (data("text.txt.gz", gzip.compress(bytes(range(256)) * 40)[:-20]), 1, "text.txt.gz"),
    "data that unpacks to 16 MiB without a line end": (data("text.jsonl.zst", zeros(16)), 1, "text.jsonl.zst, line 1: not JSON"),
    "data of another kind": (data("text.docx", b"PK"), 1, "neither"),
    "data cut short in parquet": (data("text.parquet", b"PAR1"), 1, "no whole Parquet file"),
    "data that is not there": (always("tokenizer", "train", "none.txt", "-o", "out"), 3, "there is no file at none.txt"),
    "data too short for the vocabulary": (data("text.txt", b"a b c", 300), 1, "of the 300 asked for"),
    "a target that is not empty": (occupied("precious", "meta"), 2, "exists and is not empty"),
    "a target that is a file": (occupied("precious/file.gguf", "hf"), 2, "exists and is not empty"),
    "a target file that is there": (occupied("precious/file.gguf", "gguf"), 2, "exists"),
    "a target that is a folder for a file": (occupied("precious", "gguf"), 2, "not the name of a GGUF file"),
    "a target that is the source": (always("convert", "model", "model", "--to", "meta"), 2, "exists and is not empty"),
    "a target around the source": (always("convert", "model", ".", "--to", "meta", "--overwrite"), 2, "lies inside the destination"),
    "a target that cannot be made": (below_a_file(["convert", "model", "file/out", "--to", "hf"]), 3, "cannot write below"),
    "a target file that cannot be made": (below_a_file(["convert", "model", "file/out.gguf", "--to", "gguf"]), 3, "cannot write below"),
    "a tokenizer that cannot be written": (
        below_a_file(["tokenizer", "train", "text.txt", "-o", "file/out", "--vocab-size", "256"]),
        3,
        "cannot write below",
    ),
    "a model that is a text": (lambda here: (here / "x.txt").touch() or ask("x.txt"), 3, "not a checkpoint"),
    "a model that is one file of many": (always(*ask("model/model.safetensors")), 2, "one file of a checkpoint"),
    "a model that is an empty folder": (lambda here: (here / "empty").mkdir() or ask("empty"), 3, "it holds nothing"),
    "a folder of two models": (two_gguf_files, 2, "holds 2 GGUF files"),
    "a link to nothing": (link("model", "gone", ask()), 3, "there is no model 'model'"),
    "a link to itself": (link("model", "model", ask()), 3, "there is no model 'model'"),
    "weights that are a link to themselves": (link("model/model.safetensors", "model.safetensors", ask()), 3, "no weights"),
    "a name of 5,000 letters": (always(*ask("m" * 5000)), 3, "there is no model"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_refused_by_name(command: Command, case: str) -> None:
    fault, code, fragment = CASES[case]
    assert command.refuses(fault, code, fragment) == ""


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["run", "-m", "model"], "the prompt on stdin is not UTF-8: invalid continuation byte at byte 3"),
        (["tokenizer", "encode", "-m", "model"], "the text on stdin is not UTF-8"),
        (["tokenizer", "decode", "-m", "model"], "the list of token ids on stdin is not UTF-8"),
        (["chat", "-m", "model"], "line 1 on stdin is not UTF-8"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_stdin_that_is_not_utf8_is_refused(command: Command, words: Words, fragment: str) -> None:
    assert command.refuses(always(*words), 1, fragment, stdin=b"one\xe9s") == ""


@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(command: Command, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000))
    command.refuses(always("convert", "model", "out.gguf", "--to", to), 4, "has 1,000 free")


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "model", "out", "--to", "hf"],
        ["convert", "model", "out", "--to", "meta"],
        ["convert", "model", "out.gguf", "--to", "gguf"],
        ["tokenizer", "train", "text.txt", "-o", "out", "--vocab-size", "256"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_a_disk_that_becomes_full_while_writing_leaves_nothing(command: Command, monkeypatch: pytest.MonkeyPatch, words: Words) -> None:
    (command.here / "text.txt").write_text(TEXT)

    def full(_: int) -> None:
        raise NO_SPACE

    monkeypatch.setattr("os.fsync", full)
    command.refuses(always(*words), 4, "No space left on device")


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil.safetensors", "a\\..\\evil.safetensors"])
def test_a_repository_whose_files_lead_out_of_it_is_not_fetched(command: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = [SimpleNamespace(rfilename=name, size=4, lfs=None, blob_id=None)]
    api = SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(sha="0" * 40, siblings=files))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: pytest.fail("a file was fetched"))
    command.refuses(always("pull", "ORG/Model", "--include", "*"), 1, "leads out of its folder")
