"""An engine is a guest in the learner's process, and may be one in each of a learner's several processes."""

import os
import random
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.engines import needs_vllm, options, save_model
from helpers.processes import call
from helpers.sampling import PROMPTS, completions, teacher_forced
from transformers import AutoModelForCausalLM

from carerft.rollout import Sampling, reuse
from carerft.rollout.engine import Engine

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def policy(directory):
    return save_model(directory)


def test_the_engine_leaves_threads_random_states_and_the_process_group_of_the_learner_alone(directory, policy):
    def states() -> tuple:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    reuse.close_idle()  # other tests may have left an engine to this process, and with it a group
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group, before, threads = dist.group.WORLD, states(), torch.get_num_threads()
        engine = Engine(options(directory))
        engine.load(policy.state_dict().items())
        engine.sample(PROMPTS, 1, Sampling(3), seed=1)
        engine.close()
        assert states() == before and torch.get_num_threads() == threads
        # vLLM has compilations use one thread, by a variable that is read when transformers, before it, is imported.
        assert torch._inductor.config.compile_threads == min(32, torch._utils.cpu_count() or 1)
        torch.set_num_threads(threads + 1)
        assert torch.get_num_threads() == threads + 1  # vLLM makes it do nothing
        torch.set_num_threads(threads)
        assert dist.group.WORLD is group  # vLLM's own cleanup ends it
        dist.all_reduce(torch.ones(1))
    finally:
        dist.destroy_process_group()


def test_an_idle_engine_is_replaced_where_more_than_its_context_is_needed(directory, monkeypatch):
    class Worker:
        def __init__(self, options, *arguments):
            self.context, self.closed = options.max_model_len, False

        def reset(self) -> None:
            pass

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(reuse, "idle", [])
    used = []
    for context, sequences in ((300, 4), (299, 4), (301, 4), (301, 5)):
        with reuse.reused(Worker, options(directory, max_model_len=context, max_num_seqs=sequences)) as worker:
            used.append(worker)
    assert used[0] is used[1] and [worker.closed for worker in used] == [True, True, True, False]
    assert [worker.context for worker in used] == [300, 300, 301, 301] and used[2] is not used[3]
    with pytest.raises(RuntimeError), reuse.reused(Worker, options(directory, max_model_len=1, max_num_seqs=5)):
        raise RuntimeError("a run that fails")
    assert used[3].closed and not reuse.idle


def _learner_with_an_engine(rank: int, directory: str, rendezvous: str) -> None:
    from carerft.rollout.vllm import VllmWorker

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # as torchrun does
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    policy = AutoModelForCausalLM.from_pretrained(directory)
    worker = VllmWorker(options(Path(directory)))
    worker.sync(policy)
    prompts = PROMPTS[rank : 1 + 2 * rank]  # not the same ones, nor as many
    rollouts = worker.sample(prompts, 2, Sampling(5 + rank, ignore_eos=True), seed=0)
    for row, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(policy, prompts[row // 2], tokens)
        torch.testing.assert_close(rollouts.log_probs[row], expected, atol=2e-5, rtol=0)
    worker.close()
    total = torch.tensor([1.0 + rank])
    dist.all_reduce(total)  # the learners' group is as it was
    assert total.item() == 3.0
    dist.destroy_process_group()


def test_each_of_two_learner_processes_samples_with_an_engine_of_its_own(directory, policy):
    with tempfile.TemporaryDirectory() as place:
        call(_learner_with_an_engine, str(directory), f"{place}/rendezvous", count=2, engine=True)
