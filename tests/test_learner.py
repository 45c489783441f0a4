"""The learner: against plain autograd, under any cut into microbatches, at its optimum, and where numbers break."""

import copy
import math
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from helpers.models import random_rollouts, tiny_model
from scipy.optimize import brentq
from transformers import PreTrainedModel

from carerft.config.settings import LearnerSettings
from carerft.errors import NonFiniteError
from carerft.model.modes import recompute_activations
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import (
    ForwardKL,
    JensenShannon,
    NoRegularizer,
    Regularizer,
    ReverseKL,
    SkewReverseKL,
)
from carerft.rollout import Rollouts
from carerft.training.learner import Learner
from carerft.training.optimizer import learning_rate_factor

GRPO = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample", 1e-6)
DAPO_LOSS = Algorithm("dapo", 4, 0.2, 0.28, "token", "token", "sample", 1e-6)
GSPO_LOSS = Algorithm("gspo", 4, 3e-4, 4e-4, "sequence", "sequence", "sample", 1e-6)
DR_GRPO_LOSS = Algorithm("dr_grpo", 4, 0.2, 0.2, "token", "constant", "none", aggregation_constant=9)
ALGORITHMS = [GRPO, DAPO_LOSS, GSPO_LOSS, DR_GRPO_LOSS]
REGULARIZERS = [
    NoRegularizer(),
    NoRegularizer(entropy_bonus=0.3),
    *[
        kind(beta=0.5, estimator=e, entropy_bonus=0.3 * (e in ("exact", "k3")))
        for kind in (ReverseKL, SkewReverseKL, ForwardKL, JensenShannon)
        for e in kind.ESTIMATORS
    ],
]


def learner(regularizer: Regularizer, algorithm: Algorithm = GRPO, drift: float = 0.05, **settings: float) -> Learner:
    """A learner whose policy has moved away from its reference."""
    built = Learner(tiny_model(), algorithm, regularizer, LearnerSettings(learning_rate=1e-2, **settings), 10)
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
        loss = loss + regularizer.entropy_bonus * (log_all.exp() * log_all).sum(-1)
        if algorithm.aggregation == "sequence":
            total = total + loss.mean() / len(rollouts.lengths)
        elif algorithm.aggregation == "token":
            total = total + loss.sum() / tokens_of_all
        else:
            total = total + loss.sum() / algorithm.aggregation_constant / len(rollouts.lengths)
    return total


@pytest.mark.parametrize(
    "regularizer", REGULARIZERS, ids=lambda r: f"{type(r).__name__}-{r.estimator}-{r.entropy_bonus}"
)
@pytest.mark.parametrize("share_prompts", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
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


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
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
        plan = LearnerSettings(learning_rate=1.0, schedule=schedule, warmup_steps=2)
        return [round(learning_rate_factor(step, plan, 6), 6) for step in range(7)]

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


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "plain"])
def test_the_reference_in_bfloat16_is_what_autocast_makes_of_it(tied: bool, checkpointing: bool):
    """To the last bit, in gradients and metrics; and under gradient checkpointing without autocast's copies."""
    rollouts, advantages, found = random_rollouts(3, 4), torch.linspace(-1, 1, 12), []
    for rounded in (True, False):
        model = tiny_model(tied=tied)
        if checkpointing:
            recompute_activations(model)
        built = Learner(model, GRPO, SkewReverseKL(0.5), LearnerSettings(1e-2, precision="bfloat16"), 10)
        matrices = built.reference.get_decoder().layers[0].mlp
        assert matrices.up_proj.weight.dtype == torch.bfloat16
        assert built.reference.get_input_embeddings().weight.dtype == torch.float32
        assert matrices.up_proj._forward_pre_hooks and built.policy.model.layers[0].mlp.up_proj._forward_pre_hooks
        if not rounded:  # as it would be without: float32, rounded at each use
            built.reference.float().load_state_dict(tiny_model(tied=tied).state_dict())
        metrics = [built.step(rollouts, advantages) for _ in range(2)]
        found.append((metrics, [p.detach().clone() for p in built.policy.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0][1], found[1][1], strict=True))


def test_activations_that_are_recomputed_change_no_bit(monkeypatch: pytest.MonkeyPatch):
    """Nothing in a layer is random, so that the states which transformers would keep of each are not needed."""
    rollouts, advantages, found = random_rollouts(3, 4), torch.linspace(-1, 1, 12), []
    for recompute in (lambda model: None, recompute_activations, PreTrainedModel.gradient_checkpointing_enable):
        model, kept = tiny_model(), Mock(wraps=torch.get_rng_state)
        recompute(model)
        built = Learner(model, GRPO, SkewReverseKL(0.5), LearnerSettings(1e-2, tokens_per_microbatch=60), 10)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "get_rng_state", kept)
            built.gradient(rollouts, advantages)
        assert kept.called == (recompute is PreTrainedModel.gradient_checkpointing_enable)
        found.append([p.grad for p in built.policy.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


def test_backward_passes_run_in_the_learner_s_own_thread():
    """Of a GPU's, which is autograd's own, torch.compile would take recomputed layers for others."""
    built, seen = learner(SkewReverseKL(0.5)), []
    built.policy.lm_head.weight.register_hook(lambda grad: seen.append(torch._C._is_multithreading_enabled()))
    built.gradient(random_rollouts(3, 4), torch.linspace(-1, 1, 12))
    assert seen == [False] and torch._C._is_multithreading_enabled()


def test_the_strengths_in_force_follow_their_schedules():
    """alpha from 0.8 to 0.6 over three steps at matched local strength: beta is 0.04 / (1 - alpha)^2 at each."""
    built = learner(SkewReverseKL(0.04, match="local", alpha=0.8, alpha_schedule="linear", alpha_end=0.6))
    built.steps = 3
    rollouts, seen = random_rollouts(2, 4), []
    for _ in range(3):
        metrics = built.step(rollouts, torch.linspace(-1, 1, 8))
        seen.append((metrics["regularizer/alpha"], metrics["regularizer/beta"]))
        # weights sum to one over tokens of equal weight only in DAPO; here the loss is that of the strength in force
        assert metrics["loss/regularizer"] > 0
    assert [alpha for alpha, _ in seen] == pytest.approx([0.8, 0.7, 0.6])
    assert [beta for _, beta in seen] == pytest.approx([1.0, 0.04 / 0.09, 0.25])


def test_the_value_of_k1_is_watched():
    built, rollouts = learner(SkewReverseKL(0.5), drift=0.3), random_rollouts(2, 4)
    metrics = built.gradient(rollouts, torch.zeros(8))
    with torch.no_grad():
        scored = built.score(rollouts, torch.arange(8), built.regularizer)
    k1 = scored.log_prob - torch.logaddexp(scored.log_prob + math.log(0.8), scored.ref_log_prob + math.log(0.2))
    assert metrics["regularizer/k1"] == pytest.approx(float(k1.mean()), rel=1e-4)


# The one-step bandit: one prompt, one token of completion. The learner maximises E[r] - beta D(pi || ref); where
# rewards are known, the optimum can be computed without it.


def bandit_optimum(ref: torch.Tensor, rewards: torch.Tensor, slope: Callable[[float, float], float]) -> torch.Tensor:
    """The distribution at which r(a) - slope(pi(a), ref(a)) is the same for every action.

    slope: what the penalty adds to the loss per unit of an action's probability, d (beta D) / d pi(a); it rises with
    pi. Two nested root searches, for each action's probability given the constant, and for the constant.
    """

    def policy(constant: float) -> list[float]:
        found = []
        for r, q in zip(rewards.tolist(), ref.tolist(), strict=True):

            def excess(log_pi: float, r: float = r, q: float = q) -> float:
                return r - slope(math.exp(log_pi), q) - constant

            if excess(5.0) > 0:  # the slope is bounded, and this constant below the bound: no limit to pi
                found.append(math.exp(5.0))
            else:
                found.append(math.exp(brentq(excess, -700.0, 5.0, xtol=1e-13)))
        return found

    constant = brentq(lambda c: sum(policy(c)) - 1, -50.0, 50.0, xtol=1e-13)
    return torch.tensor(policy(constant), dtype=torch.float64)


# d D / d pi(a) of each divergence, written out by hand.


def of_reverse_kl(pi: float, q: float) -> float:
    return math.log(pi / q) + 1


def of_half_skewed(pi: float, q: float) -> float:  # alpha = 1/2: x = pi / m, log x + 1 - alpha x
    x = pi / (0.5 * pi + 0.5 * q)
    return math.log(x) + 1 - 0.5 * x


def of_forward_kl(pi: float, q: float) -> float:
    return -q / pi


def of_jensen_shannon(pi: float, q: float) -> float:
    return 0.5 * math.log(2 * pi / (pi + q))


def of_negative_entropy(pi: float, q: float) -> float:
    return math.log(pi) + 1


@pytest.mark.parametrize(
    ("regularizer", "slope"),
    [
        *((ReverseKL(0.5, e), lambda pi, q: 0.5 * of_reverse_kl(pi, q)) for e in ("exact", "unbiased")),
        *((SkewReverseKL(3.0, e, alpha=0.5), lambda pi, q: 3 * of_half_skewed(pi, q)) for e in ("exact", "unbiased")),
        *((ForwardKL(0.5, e), lambda pi, q: 0.5 * of_forward_kl(pi, q)) for e in ("exact", "unbiased")),
        *((JensenShannon(3.0, e), lambda pi, q: 3 * of_jensen_shannon(pi, q)) for e in ("exact", "unbiased")),
        (NoRegularizer(entropy_bonus=0.5), lambda pi, q: 0.5 * of_negative_entropy(pi, q)),
        (
            SkewReverseKL(3.0, alpha=0.5, entropy_bonus=0.5),
            lambda pi, q: 3 * of_half_skewed(pi, q) + 0.5 * of_negative_entropy(pi, q),
        ),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{value.estimator}-{value.entropy_bonus}" if isinstance(value, Regularizer) else ""
    ),
)
def test_the_learner_reaches_the_optimum_of_a_bandit(regularizer: Regularizer, slope: Callable[[float, float], float]):
    actions = 5
    policy = tiny_model(seed=3, vocabulary=actions, tied=False)
    steps = 120
    settings = LearnerSettings(learning_rate=6e-3, schedule="cosine", max_grad_norm=1e9)
    algorithm = Algorithm("bandit", actions, 1e9, 1e9, "token", "sequence", "none", 0.0)
    built = Learner(policy, algorithm, regularizer, settings, steps)
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
    for _ in range(steps):
        built.step(rollouts, rewards)
    optimum = bandit_optimum(ref, rewards, slope)
    assert float(optimum.sum()) == pytest.approx(1.0, abs=1e-9)
    assert torch.allclose(probabilities(), optimum, atol=1e-3), (probabilities(), optimum)
    assert float((optimum - ref).abs().max()) > 0.05  # the optimum is not where it started
    if type(regularizer) is ReverseKL:  # known in closed form: ref exp(r / beta)
        assert torch.allclose(optimum, (ref.log() + rewards.double() / 0.5).softmax(-1), atol=1e-9)
