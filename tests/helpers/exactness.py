"""How far sampler and learner are from a plain forward pass, for a model loaded from a directory as a user's is."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import CareError
from carerft.model.loading import load_model
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import NoRegularizer
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.training.learner import Learner
from helpers.architectures import EOS, TYPES, tiny, tiny_tokenizer

PROMPTS = [[5, 6, 9, 20, 11], [8], [9, 12, 4, 4, 13, 12, 22, 10, 7], [6, 33, 9, 51, 11]]
NATS, RELATIVE = 1e-4, 1e-3
"""What may separate log-probabilities, and gradients."""
CPU = torch.device("cpu")


@dataclass
class Measured:
    """What became of a type. sampler, learner, gradient: the largest differences; None: not reached. refused: why."""

    model_type: str
    sampler: float | None = None
    learner: float | None = None
    gradient: float | None = None
    checkpointed: float | None = None
    layout: str = ""
    equal_lengths: bool = False
    refused: str = ""
    unbuilt: str = ""

    @property
    def exact(self) -> bool:
        pairs = [(self.sampler, NATS), (self.learner, NATS), (self.gradient, RELATIVE), (self.checkpointed, RELATIVE)]
        return not self.refused and all(value is not None and value <= most for value, most in pairs)


def saved(model: PreTrainedModel, directory: Path) -> ModelSettings:
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    implementation = "sdpa" if model._supports_sdpa else "eager"
    return ModelSettings(name="tiny", path=str(directory), attention=implementation)


def measure(model_type: str, directory: Path, **changes: Any) -> Measured:
    """changes: fields of the configuration."""
    found = Measured(model_type)
    try:
        settings = saved(tiny(model_type, **changes), directory)
    except Exception as error:
        found.unbuilt = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        return found
    try:
        policy, tokenizer = load_model(settings, CPU)
        plain = copy.deepcopy(policy)
        worker = TransformersWorker(policy, [EOS], 0, tokenizer=tokenizer)
        found.equal_lengths = not worker.mixes_lengths
        rollouts = worker.sample(PROMPTS, 3, Sampling(20), seed=0)
        found.sampler = difference(rollouts, rollouts.log_probs, plain)
        scored = worker.log_likelihood([PROMPTS[i // 3] for i in range(12)], completions(rollouts))
        sums = (rollouts.log_probs * rollouts.mask()).sum(1)
        found.sampler = max(found.sampler, float((torch.tensor(scored) - sums).abs().max()) / 10)
        learner = make_learner(policy)
        found.layout = learner.layout
        found.learner = difference(rollouts, learner.log_probs(rollouts), plain)
        expected = plain_gradient(plain, rollouts)
        found.gradient = relative(learner_gradient(learner, rollouts), expected)
        if plain.supports_gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            learner = make_learner(policy)
            found.checkpointed = relative(learner_gradient(learner, rollouts), expected)
            found.learner = max(found.learner, difference(rollouts, learner.log_probs(rollouts), plain))
        else:
            found.checkpointed = 0.0
    except CareError as error:
        found.refused = str(error)
    return found


def make_learner(policy: PreTrainedModel) -> Learner:
    algorithm = Algorithm("grpo", 3, 0.2, 0.2, "token", "sequence", "sample", 1e-6)
    return Learner(policy, algorithm, NoRegularizer(), LearnerSettings(1e-3, monitor_reference=False), 10)


def completions(rollouts: Rollouts) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(rollouts.tokens, rollouts.lengths, strict=True)]


def sequences(rollouts: Rollouts) -> list[tuple[list[int], list[int]]]:
    owners = [i // rollouts.group_size for i in range(len(rollouts.tokens))]
    prompts = [row[:n].tolist() for row, n in zip(rollouts.prompt_tokens, rollouts.prompt_lengths, strict=True)]
    return [(prompts[owner], tokens) for owner, tokens in zip(owners, completions(rollouts), strict=True)]


def plain_log_probs(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """(T,) of the completion's tokens, by one forward pass of one sequence."""
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def difference(rollouts: Rollouts, found: Tensor, plain: PreTrainedModel) -> float:
    with torch.no_grad():
        parts = [
            (found[i, : len(completion)] - plain_log_probs(plain, prompt, completion)).abs().max()
            for i, (prompt, completion) in enumerate(sequences(rollouts))
        ]
    return float(torch.stack(parts).max())


def weights(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3))


def plain_gradient(model: PreTrainedModel, rollouts: Rollouts) -> dict[str, Tensor]:
    model.zero_grad()
    log_probs = torch.cat([plain_log_probs(model, *sequence) for sequence in sequences(rollouts)])
    (weights(len(log_probs)) * log_probs).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learner_gradient(learner: Learner, rollouts: Rollouts) -> dict[str, Tensor]:
    """The same loss as `plain_gradient`, through the learner's pass, in two microbatches."""
    learner.policy.zero_grad()
    count, split = int(rollouts.lengths.sum()), len(rollouts.tokens) // 2
    parts = weights(count).split([int(rollouts.lengths[:split].sum()), int(rollouts.lengths[split:].sum())])
    for index, part in zip(torch.arange(len(rollouts.tokens)).split(split), parts, strict=True):
        (part * learner.score(rollouts, index).log_prob).sum().backward()
    return {name: p.grad.clone() for name, p in learner.policy.named_parameters() if p.grad is not None}


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any parameter's gradient, relative to the largest entry of all."""
    if found.keys() != expected.keys():
        unlike = found.keys() ^ expected.keys()
        if any(float(part[name].abs().max()) for part in (found, expected) for name in unlike & part.keys()):
            return torch.inf
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in found.keys() & expected.keys()) / size


def measure_all(directory: Path, types: list[str] = TYPES) -> list[Measured]:
    return [measure(model_type, directory / model_type) for model_type in types]
