"""Loading: herd and transformers from one safetensors folder of random bfloat16 weights, and herd from its GGUF and Meta conversions.

    python -m benchmarks.load [--size 0.2 1] [--json FILE]

Every measurement is a fresh process: seconds until the model is there, until the first logits of a short prompt, and the most memory in
use at both points, libraries included and as a multiple of the weights over what the libraries took. The files are warm, just written.
The first logits of both have to agree before a figure counts.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

PACKAGES = ("llama-herd", "torch", "transformers", "safetensors")
GB = 1_000_000_000
_VOCAB = 8448
_PROMPT = list(range(1, 17))
_FORMATS = ("hf", "gguf", "meta")
_AGREE = 0.05
_FIGURES = (
    "load_s",
    "first_logits_s",
    "load_rss_bytes",
    "first_logits_rss_bytes",
    "load_rss_over_weights",
    "first_logits_rss_over_weights",
)


def make(folder: Path, size_gb: float) -> dict[str, Any]:
    """Write random weights of about `size_gb` in the three formats below `folder`."""
    import torch

    from herd.checkpoint.convert import convert
    from herd.checkpoint.load import save_model
    from herd.model.config import ModelConfig
    from herd.model.init import initialise
    from herd.model.transformer import Transformer

    dim, heads = (1024, 16) if size_gb < 0.6 else (2048, 32)

    def sized(layers: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=_VOCAB,
            hidden_size=dim,
            intermediate_size=dim * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 4,
            head_dim=64,
            max_position_embeddings=2048,
        )

    one = sized(1)
    config = sized(max(1, round((size_gb * GB / 2 - one.num_parameters_embedding) / one.num_parameters_layer)))
    with torch.device("meta"):
        model = Transformer(config)
    save_model(initialise(model, seed=0, dtype=torch.bfloat16), folder / "hf")
    convert(folder / "hf", folder / "gguf.gguf", to="gguf")
    convert(folder / "hf", folder / "meta", to="meta")
    return {"num_parameters": config.num_parameters, "weights_bytes": 2 * config.num_parameters, "layers": config.num_hidden_layers}


def _herd(path: str) -> tuple[Callable[[], Any], Callable[[Any, Any], Any]]:
    """How herd loads, and how it gives the logits after the prompt; libraries are imported here."""
    from herd.checkpoint.load import load_model

    return lambda: load_model(path), lambda model, tokens: model(tokens)[0, -1]


def _transformers(path: str) -> tuple[Callable[[], Any], Callable[[Any, Any], Any]]:
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401  the class that the file names, imported before the clock starts
    from transformers.utils import logging

    logging.disable_progress_bar()
    return lambda: AutoModelForCausalLM.from_pretrained(path, dtype="auto"), lambda model, tokens: model(tokens).logits[0, -1].float()


def measure(peer: str, path: str) -> dict[str, Any]:
    """One load in this process."""
    started = time.perf_counter()
    import torch

    load, first_logits = (_herd if peer == "herd" else _transformers)(path)
    imported = time.perf_counter()
    libraries = harness.peak_rss_bytes()
    with torch.inference_mode():
        model = load()
        loaded, loaded_rss = time.perf_counter(), harness.peak_rss_bytes()
        logits = first_logits(model, torch.tensor([_PROMPT]))
        values = logits.tolist()
    return {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "first_logits_s": time.perf_counter() - imported,
        "libraries_rss_bytes": libraries,
        "load_rss_bytes": loaded_rss,
        "first_logits_rss_bytes": harness.peak_rss_bytes(),
        "logits": values,
    }


def _paths(folder: Path) -> dict[str, tuple[str, Path]]:
    """What is measured: a name, and who loads which path."""
    return {
        "herd hf": ("herd", folder / "hf"),
        "transformers hf": ("transformers", folder / "hf"),
        "herd gguf": ("herd", folder / "gguf.gguf"),
        "herd meta": ("herd", folder / "meta"),
    }


def compare(size_gb: float, repeats: int) -> dict[str, Any]:
    """All of them on one size; printed and returned."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = harness.child("benchmarks.load", "--child", "make", "--path", name, "--size", str(size_gb))
        records: dict[str, list[dict[str, Any]]] = {what: [] for what in _paths(folder)}
        for turn in range(repeats + 1):
            for what, (peer, path) in list(_paths(folder).items())[:: -1 if turn % 2 else 1]:
                record = harness.child("benchmarks.load", "--child", peer, "--path", str(path), variables={"HF_HUB_OFFLINE": "1"})
                if turn:  # the first turn only warms the files
                    records[what].append(record)
    difference = _difference(records)
    if difference > _AGREE:
        raise SystemExit(f"error: the first logits differ by {difference:.3f} of their size (limit {_AGREE})")
    results = {what: _summary(found, made["weights_bytes"]) for what, found in records.items()}
    _print(made, results, repeats)
    herd, peer = results["herd hf"], results["transformers hf"]
    ratios = {f"herd_over_transformers_{figure}": herd[figure]["median"] / peer[figure]["median"] for figure in _FIGURES}
    return {**made, "logits_difference": difference, "loads": results, "ratios": ratios}


def _difference(records: dict[str, list[dict[str, Any]]]) -> float:
    """The largest distance of any logits from herd's, over the size of the largest; takes the logits out of the records."""
    logits: dict[str, Sequence[float]] = {}
    for what, found in records.items():
        for record in found:
            logits[what] = record.pop("logits")
    reference = logits["herd hf"]
    scale = max(map(abs, reference))
    return max(abs(one - other) for values in logits.values() for one, other in zip(values, reference, strict=True)) / scale


def _summary(records: list[dict[str, Any]], weights_bytes: int) -> dict[str, Any]:
    for record in records:
        for point in ("load", "first_logits"):
            record[f"{point}_rss_over_weights"] = (record[f"{point}_rss_bytes"] - record["libraries_rss_bytes"]) / weights_bytes
    return {figure: harness.summary([record[figure] for record in records]) for figure in ("import_s", "libraries_rss_bytes", *_FIGURES)}


def _print(made: dict[str, Any], results: dict[str, Any], repeats: int) -> None:
    print(f"loading {made['weights_bytes'] / GB:.2f} GB of bfloat16, {made['layers']} layers, medians of {repeats}")
    rows = []
    for what, result in results.items():
        times = [f"{result[figure]['median']:.3f}" for figure in ("import_s", "load_s", "first_logits_s")]
        sizes = [f"{result[figure]['median'] / 2**20:,.0f}" for figure in ("load_rss_bytes", "first_logits_rss_bytes")]
        shares = [f"{result[figure]['median']:.2f} x" for figure in ("load_rss_over_weights", "first_logits_rss_over_weights")]
        rows.append((what, *times, sizes[0], shares[0], sizes[1], shares[1]))
    harness.table(("", "import s", "load s", "first logits s", "load MiB", "/weights", "logits MiB", "/weights"), rows)


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=5)
    options.add_argument(
        "--size", type=float, nargs="+", default=[0.2], help="GB of weights (default 0.2; the published figures have 0.2 and 1)"
    )
    options.add_argument("--child", choices=("make", "herd", "transformers"), help="internal: one measurement in this process")
    options.add_argument("--path", help="internal: what to load or where to write")
    chosen = options.parse_args()
    if chosen.child == "make":
        print(json.dumps(make(Path(chosen.path), chosen.size[0])))
    elif chosen.child:
        print(json.dumps(measure(chosen.child, chosen.path)))
    else:
        results = {f"{size:g} GB": compare(size, chosen.repeats) for size in chosen.size}
        harness.report(chosen.json, "load", PACKAGES, results)


if __name__ == "__main__":
    main()
