"""An engine in a Python of its own, driven by lines of JSON: `python foreign_worker.py openvino|ctranslate2 FOLDER THREADS`.

Runs where herd is not installed, so it imports nothing of it. First line out: {"load_s", "peak_rss"}. Then for each line in, {"prompts":
[[ids]], "new": n}, greedy and never stopping early, a line {"seconds", "peak_rss"} comes back; or {"error"}, and the end.
"""

import json
import sys
import time
from pathlib import Path


def peak_rss():
    """The most memory this process has had in use, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def openvino(folder, threads):
    """OpenVINO GenAI's continuous batching, everything as shipped but the prefix cache, which would spare the second prompt."""
    import numpy
    import openvino as ov  # pyright: ignore[reportMissingImports]
    import openvino_genai as genai  # pyright: ignore[reportMissingImports]

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 4096
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}, {})

    def run(prompts, new):
        config = genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens, config.ignore_eos, config.do_sample = new, new, True, False
        ids = [ov.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        found = pipeline.generate(ids, [config] * len(ids))
        return [len(one.m_generation_ids[0]) for one in found]

    return run


def ctranslate2(folder, threads):
    """CTranslate2's generator in int8; its words are looked up, since it takes no ids."""
    import ctranslate2  # pyright: ignore[reportMissingImports]

    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1)
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def run(prompts, new):
        found = generator.generate_batch(
            [[words[token] for token in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            max_batch_size=0,
        )
        return [len(one.sequences_ids[0]) for one in found]

    return run


def main():
    """Load, then answer until the input ends."""
    started = time.perf_counter()
    try:
        run = {"openvino": openvino, "ctranslate2": ctranslate2}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
        print(json.dumps({"load_s": time.perf_counter() - started, "peak_rss": peak_rss()}), flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            begun = time.perf_counter()
            counts = run(task["prompts"], task["new"])
            took = time.perf_counter() - begun
            if counts != [task["new"]] * len(task["prompts"]):
                raise RuntimeError(f"asked for {task['new']} tokens of {len(task['prompts'])} prompts, got {counts}")
            print(json.dumps({"seconds": took, "peak_rss": peak_rss()}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:2000]}), flush=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
