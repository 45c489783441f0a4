"""The learner: against plain autograd, under any cut into microbatches, at its optimum, and where numbers break."""

import copy

import pytest
import torch
from conftest import random_rollouts, tiny_model
from scipy.optimize import brentq

from carerft.algorithms import Algorithm
from carerft.errors import NonFiniteError
from carerft.learner import Learner
from carerft.optimization import Optimization, learning_rate_factor, microbatches
from carerft.regularizers import NoRegularizer, Regularizer, ReverseKL, SkewReverseKL
from carerft.rollout import Rollouts

GRPO = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample", 1e-6)
DAPO_LOSS = Algorithm("dapo", 4, 0.2, 0.28, "token", "token", "sample", 1e-6)
GSPO_LOSS = Algorithm("gspo", 4, 3e-4, 4e-4, "sequence", "sequence", "sample", 1e-6)
REGULARIZERS = [
    NoRegularizer(0.0),
    *[kind(beta=0.5, estimator=e) for kind in (ReverseKL, SkewReverseKL) for e in ("exact", "unbiased", "k2", "k3")],
]


def learner(regularizer: Regularizer, algorithm: Algorithm = GRPO, drift: float = 0.05, **settings: float) -> Learner:
    """A learner whose policy has moved away from its reference."""
    built = Learner(tiny_model(), algorithm, regularizer, Optimization(learning_rate=1e-2, steps=10, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in built.policy.parameters():
            parameter += drift * torch.randn_like(parameter)
    return built


def plain_loss(built: Learner, rollouts: Rollouts, advantages: torch.Tensor) -> torch.Tensor:
    """The loss written out sequence by sequence, without padding, microbatches or chunks."""
    group, total = rollouts.group_size, torch.zeros(())
    algorithm, regularizer = built.algorithm, built.regularizer
    tokens_of_all = int(rollouts.lengths.sum())
    for i in range(len(rollouts.lengths)):
        prompt = rollouts.prompt_tokens[i // group, : rollouts.prompt_lengths[i // group]]
        n = int(rollouts.lengths[i])
        completion = rollouts.tokens[i, :n]
        sequence = torch.cat([prompt, completion])[None]
        where = slice(len(prompt) - 1, len(prompt) + n - 1)
        log_all = built.policy(sequence).logits[0, where].log_softmax(-1)
        log_ref_all = built.reference(sequence).logits[0, where].log_softmax(-1)
        log_pi, log_ref = (x.gather(1, completion[:, None])[:, 0] for x in (log_all, log_ref_all))
        log_old = rollouts.log_probs[i, :n]
        ratio = (log_pi - log_old).exp()
        if algorithm.ratio == "sequence":
            ratio = (log_pi - log_old).mean().exp().expand(n)
        a = advantages[i]
        loss = -torch.minimum(ratio * a, ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high) * a)
        if regularizer.needs_reference:
            exact = regularizer.exact
            penalty = regularizer.divergence(log_all, log_ref_all) if exact else None
            loss = loss + regularizer.beta * (penalty if exact else regularizer.estimate(log_pi, log_ref, log_old))
        total = total + (
            loss.mean() / len(rollouts.lengths) if algorithm.aggregation == "sequence" else loss.sum() / tokens_of_all
        )
    return total


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=lambda r: f"{type(r).__name__}-{r.estimator}")
@pytest.mark.parametrize("share_prompts", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("algorithm", [GRPO, DAPO_LOSS, GSPO_LOSS], ids=lambda a: a.name)
def test_gradient_is_that_of_the_loss_written_out(regularizer: Regularizer, algorithm: Algorithm, share_prompts: bool):
    built, rollouts = learner(regularizer, algorithm, share_prompts=share_prompts), random_rollouts(3, 4)
    advantages = torch.linspace(-1.5, 1.5, 12)
    expected = plain_loss(built, rollouts, advantages)
    expected.backward()
    wanted = [p.grad.clone() for p in built.policy.parameters()]
    built.policy.zero_grad()
    metrics = built.gradient(rollouts, advantages)
    assert metrics["loss/total"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    scale = max(float(g.abs().max()) for g in wanted)
    for parameter, gradient in zip(built.policy.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=2e-5 * scale)


@pytest.mark.parametrize("algorithm", [GRPO, DAPO_LOSS, GSPO_LOSS], ids=lambda a: a.name)
def test_microbatches_do_not_change_the_loss(algorithm: Algorithm):
    rollouts, advantages = random_rollouts(4, 4), torch.linspace(-1, 1, 16)
    found = []
    for budget in (1, 30, 100_000):  # one sequence at a time, a few, all at once
        built = learner(SkewReverseKL(0.5), algorithm, tokens_per_microbatch=budget)
        metrics = built.gradient(rollouts, advantages)
        found.append((metrics, torch.cat([p.grad.flatten() for p in built.policy.parameters()])))
    for metrics, gradient in found[1:]:
        assert torch.allclose(gradient, found[0][1], atol=1e-5 * float(gradient.abs().max()))
        for key, value in metrics.items():
            assert value == pytest.approx(found[0][0][key], rel=1e-4, abs=1e-6), key


def test_microbatches_hold_every_sequence_once_within_budget():
    lengths = torch.tensor([5, 40, 7, 7, 12, 3])
    parts = list(microbatches(lengths, 24))
    assert sorted(torch.cat(parts).tolist()) == list(range(6))
    assert [sorted(lengths[p].tolist()) for p in parts] == [[40], [7, 12], [3, 5, 7]]
    assert all(len(p) == 1 or len(p) * int(lengths[p].max()) <= 24 for p in parts)


@pytest.mark.parametrize("where", ["log_probs", "weights"])
def test_a_nonfinite_loss_leaves_weights_and_optimizer_as_they_were(where: str):
    built, rollouts = learner(SkewReverseKL(0.5)), random_rollouts(2, 4)
    built.step(rollouts, torch.linspace(-1, 1, 8))
    if where == "log_probs":
        rollouts.log_probs[3, 0] = -torch.inf
    else:
        with torch.no_grad():
            built.policy.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    before = copy.deepcopy((built.policy.state_dict(), built.optimizer.state_dict()))
    with pytest.raises(NonFiniteError, match="not taken"):
        built.step(rollouts, torch.ones(8))
    for key, value in before[0].items():
        assert torch.equal(value.nan_to_num(7), built.policy.state_dict()[key].nan_to_num(7))
    for old, new in zip(before[1]["state"].values(), built.optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)
    assert all(p.grad is None for p in built.policy.parameters())


def test_schedules():
    def rates(schedule: str) -> list[float]:
        plan = Optimization(learning_rate=1.0, steps=6, schedule=schedule, warmup_steps=2)
        return [round(learning_rate_factor(step, plan), 6) for step in range(7)]

    assert rates("constant") == [0.333333, 0.666667, 1, 1, 1, 1, 1]
    assert rates("linear") == [0.333333, 0.666667, 1, 0.75, 0.5, 0.25, 0]
    assert rates("cosine") == [0.333333, 0.666667, 1, 0.853553, 0.5, 0.146447, 0]


def test_bfloat16_is_near_float32():
    rollouts, advantages = random_rollouts(3, 4), torch.linspace(-1, 1, 12)
    found = {}
    for precision in ("float32", "bfloat16"):
        built = learner(SkewReverseKL(0.5), precision=precision)
        built.gradient(rollouts, advantages)
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in built.policy.parameters())
        found[precision] = torch.cat([p.grad.flatten() for p in built.policy.parameters()])
    assert torch.nn.functional.cosine_similarity(found["float32"], found["bfloat16"], dim=0) > 0.99


# The one-step bandit: one prompt, one token of completion. The learner maximises E[r] - beta D(pi || ref); where
# rewards are known, the optimum can be computed without it.


def bandit_optimum(ref: torch.Tensor, rewards: torch.Tensor, beta: float, alpha: float) -> torch.Tensor:
    """The stationary distribution: r(a) - beta (log(x) - alpha (x - 1)) = const, where x = pi/m, m = alpha pi +
    (1 - alpha) ref. For alpha = 0 that is pi ~ ref exp(r / beta)."""
    if alpha == 0:
        return (ref.log() + rewards / beta).softmax(-1)

    def policy(constant: float) -> torch.Tensor:
        probabilities = []
        for r, q in zip(rewards.tolist(), ref.tolist(), strict=True):
            # the coefficient rises from -inf to its bound as pi goes from 0 to infinity; below 1 / alpha always
            def excess(log_pi: float, r: float = r, q: float = q) -> float:
                pi = torch.tensor(log_pi).double().exp()
                x = pi / (alpha * pi + (1 - alpha) * q)
                return float(r - beta * (x.log() - alpha * (x - 1)) - constant)

            probabilities.append(brentq(excess, -60, 60, xtol=1e-12))
        return torch.tensor(probabilities).double().exp()

    top = beta * (-torch.tensor(alpha).log() - 1 + alpha).item()  # beta times the coefficient's bound
    low, high = float(rewards.max()) - top + 1e-5 * beta, float(rewards.max()) + 40 * beta
    constant = brentq(lambda c: float(policy(c).sum()) - 1, low, high, xtol=1e-12)
    return policy(constant)


@pytest.mark.parametrize(
    ("regularizer", "alpha"),
    [
        (ReverseKL(beta=0.5), 0.0),
        (ReverseKL(beta=0.5, estimator="unbiased"), 0.0),
        (SkewReverseKL(beta=3.0, alpha=0.5), 0.5),
        (SkewReverseKL(beta=3.0, alpha=0.5, estimator="unbiased"), 0.5),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.estimator}" if isinstance(value, Regularizer) else str(value),
)
def test_the_learner_reaches_the_optimum_of_a_bandit(regularizer: Regularizer, alpha: float):
    actions = 5
    policy = tiny_model(seed=3, vocabulary=actions, tied=False)
    plan = Optimization(learning_rate=3e-3, steps=300, schedule="cosine", max_grad_norm=1e9)
    algorithm = Algorithm("bandit", actions, 1e9, 1e9, "token", "sequence", "none", 0.0)
    built = Learner(policy, algorithm, regularizer, plan)
    prompt = torch.tensor([[2, 3]])
    rewards = torch.tensor([0.0, 0.3, 1.0, 0.6, 0.1])

    def probabilities() -> torch.Tensor:
        with torch.no_grad():
            return policy(prompt).logits[0, -1].double().softmax(-1)

    ref = probabilities()
    # Every action once, from a uniform behaviour policy: the importance ratio weighs each by 5 pi(a), so the mean over
    # the group is the expectation under the policy, without sampling noise.
    rollouts = Rollouts(
        prompt_tokens=prompt,
        prompt_lengths=torch.tensor([2]),
        tokens=torch.arange(actions)[:, None],
        lengths=torch.ones(actions, dtype=torch.int64),
        log_probs=torch.full((actions, 1), 1 / actions).log(),
        finished=torch.ones(actions, dtype=torch.bool),
    )
    for _ in range(plan.steps):
        built.step(rollouts, rewards)
    optimum = bandit_optimum(ref, rewards.double(), regularizer.beta, alpha)
    assert float(optimum.sum()) == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(probabilities(), optimum, atol=5e-3), (probabilities(), optimum)
    assert float((optimum - ref).abs().max()) > 0.05  # the optimum is not where it started
