"""Sampling ahead: whose weights a batch is from, what is corrected, what a resumed run finds, and what may fail."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.collecting import algorithm, collection, trainer
from torch import nn

from carerft.errors import ShortageError
from carerft.objective.regularizers import SkewReverseKL
from carerft.rollout.transformers import TransformersWorker
from carerft.training.collector import Batch
from carerft.training.lookahead import Lookahead
from carerft.training.trainer import Trainer

STEPS = 6  # three batches, of two updates each


class Apart(TransformersWorker):
    """Samples with a copy of the policy, as an engine in another process does, and remembers every sync's weights."""

    def __init__(self, model: nn.Module, eos_token_ids: Sequence[int], pad_token_id: int):
        super().__init__(copy.deepcopy(model), eos_token_ids, pad_token_id)
        self.synced: list[dict[str, torch.Tensor]] = []

    def sync(self, policy: nn.Module) -> None:
        self.model.load_state_dict(policy.state_dict())
        self.synced.append(copy.deepcopy(policy.state_dict()))


def looking_ahead(directory: Path, kinds: str = "mixed " * 16, **settings: object) -> Trainer:
    plan = {"importance_correction": "token", **settings}
    collector, learner = collection(kinds, algorithm(dynamic_rounds=1), SkewReverseKL(0.1), Apart, **plan)
    run = trainer(directory, collector, learner, steps=STEPS)
    run.source = Lookahead(collector)
    return run


def test_a_batch_is_sampled_with_the_weights_from_before_the_last_one(tmp_path: Path):
    run = looking_ahead(tmp_path)
    learner, worker = run.learner, run.source.collector.worker
    batches: list[Batch] = []
    weights: list[dict[str, torch.Tensor]] = []  # when the learner began with each batch
    metrics: list[dict[str, float]] = []
    supplied = run.source.next

    def watched(*arguments, **keywords) -> Batch:
        weights.append(copy.deepcopy(learner.policy.state_dict()))
        batches.append(supplied(*arguments, **keywords))
        return batches[-1]

    run.source.next = watched
    assert run.run(metrics.append, lambda: False)
    assert [m["rollout/staleness"] for m in metrics] == [0, 0, 2, 2, 2, 2]
    assert all({"time/wait_s", "time/sync_s", "time/rollout_s"} <= m.keys() for m in metrics)
    # Batch 0 and 1 are both from the first weights, batch 2 from those after batch 0; no fourth was begun.
    assert len(worker.synced) == 3

    def log_probs(state: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        learner.policy.load_state_dict(state)
        return learner.log_probs(batch.rollouts)

    for batch, behaviour, learning in zip(batches, [0, 0, 1], [0, 1, 2], strict=True):
        mask = batch.rollouts.mask()
        sampled_from = log_probs(weights[behaviour], batch)
        assert torch.allclose(batch.rollouts.log_probs[mask], sampled_from[mask], atol=1e-5)
        assert torch.allclose(batch.correction.log_probs, log_probs(weights[learning], batch), atol=1e-6)
        ratio = (batch.correction.log_probs - batch.rollouts.log_probs).exp().clamp(max=2.0)
        assert torch.allclose(batch.correction.weights[mask], ratio[mask])
    moved = (batches[1].correction.weights[batches[1].rollouts.mask()] - 1).abs().max()
    assert moved > 1e-3 > (batches[0].correction.weights[batches[0].rollouts.mask()] - 1).abs().max()


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_stopped_run_continues_bit_identical(stop: int, tmp_path: Path):
    whole = looking_ahead(tmp_path / "whole")
    assert whole.run(lambda metrics: None, lambda: False)
    first = looking_ahead(tmp_path / "cut")
    assert not first.run(lambda metrics: None, lambda: first.progress.step == stop)
    second = looking_ahead(tmp_path / "cut")
    assert second.resume() == stop
    staleness = []
    assert second.run(lambda metrics: staleness.append(metrics["rollout/staleness"]), lambda: False)
    assert staleness == [0.0, 0.0, 2.0, 2.0, 2.0, 2.0][stop:]
    for a, b in zip(whole.learner.policy.parameters(), second.learner.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_shortage_ahead_is_told_when_its_batch_is_needed_and_the_work_before_it_is_kept(tmp_path: Path):
    kinds = "mixed mixed mixed mixed  right right right right  mixed mixed mixed mixed " + "mixed " * 8
    run = looking_ahead(tmp_path, kinds)
    with pytest.raises(ShortageError, match="found 0 of the 4"):
        run.run(lambda metrics: None, lambda: False)
    assert run.progress.step == 2  # both updates of the first batch were made
    again = looking_ahead(tmp_path, kinds)
    assert again.resume() == 2
    assert again.run(lambda metrics: None, lambda: False)
    assert again.progress.batch.problem_ids == ["12-mixed", "13-mixed", "14-mixed", "15-mixed"]
