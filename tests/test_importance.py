"""The importance correction: weights for samplers whose probabilities are not quite the learner's, and where the
objective's ratio starts."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from helpers.collecting import (
    ENDS,
    GROUP,
    Imprecise,
    Rounded,
    algorithm,
    collection,
    trainer,
)

from carerft.objective.regularizers import Regularizer, SkewReverseKL
from carerft.rollout import Rollouts
from carerft.training.collector import Batch
from carerft.training.learner import Learner
from carerft.training.trainer import Trainer

# The importance correction: caps so low that some of the weights of either level reach them

CAPS = {"token": 1.5, "sequence": 1.1}


def corrected(level: str, regularizer: Regularizer | None = None) -> tuple[Batch, Learner]:
    settings = {"importance_correction": level, "importance_cap": CAPS[level]}
    kinds = "mixed right mixed mixed  mixed mixed right mixed"
    collector, learner = collection(kinds, None, regularizer, Imprecise, ends=ENDS, **settings)
    return collector.next(learner, last=True), learner


def teacher_forced(learner: Learner, rollouts: Rollouts, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a sequence: its tokens' log-probabilities (n,), and all of policy's and reference's in its states (n, V)."""
    owner, n = i // GROUP, int(rollouts.lengths[i])
    prompt = rollouts.prompt_tokens[owner, : rollouts.prompt_lengths[owner]]
    sequence = torch.cat([prompt, rollouts.tokens[i, :n]])[None]
    where = slice(len(prompt) - 1, len(prompt) + n - 1)
    log_all, log_ref_all = (m(sequence).logits[0, where].log_softmax(-1) for m in (learner.policy, learner.reference))
    return log_all.gather(1, rollouts.tokens[i, :n, None])[:, 0], log_all, log_ref_all


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_are_the_learners_probabilities_over_the_samplers_truncated(level: str):
    batch, learner = corrected(level)
    rollouts, cap = batch.rollouts, CAPS[level]
    assert rollouts.lengths.min() < rollouts.lengths.max()
    weights, over = [], []
    for i, n in enumerate(rollouts.lengths.tolist()):
        log_pi = teacher_forced(learner, rollouts, i)[0].detach()
        assert torch.allclose(batch.correction.log_probs[i, :n], log_pi, atol=1e-5)
        assert torch.equal(batch.correction.log_probs[i, n:], torch.zeros(rollouts.tokens.shape[1] - n))
        ratios = [math.exp(a - b) for a, b in zip(log_pi.tolist(), rollouts.log_probs[i, :n].tolist(), strict=True)]
        if level == "sequence":
            ratios = [math.prod(ratios) ** (1 / n)] * n
        assert batch.correction.weights[i, :n].tolist() == pytest.approx([min(r, cap) for r in ratios], rel=1e-4)
        weights += [min(r, cap) for r in ratios]
        over += [r > cap for r in ratios]
    assert 0 < sum(over) < len(over)
    assert batch.metrics["rollout/importance_mean"] == pytest.approx(mean(weights), rel=1e-4)
    assert batch.metrics["rollout/importance_clipped"] == pytest.approx(mean(over))
    part = batch.prompts(slice(1, 3)).correction
    assert torch.equal(part.weights, batch.correction.weights[4:12])
    assert torch.equal(part.log_probs, batch.correction.log_probs[4:12])


def test_a_batch_is_stored_without_padding_and_loads_with_it(tmp_path: Path):
    """Also one that an earlier version has stored with padding."""
    batch, _ = corrected("token")
    rollouts, correction = batch.rollouts, batch.correction
    state = batch.state()
    for stored in (state["rollouts"]["tokens"], state["rollouts"]["log_probs"], state["correction"]["weights"]):
        assert len(stored[0]) == rollouts.lengths.sum() < rollouts.tokens.numel()
    assert len(state["rollouts"]["prompt_tokens"][0]) == rollouts.prompt_lengths.sum()
    batch.metrics["later"] = 1.0
    assert "later" not in state["metrics"]
    for number, kept in enumerate((state, asdict(batch))):
        torch.save(kept, tmp_path / f"{number}.pt")
        found = Batch.from_state(torch.load(tmp_path / f"{number}.pt", weights_only=True))
        assert all(torch.equal(getattr(found.rollouts, key), value) for key, value in vars(rollouts).items())
        assert torch.equal(found.correction.log_probs, correction.log_probs)
        mask = rollouts.mask()
        assert torch.equal(found.correction.weights[mask], correction.weights[mask])
        assert found.problem_ids == batch.problem_ids and torch.equal(found.advantages, batch.advantages)


@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_objective_is_weighted_and_the_regularizer_is_not(level: str, estimator: str):
    regularizer = SkewReverseKL(beta=0.5, estimator=estimator)
    batch, learner = corrected(level, regularizer)
    rollouts, tokens = batch.rollouts, int(batch.rollouts.lengths.sum())
    objective, penalty = torch.zeros(()), torch.zeros(())
    for i, n in enumerate(rollouts.lengths.tolist()):
        log_pi, log_all, log_ref_all = teacher_forced(learner, rollouts, i)
        ratio = (log_pi - log_pi.detach()).exp()  # one, at the first step, since it is the learner's to the learner's
        objective = objective - (batch.correction.weights[i, :n] * ratio * batch.advantages[i]).sum() / tokens
        if estimator == "exact":
            value = regularizer.divergence(log_all, log_ref_all)
        else:
            log_ref = log_ref_all.gather(1, rollouts.tokens[i, :n, None])[:, 0]
            value = regularizer.estimate(log_pi, log_ref, rollouts.log_probs[i, :n])
        penalty = penalty + value.sum() / tokens
    (objective + 0.5 * penalty).backward()
    expected = [p.grad.clone() for p in learner.policy.parameters()]
    learner.policy.zero_grad()
    metrics = learner.gradient(rollouts, batch.advantages, batch.correction)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5) and metrics["policy/clip_fraction"] == 0
    assert metrics["loss/policy"] == pytest.approx(objective.item(), rel=1e-4)
    assert metrics["regularizer/value"] == pytest.approx(penalty.item(), rel=1e-4)
    assert metrics["loss/regularizer"] == pytest.approx(0.5 * penalty.item(), rel=1e-4)
    scale = max(float(g.abs().max()) for g in expected)
    for parameter, gradient in zip(learner.policy.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=2e-5 * scale)


def test_without_correction_the_ratio_is_to_the_samplers_probabilities():
    collector, learner = collection("mixed " * 4, worker=Imprecise)
    batch = collector.next(learner, last=True)
    assert batch.correction is None and "rollout/importance_mean" not in batch.metrics
    log_pi = learner.log_probs(batch.rollouts)
    largest = (log_pi - batch.rollouts.log_probs)[batch.rollouts.mask()].exp().max().item()
    assert learner.gradient(batch.rollouts, batch.advantages)["policy/ratio_max"] == pytest.approx(largest, rel=1e-4)
    assert largest > 2


def test_biased_sampling_keeps_the_samplers_own_probabilities():
    """At temperature 2 the behaviour policy is softmax(logits / 2), and the correction leads back to the policy."""
    collector, learner = collection("mixed " * 4, temperature=2.0, importance_correction="token", importance_cap=1e9)
    batch = collector.next(learner, last=True)
    for i in range(len(batch.rollouts.lengths)):
        log_pi, log_all, _ = teacher_forced(learner, batch.rollouts, i)
        n = int(batch.rollouts.lengths[i])
        tempered = (log_all.detach() / 2).log_softmax(-1).gather(-1, batch.rollouts.tokens[i, :n, None])[:, 0]
        assert torch.allclose(batch.rollouts.log_probs[i, :n], tempered, atol=1e-5)
        assert torch.allclose(batch.correction.weights[i, :n], (log_pi.detach() - tempered).exp(), rtol=1e-3)


# The start of the ratio: GSPO's bounds are narrower than the rounding of bfloat16

GSPO = {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "ratio": "sequence", "dynamic_sampling": False}


def gspo_steps(directory: Path, precision: str, epochs: int, **changes: object) -> tuple[list[dict], Trainer]:
    """The metrics of two batches' steps, with a sampler that rounds."""
    kinds = "mixed mixed gap mixed  gap mixed mixed mixed"
    collector, learner = collection(kinds, algorithm(**GSPO), worker=Rounded, ends=ENDS, **changes)
    learner.settings = replace(learner.settings, precision=precision, epochs=epochs)
    run, steps = trainer(directory, collector, learner, steps=4 * epochs, epochs=epochs), []
    assert run.run(steps.append, lambda: False)
    return steps, run


@pytest.mark.parametrize("epochs", [1, 2])
def test_gspos_ratio_starts_at_exactly_one_in_bfloat16(epochs: int, tmp_path: Path):
    steps, run = gspo_steps(tmp_path, "bfloat16", epochs)
    for first in (steps[0], steps[2 * epochs]):
        assert first["policy/clip_fraction"] == 0.0 and first["policy/ratio_max"] == 1.0
        assert first["rollout/mismatch_mean"] > 1e-3 and first["time/score_s"] > 0
    # Later steps' ratios are to the policy that began the batch, not to the one before them.
    assert all(step["policy/ratio_max"] != 1.0 for i, step in enumerate(steps) if i % (2 * epochs))
    batch = run.progress.batch
    assert batch.correction.weights is None and "rollout/importance_mean" not in batch.metrics
    scored = batch.correction.log_probs.abs().sum(1).view(2, -1) > 0  # by step
    assert scored[1].all() and scored[0].all() == (epochs == 2)


@pytest.mark.parametrize(("precision", "level"), [("bfloat16", "none"), ("float32", "auto")])
def test_without_that_start_the_samplers_rounding_alone_is_clipped(precision: str, level: str, tmp_path: Path, caplog):
    steps, run = gspo_steps(tmp_path, precision, 1, importance_correction=level)
    assert steps[0]["policy/clip_fraction"] > 0.2 and run.progress.batch.correction is None
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "rollout.importance_correction=sequence" in warning and "rollout/mismatch_mean" in warning


def test_old_log_probs_are_those_of_the_policy_that_began_the_batch(tmp_path: Path):
    collector, learner = collection("mixed " * 8, algorithm(**GSPO), worker=Rounded, ends=ENDS)
    learner.settings = replace(learner.settings, precision="bfloat16")
    batch = collector.next(learner, last=True)
    second = batch.prompts(batch.parts(2)[1])
    before = learner.log_probs(second.rollouts)
    run = trainer(tmp_path, collector, learner, steps=2)
    run.progress.batch = batch
    run._step()
    assert not torch.equal(learner.log_probs(second.rollouts), before)
    assert torch.equal(second.correction.log_probs, before)
    again = Batch.from_state(batch.state())
    assert torch.equal(again.correction.log_probs, batch.correction.log_probs) and again.correction.weights is None


@pytest.mark.parametrize(("noise", "level", "warned"), [(Imprecise, "auto", True), (Imprecise, "token", False)])
def test_a_mismatch_beyond_rounding_is_warned_of_at_the_first_step_unless_it_is_corrected_for(
    noise, level, warned, tmp_path: Path, caplog
):
    for worker, expected in ((noise, warned), (Rounded, False)):
        caplog.clear()
        chosen = algorithm(dynamic_sampling=False)
        collector, learner = collection("mixed " * 8, chosen, worker=worker, importance_correction=level)
        learner.settings = replace(learner.settings, precision="bfloat16")
        trainer(tmp_path / worker.__name__, collector, learner, steps=4).run(lambda _: None, lambda: False)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert ["rollout.importance_correction=token" in warning for warning in warnings] == [True] * expected
