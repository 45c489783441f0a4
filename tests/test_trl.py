"""CARE-RFT inside TRL's GRPOTrainer: against carerft's own learner, against TRL's own penalty, and as TRL is used."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.models import random_rollouts, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import carerft.integrations.trl
from carerft.config.settings import LearnerSettings
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import ReverseKL, SkewReverseKL
from carerft.training.learner import Learner

pytest.importorskip("trl", reason="TRL is not installed: pip install 'carerft[trl]'")
from trl import GRPOConfig, GRPOTrainer

from carerft.integrations.penalty import srkl_penalty
from carerft.integrations.trl import CareGRPOConfig, CareGRPOTrainer

BASE = Path(__file__).parents[1] / "carerft/world/base"
QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "bf16": False}
GRPO = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample", 1e-6)


def short(completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(completion)) for completion in completions]


def trainer(directory: Path, model: Any, kind: type = CareGRPOTrainer, config: type = CareGRPOConfig, **settings: Any):
    given = {"peft_config": settings.pop("peft_config", None)}
    args = config(
        output_dir=str(directory), per_device_train_batch_size=8, num_generations=4, max_completion_length=9,
        loss_type="grpo", **QUIET, **settings,
    )  # fmt: skip
    dataset = Dataset.from_dict({"prompt": ["Q: two plus three?\nA:", "Q: four plus five?\nA:"] * 20})
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    if not model.config._name_or_path:  # TRL loads its reference from where the model came from
        model.save_pretrained(directory / "model")
        model = AutoModelForCausalLM.from_pretrained(directory / "model")
    return kind(model=model, reward_funcs=short, args=args, train_dataset=dataset, processing_class=tokenizer, **given)


def moved(model: Any, by: float = 0.05) -> Any:
    """A copy of the model somewhere else, so that a penalty is far from zero."""
    torch.manual_seed(1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += by * torch.randn_like(parameter)
    return other


def batch(rollouts: Any, advantages: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Rollouts as TRL's loss takes them: prompts padded on the left, each repeated for its group."""
    group = rollouts.group_size
    width = rollouts.prompt_tokens.shape[1]
    ids = torch.zeros_like(rollouts.prompt_tokens)
    for row, length in enumerate(rollouts.prompt_lengths):
        ids[row, width - length :] = rollouts.prompt_tokens[row, :length]
    mask = torch.arange(width)[None, :] >= width - rollouts.prompt_lengths[:, None]
    return {
        "prompt_ids": ids.repeat_interleave(group, 0),
        "prompt_mask": mask.long().repeat_interleave(group, 0),
        "completion_ids": rollouts.tokens,
        "completion_mask": rollouts.mask().long(),
        "advantages": advantages,
        "old_per_token_logps": rollouts.log_probs,
        "ref_per_token_logps": reference,
    }


def loss_and_gradient(built: Any, inputs: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    built.current_gradient_accumulation_steps = 1
    built.model.zero_grad(set_to_none=True)
    loss = built.compute_loss(built.model, dict(inputs))
    loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in built.model.named_parameters() if p.grad is not None}


@pytest.fixture
def world():
    """A policy away from its reference, rollouts that a third model might have sampled, and their advantages."""
    reference = tiny_model()
    rollouts = random_rollouts(prompts=2, group=4)
    return moved(reference), reference, rollouts, torch.randn(8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("estimator", ["unbiased", "k3"])
@pytest.mark.parametrize(("name", "alpha"), [("srkl", 0.8), ("srkl", 0.3), ("rkl", 0.0)])
def test_loss_and_gradient_are_those_of_carerfts_learner(tmp_path, world, estimator, name, alpha):
    policy, reference, rollouts, advantages = world
    skewed = SkewReverseKL(beta=0.5, alpha=alpha, estimator=estimator)
    regularizer = skewed if alpha else ReverseKL(beta=0.5, estimator=estimator)
    learner = Learner(
        copy.deepcopy(policy), GRPO, regularizer, LearnerSettings(learning_rate=1e-2), 10, reference=reference
    )
    ours = learner.gradient(rollouts, advantages)["loss/total"]

    built = trainer(tmp_path, policy, beta=0.5, regularizer=name, alpha=alpha, estimator=estimator)
    inputs = batch(rollouts, advantages, learner.log_probs(rollouts, of_reference=True))
    theirs, gradient = loss_and_gradient(built, inputs)

    assert theirs == pytest.approx(ours, rel=1e-5)
    assert gradient and abs(ours) > 0.01
    for parameter_name, parameter in learner.policy.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradient[parameter_name], parameter.grad, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.parametrize(("estimator", "corrected"), [("unbiased", True), ("k3", False)])
def test_without_skew_it_is_trls_own_penalty_bit_for_bit(tmp_path, world, estimator, corrected):
    policy, _, rollouts, advantages = world
    inputs = batch(rollouts, advantages, torch.full_like(rollouts.log_probs, -3.0))
    ours = trainer(tmp_path, copy.deepcopy(policy), beta=0.5, alpha=0.0, estimator=estimator)
    plain = trainer(
        tmp_path, copy.deepcopy(policy), GRPOTrainer, GRPOConfig, beta=0.5, use_bias_correction_kl=corrected
    )
    (loss, gradient), (their_loss, their_gradient) = (loss_and_gradient(built, inputs) for built in (ours, plain))
    assert loss == their_loss
    assert all(torch.equal(gradient[name], their_gradient[name]) for name in their_gradient)


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
def test_five_steps(tmp_path, adapter):
    from peft import LoraConfig

    model = AutoModelForCausalLM.from_pretrained(BASE)
    before = {name: p.clone() for name, p in model.named_parameters()}
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if adapter else None
    rate = 1e-2 if adapter else 1e-3
    built = trainer(tmp_path, model, beta=0.04, max_steps=5, learning_rate=rate, logging_steps=1, peft_config=lora)
    built.train()
    penalties = [entry["kl"] for entry in built.state.log_history if "kl" in entry]
    assert len(penalties) == 5 and penalties[0] == pytest.approx(0, abs=1e-6) and penalties[-1] > 1e-6
    if not adapter:
        assert any(not torch.equal(before[name], p) for name, p in built.model.named_parameters())


def test_the_example_of_the_docs_trains(tmp_path, monkeypatch):
    example = (BASE.parents[2] / "docs/integrations.md").read_text().split("```python\n")[1].split("```")[0]
    brief = f'"{BASE}"', "max_steps=2, max_completion_length=8, use_cpu=True, report_to='none', disable_tqdm=True"
    for printed, ours in zip(('"Qwen/Qwen2.5-1.5B-Instruct"', "max_steps=100"), brief, strict=True):
        assert printed in example
        example = example.replace(printed, ours)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/integrations.md", "exec"), names)
    assert names["trainer"].state.global_step == 2 and names["trainer"].args.alpha == 0.8


def test_without_a_penalty_there_is_no_reference(tmp_path):
    built = trainer(tmp_path, tiny_model(), regularizer="none")
    assert built.beta == 0 and built.ref_model is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularizer": "kl"}, "srkl, rkl, none"),
        ({"alpha": 1.0}, "below 1"),
        ({"alpha": "0.8"}, "alpha='0.8': write a number"),
        ({"beta": "4e-2"}, "beta='4e-2': write a number"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"estimator": "exact"}, "carerft train"),
        ({"importance_sampling_level": "sequence"}, "estimator='k3'"),
    ],
)
def test_a_bad_value_is_refused_with_what_to_write(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        CareGRPOConfig(output_dir=str(tmp_path), **QUIET, **settings)


def test_trls_own_configuration_is_refused(tmp_path):
    with pytest.raises(TypeError, match="CareGRPOConfig"):
        trainer(tmp_path, tiny_model(), config=GRPOConfig, beta=0.1)


class ReadsTheReferenceFirst(GRPOTrainer):
    def _compute_loss(self, model, inputs):
        reference = inputs["ref_per_token_logps"]
        return super()._compute_loss(model, inputs) + 0 * reference.sum()


class HasALossOfItsOwn(GRPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model.lm_head.weight.sum()


class ReadsNoReference(GRPOTrainer):
    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        return self._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])[0].sum()


@pytest.mark.parametrize(
    ("moved_trainer", "what"), [(ReadsTheReferenceFirst, "before"), (ReadsNoReference, "without the reference")]
)
def test_a_trl_that_computes_its_loss_otherwise_is_refused(tmp_path, world, moved_trainer, what):
    policy, _, rollouts, advantages = world
    built = trainer(tmp_path, policy, type("Moved", (carerft.integrations.trl.SkewReverseKL, moved_trainer), {}))
    with pytest.raises(RuntimeError, match=what):
        loss_and_gradient(built, batch(rollouts, advantages, rollouts.log_probs))


def test_a_trainer_with_a_loss_of_its_own_is_refused(tmp_path):
    kind = type("Other", (carerft.integrations.trl.SkewReverseKL, HasALossOfItsOwn), {})
    built = trainer(tmp_path, AutoModelForCausalLM.from_pretrained(BASE), kind, max_steps=1)
    with pytest.raises(RuntimeError, match="_compute_loss"):
        built.train()


def test_a_mixin_behind_trls_trainer_is_refused():
    """Its methods would never be called, and TRL's own reverse KL would train in silence."""
    late: tuple[type, ...] = (GRPOTrainer, carerft.integrations.trl.SkewReverseKL)
    with pytest.raises(TypeError, match=r"class Late\(SkewReverseKL, ...\)"):
        type("Late", late, {})


def test_the_one_function_is_the_unbiased_estimate(world):
    _, _, rollouts, _ = world
    log_pi, log_ref, log_old = (rollouts.log_probs + 0.3 * torch.randn_like(rollouts.log_probs) for _ in range(3))
    expected = SkewReverseKL(beta=1, alpha=0.3, estimator="unbiased").estimate(log_pi, log_ref, log_old)
    assert torch.equal(srkl_penalty(log_pi, log_ref, 0.3, log_old), expected)
    # the gradient's mean over all tokens, weighed by the policy, is the gradient of the divergence's full sum
    logits, reference = torch.randn(7, requires_grad=True), torch.randn(7).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    (sampled,) = torch.autograd.grad((log_probs.exp().detach() * srkl_penalty(log_probs, reference)).sum(), logits)
    log_probs = logits.log_softmax(-1)
    (full,) = torch.autograd.grad(SkewReverseKL(alpha=0.8).divergence(log_probs, reference), logits)
    torch.testing.assert_close(sampled, full)


def test_objective_and_penalty_import_with_torch_alone():
    blocked = ("vllm", "hydra", "omegaconf", "datasets", "transformers", "wandb", "trl", "ray")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked}));" + (
        "from carerft.objective import algorithms, lm_head, regularizers, schedules, settings;"
        "import carerft.integrations.penalty"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
