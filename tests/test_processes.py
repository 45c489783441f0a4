"""Learners in two real processes, which share out the microbatches, against one that does everything."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import random_rollouts, tiny_model
from torch import Tensor

from carerft.algorithms import Algorithm
from carerft.errors import NonFiniteError
from carerft.head import TokenStatistics
from carerft.learner import Correction, Learner
from carerft.optimization import Optimization
from carerft.regularizers import Regularizer, SkewReverseKL
from carerft.rollout import Rollouts

WORLD, STEPS, GROUP = 2, 3, 4
EPSILON = torch.finfo(torch.float32).eps
ALGORITHMS = {
    "grpo": Algorithm("grpo", GROUP, 0.2, 0.2, "token", "sequence", "sample"),
    "dapo": Algorithm("dapo", GROUP, 0.2, 0.28, "token", "token", "sample"),
    "gspo": Algorithm("gspo", GROUP, 3e-4, 4e-4, "sequence", "sequence", "sample"),
    "dr_grpo": Algorithm("dr_grpo", GROUP, 0.2, 0.2, "token", "constant", "none", aggregation_constant=40.0),
}
# Tokens of prompt and completion in one microbatch, and how many of the completions' then fall to each process.
SHAPES = {"even": (30, [47, 41]), "uneven": (110, [92, 14]), "all to one": (10_000, [88, 0])}
NOT_FINITE, SECOND = "a loss that is not finite on one of them", "the gradient of a second batch"


class CountingLearner(Learner):
    """Counts the tokens of completions that it scores."""

    tokens = 0

    def score(self, rollouts: Rollouts, index: Tensor, regularizer: Regularizer | None = None) -> TokenStatistics:
        self.tokens += int(rollouts.lengths[index].sum())
        return super().score(rollouts, index, regularizer)


def rollouts(shape: str) -> Rollouts:
    """Four prompts of four completions. uneven: two completions of 46 tokens, fourteen of one."""
    if shape != "uneven":
        return random_rollouts(4, GROUP, seed=5)
    drawn = random_rollouts(4, GROUP, seed=5, longest=46)
    lengths = torch.tensor([46] + [1] * 5 + [46] + [1] * 9)
    return replace(drawn, lengths=lengths, finished=lengths < 46)


def made(algorithm: str, shape: str, processes: dist.ProcessGroup | None) -> CountingLearner:
    """Settings that would show a wrong share: schedules, an entropy bonus, a reference that the policy has left."""
    regularizer = SkewReverseKL(beta=0.5, alpha=0.5, alpha_schedule="linear", alpha_end=0.8, entropy_bonus=0.01)
    # An epsilon that is not small beside the gradients: Adam otherwise makes a step of full size out of a gradient
    # that is nothing but rounding.
    plan = Optimization(learning_rate=1e-2, steps=STEPS, adam_eps=1e-3, tokens_per_microbatch=SHAPES[shape][0])
    learner = CountingLearner(tiny_model(), ALGORITHMS[algorithm], regularizer, plan, processes)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return learner


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def learned(algorithm: str, shape: str, processes: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """The first gradient and the tokens that it took, then the metrics of three steps and the weights after them."""
    learner, batch = made(algorithm, shape, processes), rollouts(shape)
    advantages = torch.linspace(-1.5, 1.5, 16)
    correction = None
    if algorithm == "dapo":  # with an importance correction
        log_probs = learner.log_probs(batch)
        correction = Correction(log_probs, (log_probs - batch.log_probs).exp().clamp(max=2.0))
    learner.tokens = 0
    learner.gradient(batch, advantages, correction)
    tokens, gradient = learner.tokens, flat([p.grad for p in learner.policy.parameters()])
    learner.optimizer.zero_grad(set_to_none=True)
    before = flat(list(learner.policy.parameters()))
    metrics = [learner.step(batch, advantages, correction) for _ in range(STEPS)]
    after = flat(list(learner.policy.parameters()))
    return {"tokens": tokens, "gradient": gradient, "metrics": metrics, "before": before, "after": after}


def stopped(processes: dist.ProcessGroup | None) -> bool:
    """Whether a step is refused that one of the microbatches spoils, and leaves the weights as they were."""
    learner, batch = made("grpo", "even", processes), rollouts("even")
    shortest = int(batch.lengths.argmin())  # in one microbatch, which is one process's alone
    batch.log_probs[shortest, 0] = -torch.inf
    before = flat(list(learner.policy.parameters()))
    try:
        learner.step(batch, torch.full((16,), -1.0))
    except NonFiniteError:
        return torch.equal(before, flat(list(learner.policy.parameters())))
    return False


def second(processes: dist.ProcessGroup | None, after_another: bool = True) -> Tensor:
    """The gradient of one batch, after that of another has been computed with the same learner."""
    learner = made("grpo", "even", processes)
    if after_another:
        learner.gradient(rollouts("even"), torch.linspace(-1.5, 1.5, 16))
    learner.gradient(rollouts("even"), torch.linspace(1, -2, 16))
    return flat([p.grad for p in learner.policy.parameters()])


def process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    store, patience = f"file://{directory}/store", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=patience)
    both = dist.group.WORLD
    found = {(a, s): learned(a, s, both) for a in ALGORITHMS for s in SHAPES}
    torch.save({**found, NOT_FINITE: stopped(both), SECOND: second(both)}, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each process found, for every algorithm and shape."""
    directory: Path = tmp_path_factory.mktemp("processes")
    mp.spawn(process, (str(directory),), nprocs=WORLD)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_processes_learn_what_one_does(algorithm: str, shape: str, found: list[dict]):
    """Each microbatch is computed as by one process; only the order in which their sums are added up is another."""
    alone, (first, second) = learned(algorithm, shape), (each[algorithm, shape] for each in found)
    assert [first["tokens"], second["tokens"]] == SHAPES[shape][1]
    largest = float(alone["gradient"].abs().max())
    assert torch.allclose(first["gradient"], alone["gradient"], rtol=0, atol=8 * EPSILON * largest)
    assert torch.allclose(first["after"], alone["after"], rtol=0, atol=8 * EPSILON)
    assert (alone["after"] - alone["before"]).abs().max() > 1e-2  # they did move
    assert [m.keys() for m in first["metrics"]] == [m.keys() for m in alone["metrics"]]
    for step, expected in zip(first["metrics"], alone["metrics"], strict=True):
        for key, value in expected.items():
            assert step[key] == pytest.approx(value, rel=64 * EPSILON, abs=EPSILON), key
    # and the two agree to the last bit, so that they never drift apart
    assert torch.equal(first["after"], second["after"]) and first["metrics"] == second["metrics"]


def test_a_loss_that_is_not_finite_on_one_process_stops_both(found: list[dict]):
    assert stopped(None) and all(each[NOT_FINITE] for each in found)


def test_a_gradient_takes_the_place_of_the_one_before_it(found: list[dict]):
    alone = second(None, after_another=False)
    assert torch.equal(second(None), alone)
    for each in found:
        assert torch.allclose(each[SECOND], alone, rtol=0, atol=8 * EPSILON * float(alone.abs().max()))
