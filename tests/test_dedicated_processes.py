"""A learner of two processes whose rollouts come from engines of their own: real torchrun, real Ray, a real engine."""

import json
import os
from pathlib import Path

import pytest
from helpers.engines import needs_ray
from helpers.runs import finish, lines, start

from carerft.rollout.local_ray import environment_of_engines

CHOSEN = [
    "learner.processes=2", "learner.learning_rate=1e-2", "learner.updates_per_batch=1", "learner.warmup_steps=0",
    "rollout=vllm", "rollout.placement=dedicated", "rollout.verify_sync=true", "rollout.kv_cache_gib=0.2", "steps=3",
    "benchmark=world", "evaluation.limit=2", "evaluation.bootstrap=20", "samples=2",
]  # fmt: skip


@needs_ray
@pytest.mark.parametrize("lookahead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_firsts_engine_samples_from_the_weights_that_all_share(lookahead: int, tmp_path: Path):
    """Every sync is proven. Beside that, a batch's log-probabilities are the learner's own at its only step, and with
    lookahead those of the weights before the last step."""
    process = start(tmp_path / "run", *CHOSEN, f"rollout.lookahead={lookahead}")
    output = finish(process)
    assert process.returncode == 0, output
    # Three batches, each from other weights, and the evaluation's: sampled by one engine, which the first started.
    assert output.count("vLLM started") == 1
    mismatch = [line["rollout/mismatch_max"] for line in lines(tmp_path / "run")]
    assert len(mismatch) == 3 and mismatch[0] < 1e-4
    assert all(value > 1e-2 if lookahead else value < 1e-4 for value in mismatch[1:])
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["benchmarks"]


def test_an_engine_inherits_nothing_of_the_group_that_the_learner_is_in(monkeypatch: pytest.MonkeyPatch):
    """With TORCHELASTIC_USE_AGENT_STORE an engine's own group would wait for a store that nobody opens."""
    of_torchrun = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    for name in of_torchrun:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's, for several processes
    before = dict(os.environ)
    with environment_of_engines(1):
        assert not os.environ.keys() & set(of_torchrun)
        assert os.environ["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
        assert os.environ["PATH"] == before["PATH"]
    assert dict(os.environ) == before
