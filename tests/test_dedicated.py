"""Engines in processes of their own: the samples of one engine, and what happens when a process dies, hangs or is left.

Every fault is a real one: signals to real processes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from helpers.engines import CONTEXT, EOS, letters, needs_ray, options, perturb, save_model
from helpers.runs import assert_gone, family
from helpers.sampling import PROMPTS, completions, equal, teacher_forced
from transformers import AutoModelForCausalLM, PreTrainedModel

from carerft.errors import CareError, EngineError
from carerft.rollout import Rollouts, Sampling, reuse
from carerft.rollout.transformers import TransformersWorker

pytestmark = needs_ray

MANY = [[2 + i, 5, 9 + i % 7] for i in range(20)]
LONG = Sampling(390, ignore_eos=True)  # seconds of sampling, time enough to be disturbed in


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def policy(directory) -> PreTrainedModel:
    return save_model(directory)


@pytest.fixture(scope="module")
def worker(policy, directory):
    """As the second run of a sweep has it, from the first."""
    from carerft.rollout.dedicated import DedicatedWorker

    made_by = (DedicatedWorker, options(directory), 2, 300.0, 1)
    with reuse.reused(*made_by) as first:
        first.sync(policy)
        pids = [engine.pid for engine in first.engines]
    shorter = options(directory, max_model_len=CONTEXT - 1)
    with reuse.reused(DedicatedWorker, shorter, *made_by[2:]) as worker:
        assert worker is first and [engine.pid for engine in worker.engines] == pids
        assert not worker.verified  # the first sync of every run is
        worker.sync(policy)
        yield worker
    reuse.close_idle()


def disturbed(worker, number: signal.Signals) -> Rollouts:
    """Samples while the first engine's process receives a signal, a third of the way by the time of `undisturbed`."""
    pid = worker.engines[0].pid
    timer = threading.Timer(worker.seconds / 3, os.kill, (pid, number))
    timer.start()
    try:
        return worker.sample(MANY, 3, LONG, seed=0)
    finally:
        timer.join()


@pytest.fixture(scope="module")
def undisturbed(worker) -> Rollouts:
    began = time.monotonic()
    rollouts = worker.sample(MANY, 3, LONG, seed=0)
    worker.seconds = time.monotonic() - began
    return rollouts


def test_two_engines_give_the_samples_of_one(worker, policy):
    one = TransformersWorker(policy, worker.options.eos_token_ids, 0, tokenizer=letters())
    rollouts = worker.sample(PROMPTS[:3], 5, Sampling(12), seed=0)
    assert rollouts.prompt_lengths.tolist() == [5, 1, 9]
    for row, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(policy, PROMPTS[row // 5], tokens)
        torch.testing.assert_close(rollouts.log_probs[row, : len(tokens)], expected, atol=2e-5, rtol=0)
    for i, prompt in enumerate(PROMPTS[:3]):  # one prompt goes to one engine alone
        assert completions(worker.sample([prompt], 5, Sampling(12), seed=0)) == completions(rollouts)[5 * i : 5 * i + 5]
    twice = worker.sample([PROMPTS[0], PROMPTS[0]], 5, Sampling(12, ignore_eos=True), seed=0)
    assert len({tuple(tokens) for tokens in completions(twice)}) == 10  # equal prompts
    stopped = worker.sample(PROMPTS, 10, Sampling(12, stop=("c",)), seed=0)
    assert any(tokens[-1] == 2 for tokens in completions(stopped))
    assert all(bool(f) == (t[-1] in (2, EOS, 7)) for t, f in zip(completions(stopped), stopped.finished, strict=True))
    continuations = [[4, 8, 1], [2], [], [11, 0]]
    expected = one.log_likelihood(PROMPTS, continuations)
    assert worker.log_likelihood(PROMPTS, continuations) == pytest.approx(expected, abs=1e-4)


def test_an_engine_in_float32_computes_in_float32(worker):
    import ray

    calls = [
        engine.handle.__ray_call__.remote(lambda engine: os.environ.get("TRITON_F32_DEFAULT"))
        for engine in worker.engines
    ]
    assert ray.get(calls) == ["ieee", "ieee"] and worker.runner == "V1"


def test_a_killed_engine_is_replaced_and_its_prompts_sampled_again_with_the_current_weights(
    worker, policy, undisturbed
):
    pids = [engine.pid for engine in worker.engines]
    assert equal(disturbed(worker, signal.SIGKILL), undisturbed)
    assert worker.engines[0].pid != pids[0] and worker.engines[1].pid == pids[1]
    assert_gone([pids[0]])
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    perturb(policy, seed=1)
    worker.sync(policy)  # the new process, too, takes new weights
    rollouts = worker.sample(PROMPTS, 2, Sampling(12), seed=0)
    for row, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(policy, PROMPTS[row // 2], tokens)
        torch.testing.assert_close(rollouts.log_probs[row, : len(tokens)], expected, atol=2e-5, rtol=0)
    policy.load_state_dict(before)
    worker.sync(policy)


def test_an_engine_that_hangs_is_killed_and_replaced_but_not_more_often_than_allowed(worker, undisturbed):
    pid, worker.timeout_s, worker.max_restarts = worker.engines[0].pid, max(20, 10 * worker.seconds), 0
    try:
        lost = r"engine 0 gave no answer within rollout.timeout_s=.* rollout.max_restarts=0 allows no further"
        with pytest.raises(EngineError, match=lost):
            disturbed(worker, signal.SIGSTOP)
        worker.max_restarts = 1  # a further request may have its restarts; the engine hangs in it, too
        assert equal(worker.sample(MANY, 3, LONG, seed=0), undisturbed)
    finally:
        worker.timeout_s, worker.max_restarts = 300, 1
    assert worker.engines[0].pid != pid
    assert_gone([pid])


def test_an_engine_that_cannot_start_says_why(worker, directory):
    from carerft.rollout.dedicated import DedicatedWorker

    with pytest.raises(CareError, match=r"too little memory.*\n.*rollout.kv_cache_gib"):
        DedicatedWorker(options(directory, kv_cache_memory_bytes=10**14), engines=1, timeout_s=60, max_restarts=1)


@pytest.mark.slow
def test_an_engine_whose_replacement_cannot_start_is_an_engine_error_which_saves_the_run(worker, undisturbed):
    before = worker.options
    worker.options = replace(before, kv_cache_memory_bytes=10**14)
    lost = r"(?s)died .* and its replacement failed: .*too little memory.*\n.*; the same command goes on"
    try:
        with pytest.raises(EngineError, match=lost):
            disturbed(worker, signal.SIGKILL)
    finally:
        worker.options = before
        worker._start([0])
    assert equal(worker.sample(MANY, 3, LONG, seed=0), undisturbed)


def test_closing_ends_all_processes_and_a_request_that_another_thread_waits_for(worker, undisturbed):
    """As an error of the learner does, while the next batch is sampled. The last test of this worker."""
    (raylet,) = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
    pids = [process.pid for process in (raylet, *family(raylet))]
    assert {engine.pid for engine in worker.engines} < set(pids)
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(worker.sample, MANY, 3, LONG, 0)
        time.sleep(worker.seconds / 3)
        worker.close()
        with pytest.raises(EngineError, match="closed"):
            pending.result(timeout=30)
    assert worker.engines == [None, None]
    assert_gone(pids)
    worker.close()  # may be repeated


def hold_an_engine(directory: str) -> None:
    from carerft.rollout.dedicated import DedicatedWorker

    chosen = options(Path(directory), eos_token_ids=(EOS,), tensor_parallel_size=2)
    worker = DedicatedWorker(chosen, 1, timeout_s=300, max_restarts=1)
    worker.sync(AutoModelForCausalLM.from_pretrained(directory))  # checks that the engine's probabilities are its
    print(*(process.pid for process in family(psutil.Process())), flush=True)
    time.sleep(600)


def test_a_killed_process_leaves_no_engine_behind_nor_the_processes_that_share_its_weights(directory, policy):
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.call", __name__, hold_an_engine.__name__, json.dumps([str(directory)])],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    names = {int(pid): psutil.Process(int(pid)).cmdline()[0] for pid in process.stdout.readline().split()}
    engines = {pid for pid, name in names.items() if "ray::EngineProcess" in name}
    assert sum(psutil.Process(pid).ppid() in engines for pid in names) >= 2  # which share its weights
    process.kill()
    process.wait()
    # Ray's own two agents outlive a killed Ray by a minute or two, waiting for it; they hold no memory to speak of.
    assert_gone([pid for pid, name in names.items() if "Agent" not in name])
