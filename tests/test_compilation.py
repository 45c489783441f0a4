"""learner.compile: what is compiled gives the numbers of what is not.

Inductor takes a minute for each of these models. What a faster test runs are the graphs that it is given, operation by
operation ("aot_eager"): they are where in-place writes, conditions and shapes could go wrong.
"""

from pathlib import Path

import pytest
import torch
from helpers.models import compile_by, random_rollouts, tiny_model

from carerft import cli
from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.model.lora import add_lora
from carerft.model.modes import recompute_activations
from carerft.objective import lm_head
from carerft.objective.algorithms import Algorithm
from carerft.objective.lm_head import _fused, token_statistics
from carerft.objective.regularizers import JensenShannon, NoRegularizer, Regularizer, ReverseKL, SkewReverseKL
from carerft.rollout import Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.training.learner import Learner

EPSILON = torch.finfo(torch.float32).eps
WAYS = [{}, {"shapes": True, "checkpointing": True}, pytest.param({"lora": True}, marks=pytest.mark.slow)]
PENALTIES = [SkewReverseKL(alpha=0.8), ReverseKL(), JensenShannon(), None]


@pytest.fixture(autouse=True, params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    torch.compiler.reset()
    _fused.cache_clear()
    compile_by(request.param, monkeypatch.setattr)
    yield
    torch.compiler.reset()
    _fused.cache_clear()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_the_head(penalty: Regularizer | None, kept: bool, monkeypatch: pytest.MonkeyPatch):
    """Values and gradients; kept: all logits fit a chunk."""
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", 2000 if kept else 400)
    generator = torch.Generator().manual_seed(0)
    hidden, ref_hidden = torch.randn(2, 23, 8, generator=generator)
    weight, ref_weight = torch.randn(2, 50, 8, generator=generator)
    targets = torch.randint(50, (23,), generator=generator)
    found = {}
    for fused in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        reference = (None, None) if penalty is None else (ref_hidden, ref_weight)
        statistics = token_statistics(h, w, targets, *reference, penalty, fused)
        loss = (statistics.log_prob * torch.linspace(-1, 1, 23)).sum() + 0.1 * statistics.entropy.sum()
        if penalty is not None:
            loss = loss + (statistics.divergence * torch.linspace(0, 1, 23)).sum()
        loss.backward()
        found[fused] = [x.detach() for x in (*statistics, h.grad, w.grad) if x is not None]
    for one, other in zip(found[True], found[False], strict=True):
        assert torch.allclose(one, other, rtol=0, atol=32 * EPSILON * float(other.abs().max()))


def learned(compiled: bool, **how: bool) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Metrics of three steps, and the weights after them. shapes: in microbatches of different ones."""
    model = tiny_model()
    if how.get("checkpointing"):
        recompute_activations(model)
    if how.get("lora"):
        add_lora(model, ModelSettings(lora_rank=4, lora_alpha=8), seed=0)
    algorithm = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample")
    # An epsilon beside which rounding is small: Adam otherwise makes a full step out of a gradient that is no more.
    settings = LearnerSettings(
        1e-2, adam_eps=1e-3, tokens_per_microbatch=60 if how.get("shapes") else 1000, compile=compiled
    )
    learner = Learner(
        model, algorithm, SkewReverseKL(beta=0.5, alpha=0.5, alpha_schedule="linear", alpha_end=0.8), settings, 3
    )
    metrics = []
    for seed in (1, 2, 3):
        rollouts = random_rollouts(3, 4, seed=seed if how.get("shapes") else 1)
        metrics.append(learner.step(rollouts, torch.linspace(-1.5, 1.5, len(rollouts.lengths))))
    return metrics, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("how", WAYS, ids=lambda how: " ".join(how) or "plain")
def test_the_learner(how: dict[str, bool]):
    (found, after), (expected, weights) = learned(True, **how), learned(False, **how)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # something was compiled
    assert torch.allclose(after, weights, rtol=0, atol=16 * EPSILON)
    for step, right in zip(found, expected, strict=True):
        assert step.keys() == right.keys()
        for key, value in right.items():
            assert step[key] == pytest.approx(value, rel=256 * EPSILON, abs=4 * EPSILON), key


def test_sampling_compiles_nothing():
    """Each step has a shape of its own."""
    model = tiny_model()
    algorithm = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample")
    learner = Learner(model, algorithm, NoRegularizer(), LearnerSettings(1e-2, compile=True), 3)
    torch._dynamo.utils.counters.clear()
    for number in (2, 3):
        TransformersWorker(model, [1], 0).sample([[5, 6, 7]] * number, 2, Sampling(9), seed=0)
    assert not torch._dynamo.utils.counters["stats"]
    learner.log_probs(random_rollouts(2, 4))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cli.main(["train", "model=tiny", "learner.compile=true", f'hydra.run.dir="{tmp_path}"']) == 2
    said = capsys.readouterr().err
    assert "no-such-compiler" in said and "learner.compile=false" in said
